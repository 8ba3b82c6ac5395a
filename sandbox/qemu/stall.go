package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// What a boot that gets on does not do. It takes some five seconds of processor time under TCG.
const (
	stallTick = time.Second
	idleTicks = 15                   // in a row, in each of which the machine worked less than idleWork:
	idleWork  = 5 * time.Millisecond // an idle guest's own clock takes half of it
	endless   = 90 * time.Second     // of processor time
)

// ErrStalled: the machine will not finish its boot, though QEMU runs. Another start may help.
var ErrStalled = errors.New("the boot does not get on")

// WatchBoot returns a context that ends, with an ErrStalled as its cause, once the machine
// stands still or has worked far longer than a boot takes. It is measured in processor time, which a loaded
// host stretches and does not spend. Where the system does not tell that, the context is ctx's child and no
// more. The caller ends the watch when the boot is over.
func (vm *VM) WatchBoot(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		tick := time.NewTicker(stallTick)
		defer tick.Stop()
		var w bootWatch
		for {
			select {
			case <-tick.C:
			case <-vm.done:
				return
			case <-ctx.Done():
				return
			}
			work, err := processTime(vm.PID())
			if err != nil {
				return
			}
			if err := w.look(work); err != nil {
				cancel(err)
				return
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

// bootWatch judges a boot by the processor time that it has taken, looked at each stallTick.
type bootWatch struct {
	last time.Duration
	idle int
}

func (w *bootWatch) look(work time.Duration) error {
	if w.idle++; work-w.last >= idleWork {
		w.idle = 0
	}
	w.last = work
	switch {
	case w.idle >= idleTicks:
		return fmt.Errorf("%w: the machine has stood still for %v, after %v of work", ErrStalled, idleTicks*stallTick, work.Round(time.Millisecond))
	case work >= endless:
		return fmt.Errorf("%w: the machine has worked for %v", ErrStalled, work.Round(time.Second))
	}
	return nil
}
