package vfs

import (
	"context"
	"syscall"
)

// ReadOnly serves root without a way to change it: every operation that would, and every
// open for writing, fails with EROFS.
func ReadOnly(root Node) Node {
	return newLayer(root, readOnly{}, mutations|kinds(OpOpen), false)
}

type readOnly struct{}

func (readOnly) before(_ context.Context, c *opCall) error {
	if c.changes() {
		return syscall.EROFS
	}
	return nil
}

func (readOnly) after(_ context.Context, _ *opCall, err error) error { return err }
