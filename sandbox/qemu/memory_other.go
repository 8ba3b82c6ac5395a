//go:build !linux

package qemu

import (
	"context"
	"errors"
	"os"
)

// CopyPrivate is for machines that are clones, of which this system has none.
func (vm *VM) CopyPrivate(context.Context, *os.File, *os.File) error {
	return errors.ErrUnsupported
}
