//go:build !linux

package sandbox

import (
	"errors"
	"os"
)

func unnamedFile(dir string) (*os.File, error) { return unlinkedFile(dir) }

func reflink(*os.File, *os.File) error { return errors.ErrUnsupported }
