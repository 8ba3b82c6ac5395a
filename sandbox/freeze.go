package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/gondolin-go/gondolin/guest/wire"
	"github.com/gondolin-go/gondolin/sandbox/template"
)

// frozen is a session's machine as it stood at one moment. Other machines are cloned from it
// as from a template.
type frozen struct {
	*template.Template               // nil of a disk alone
	disk               *os.File      // nil: the machine has none; of the Template if there is one
	pause              time.Duration // how long the session stood still for it
}

func (f *frozen) close() {
	switch {
	case f.Template != nil:
		f.Template.Close()
	case f.disk != nil:
		f.disk.Close()
	}
}

// freeze copies the session's machine, or its disk alone. The session stands still
// meanwhile and goes on after it, whatever comes of it. during is called then.
func (s *Session) freeze(ctx context.Context, diskOnly bool, during func() error) (f *frozen, err error) {
	defer s.use()()
	select {
	case s.freezing <- struct{}{}:
		defer func() { <-s.freezing }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-s.life.Done():
		return nil, s.closedError()
	}
	if diskOnly && s.scratch == nil {
		return nil, fmt.Errorf("the session has no disk of its own (root mode %s): take its memory too: %w", s.opts.Root, ErrInvalid)
	}
	var memory *os.File
	if !diskOnly {
		if memory, err = s.memoryBefore(ctx); err != nil {
			return nil, fmt.Errorf("copying the machine's memory: %w", err)
		}
		defer func() {
			if f == nil {
				memory.Close()
			}
		}()
	}
	began := time.Now()
	defer func() {
		gerr := s.goOn()
		if f != nil {
			f.pause = time.Since(began)
		}
		if gerr != nil {
			if f != nil {
				f.close()
				f = nil
			}
			err = errors.Join(err, gerr)
		}
	}()
	if err := s.call(ctx, wire.OpHold, "", wire.Hold{KeepMounts: diskOnly, Sync: diskOnly}, nil); err != nil {
		return nil, err
	}
	if err := s.vm.Stop(); err != nil {
		return nil, fmt.Errorf("stopping the machine: %w", err)
	}
	if err := during(); err != nil {
		return nil, err
	}
	return s.copyMachine(ctx, memory)
}

// memoryBefore returns the file that the machine's memory is copied to, with what of it
// cannot change any more.
func (s *Session) memoryBefore(ctx context.Context) (*os.File, error) {
	switch {
	case s.template != nil:
		return s.template.CopyMemory(ctx)
	case s.memory != nil:
		return template.Anonymous("gondolin-memory", 0)
	}
	return nil, fmt.Errorf("%w: forks and snapshots with memory need Linux", errors.ErrUnsupported)
}

// copyMachine copies a machine that stands still. memory is nil for its disk alone.
func (s *Session) copyMachine(ctx context.Context, memory *os.File) (_ *frozen, err error) {
	f := &frozen{}
	defer func() {
		if err != nil && f.disk != nil {
			f.disk.Close()
		}
	}()
	if s.scratch != nil {
		if f.disk, err = cloneScratch(s.host.opts.CacheDir, s.scratch); err != nil {
			return nil, err
		}
	}
	if memory == nil {
		return f, nil
	}
	if s.template != nil {
		err = s.vm.CopyPrivate(ctx, s.template.Memory(), memory)
	} else {
		err = copySparse(memory, s.memory)
	}
	if err != nil {
		return nil, fmt.Errorf("copying the machine's memory: %w", err)
	}
	state, err := template.Anonymous("gondolin-state", 0)
	if err != nil {
		return nil, err
	}
	if err := s.vm.SaveDevices(state); err != nil {
		state.Close()
		return nil, fmt.Errorf("saving the machine's devices: %w", err)
	}
	f.Template, err = template.Freeze(memory, state, f.disk)
	if err != nil {
		f.disk = nil // closed with it, as the memory is
		return nil, err
	}
	return f, nil
}

// goOn lets a session go on that was held, whether it stands still or not. One that does
// not is ended: its caller would wait for it for ever.
func (s *Session) goOn() error {
	err := s.vm.Continue()
	if err == nil {
		err = s.freshen(s.life, settleTimeout)
	}
	if err == nil {
		_, err = s.thaw(s.life)
	}
	switch {
	case err == nil:
		return nil
	case s.life.Err() != nil:
		return s.closedError()
	}
	s.end("it did not go on after it had been copied: " + firstLine(err.Error()))
	return fmt.Errorf("the session did not go on: %w", err)
}

// thaw lets the processes of a machine go on and returns the connections that they had.
func (s *Session) thaw(ctx context.Context) ([]wire.Flow, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	var reply wire.Thawed
	if err := s.call(ctx, wire.OpThaw, "", nil, &reply); err != nil {
		return nil, err
	}
	return reply.Flows[:min(len(reply.Flows), wire.MaxFlows)], nil
}
