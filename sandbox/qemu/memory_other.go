//go:build !linux

package qemu

import (
	"context"
	"errors"
	"net"
	"os"
)

// CopyPrivate is for machines that are clones, of which this system has none.
func (vm *VM) CopyPrivate(context.Context, *os.File, *os.File) error {
	return errors.ErrUnsupported
}

// unread is for copies of a machine's memory.
func unread(net.Conn) (here, there uint64) { return 0, 0 }
