//go:build !linux

package qemu

import (
	"errors"
	"time"
)

func processTime(int) (time.Duration, error) { return 0, errors.ErrUnsupported }
