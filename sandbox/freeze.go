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

// bytes is how much room its memory and disk take at most, where they are written.
func (f *frozen) bytes() (n int64) {
	files := []*os.File{f.disk}
	if f.Template != nil {
		files = append(files, f.Memory())
	}
	for _, file := range files {
		if file != nil {
			n += diskUsage(file)
		}
	}
	return n
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
	from, err := s.parts()
	if err != nil {
		return nil, err
	}
	defer from.close()
	if diskOnly && from.scratch == nil {
		return nil, fmt.Errorf("the session has no disk of its own (root mode %s): take its memory too: %w", s.opts.Root, ErrInvalid)
	}
	var memory *os.File
	if !diskOnly {
		if memory, err = from.memoryBefore(ctx); err != nil {
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
	if err := s.holdStill(ctx, wire.Hold{KeepMounts: diskOnly, Sync: diskOnly}); err != nil {
		return nil, err
	}
	release, err := s.vm.StopQuietly(ctx)
	if err != nil {
		return nil, fmt.Errorf("stopping the machine: %w", err)
	}
	defer release()
	if f, err = s.copyMachine(ctx, from, memory, release); err != nil {
		return nil, err
	}
	if err := during(); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

// holdTimeout is how long a guest may take to hold its processes, and to write what belongs on its
// disk if it shall.
const holdTimeout = time.Minute

// holdStill has the guest hold its processes. What it has begun is waited for though ctx ends: it
// would hold them again after it was told to let them go.
func (s *Session) holdStill(ctx context.Context, h wire.Hold) error {
	bounded, cancel := context.WithTimeoutCause(s.life, holdTimeout, fmt.Errorf("the guest did not hold its processes within %v", holdTimeout))
	defer cancel()
	if err := s.call(bounded, wire.OpHold, "", h, nil); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// parts are descriptors of what a machine consists of, apart from its session's, which may end.
type parts struct {
	template        *template.Template
	memory, scratch *os.File
}

func (p *parts) close() {
	for _, f := range []*os.File{p.memory, p.scratch} {
		if f != nil {
			f.Close()
		}
	}
	if p.template != nil {
		p.template.Close()
	}
}

// parts returns the session's, which the caller closes.
func (s *Session) parts() (p *parts, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p = &parts{}
	if s.reason != "" {
		return nil, s.closedErrorLocked()
	}
	if s.template != nil {
		p.template = s.template.Share()
	}
	if s.memory != nil {
		p.memory, err = reopen(s.memory)
	}
	if s.scratch != nil && err == nil {
		p.scratch, err = reopen(s.scratch)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// memoryBefore returns the file that the machine's memory is copied to, with what of it
// cannot change any more.
func (p *parts) memoryBefore(ctx context.Context) (*os.File, error) {
	switch {
	case p.template != nil:
		return p.template.CopyMemory(ctx)
	case p.memory != nil:
		return template.Anonymous("gondolin-memory", 0)
	}
	return nil, fmt.Errorf("%w: forks and snapshots with memory need Linux", errors.ErrUnsupported)
}

// copyMachine copies a machine that stands still. memory is nil for its disk alone. release is called
// when its ports may be used again.
func (s *Session) copyMachine(ctx context.Context, from *parts, memory *os.File, release func()) (_ *frozen, err error) {
	f := &frozen{}
	var state *os.File
	if memory != nil {
		if state, err = s.copyMemory(ctx, from, memory); err != nil {
			return nil, err
		}
	}
	release() // a disk can take its time, and does not change by what comes in at a port
	if from.scratch != nil {
		if f.disk, err = cloneScratch(s.host.opts.CacheDir, from.scratch); err != nil {
			if state != nil {
				state.Close()
			}
			return nil, err
		}
	}
	if memory == nil {
		return f, nil
	}
	if f.Template, err = template.Freeze(memory, state, f.disk); err != nil {
		return nil, err
	}
	return f, nil
}

// copyMemory copies a machine's memory and then returns the state of its devices.
func (s *Session) copyMemory(ctx context.Context, from *parts, memory *os.File) (state *os.File, err error) {
	if from.template != nil {
		err = s.vm.CopyPrivate(ctx, from.template.Memory(), memory)
	} else {
		err = copySparse(memory, from.memory)
	}
	if err != nil {
		return nil, fmt.Errorf("copying the machine's memory: %w", err)
	}
	if state, err = template.Anonymous("gondolin-state", 0); err != nil {
		return nil, err
	}
	if err := s.vm.SaveDevices(state); err != nil {
		state.Close()
		return nil, fmt.Errorf("saving the machine's devices: %w", err)
	}
	return state, nil
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
