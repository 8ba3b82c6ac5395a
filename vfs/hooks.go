package vfs

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"syscall"
)

// HookFuncs are called around every operation below a mount. Either may be nil. They are
// called from many goroutines, and an operation waits for them.
type HookFuncs struct {
	// Before may refuse an operation with an error, which the guest gets as Errno says.
	Before func(ctx context.Context, op Op) error
	// After is told how an operation ended, also one that Before refused.
	After func(ctx context.Context, op Op, err error)
	// Kinds limits the calls to some kinds of operations; none means all. Reads and
	// lookups are by far the most.
	Kinds []OpKind
	// Logger gets panics of the functions; nil discards them.
	Logger *slog.Logger
}

// Hooks calls functions around the operations on root. A function that panics fails
// closed: Before refuses with EPERM, After turns the result into EIO.
func Hooks(root Node, h HookFuncs) Node {
	wants := ^uint64(0)
	if len(h.Kinds) > 0 {
		wants = kinds(h.Kinds...)
	}
	if h.Logger == nil {
		h.Logger = slog.New(slog.DiscardHandler)
	}
	return newLayer(root, &hooks{h}, wants, true)
}

type hooks struct{ HookFuncs }

func (h *hooks) before(ctx context.Context, c *opCall) (err error) {
	if h.Before == nil {
		return nil
	}
	if err = h.guard("before", c.Op, syscall.EPERM, func() error { return h.Before(ctx, c.Op) }); err != nil {
		return h.after(ctx, c, err)
	}
	return nil
}

func (h *hooks) after(ctx context.Context, c *opCall, err error) error {
	if h.After == nil {
		return err
	}
	panicked := h.guard("after", c.Op, syscall.EIO, func() error { h.After(ctx, c.Op, err); return nil })
	if panicked != nil && err == nil {
		return panicked
	}
	return err
}

// guard turns a panic into an error.
func (h *hooks) guard(when string, op Op, failed error, call func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			h.Logger.Error("a file hook panicked", "when", when, "op", op.Kind.String(), "path", op.Path,
				"panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = failed
		}
	}()
	return call()
}
