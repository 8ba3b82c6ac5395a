//go:build !linux

package vfs

import (
	"context"
	"errors"
	"io"
)

// serve fails: go-fuse encodes messages as the kernel that it is built for has
// them, and the guest's kernel is Linux.
func (s *Server) serve(_ context.Context, conn io.ReadWriteCloser) error {
	return errors.Join(errors.New("files can be mounted into the guest from a Linux host only, so far"), conn.Close())
}
