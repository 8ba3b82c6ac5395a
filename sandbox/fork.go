package sandbox

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/gondolin-go/gondolin/netguard"
	"github.com/gondolin-go/gondolin/netguard/ca"
	"github.com/gondolin-go/gondolin/netguard/secret"
	"github.com/gondolin-go/gondolin/sandbox/qemu"
	"github.com/gondolin-go/gondolin/vfs"
)

// ForkOptions say what copies of a session to make. The zero value makes one like it.
type ForkOptions struct {
	Count int // of the copies; default 1
	// Adjust is called while the session stands still. It may change what copy i gets: its label, environment, mounts, denials and network. What
	// its machine is made of stays as it is. By default a copy shares the providers of
	// the mounts and the network's settings with the session, but for what Mount.Private
	// says is the session's alone: of a memory it gets a copy, and any other needs a Root of its own.
	Adjust func(i int, o *Options) error
}

// Forked is what Fork returns.
type Forked struct {
	Sessions []*Session
	Pause    time.Duration // how long the session stood still
}

// Fork makes copies of the session that go on where it stands: memory, processes, jobs and
// disk. Each has its own time, random numbers, machine-id and session id before any process
// of it runs on, and connections of its processes that led outside are reset. Placeholders of
// secrets and the authority for certificates are the session's, so that what runs goes on
// working. It fails with ErrBusy, and changes nothing, while a process uses a mount. Either all copies are
// made or none.
func (s *Session) Fork(ctx context.Context, o ForkOptions) (*Forked, error) {
	n := max(o.Count, 1)
	release, err := s.host.reserveFor(n)
	if err != nil {
		return nil, err
	}
	defer release()
	ctx, cancel := s.host.within(ctx)
	defer cancel()
	var list []Options
	f, err := s.freeze(ctx, false, func() (err error) {
		list, err = s.copies(n, o.Adjust)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("forking session %s: %w", s.id, err), s.host.giveBack(n))
	}
	defer f.close()
	from := revival{frozen: f, accel: s.accel, origin: OriginForked, past: &past{
		authority: s.authority, secrets: s.secrets, store: s.secretStore, guard: s.guard,
	}}
	sessions, err := s.host.reviveAll(ctx, list, from)
	if err != nil {
		return nil, fmt.Errorf("forking session %s: %w", s.id, err)
	}
	return &Forked{Sessions: sessions, Pause: f.pause}, nil
}

// copies are the options of n copies.
func (s *Session) copies(n int, adjust func(int, *Options) error) ([]Options, error) {
	var list []Options
	for i := range n {
		o := s.options()
		o.Mounts = slices.Clone(o.Mounts)
		if adjust != nil {
			if err := adjust(i, &o); err != nil {
				return nil, err
			}
		}
		if err := s.ownPrivate(o.Mounts); err != nil {
			return nil, err
		}
		o, err := s.sameMachine(o).withDefaults()
		if err != nil {
			return nil, err
		}
		list = append(list, o)
	}
	return list, nil
}

// ownPrivate sees that a copy changes nothing of which the session's guest believes that it alone does.
func (s *Session) ownPrivate(mounts []Mount) error {
	for i, m := range mounts {
		if !m.Private || m.ReadOnly || !slices.ContainsFunc(s.opts.Mounts, func(o Mount) bool { return o.Private && same(o.Root, m.Root) }) {
			continue
		}
		root, ok := vfs.CopyMemory(m.Root)
		if !ok {
			return fmt.Errorf("the mount at %s is private to the session: give its copy another Root in ForkOptions.Adjust: %w", m.Path, ErrInvalid)
		}
		mounts[i].Root = root
	}
	return nil
}

// same compares providers, of which some cannot be compared.
func same(a, b vfs.Node) bool {
	t := reflect.TypeOf(a)
	return t == reflect.TypeOf(b) && t.Comparable() && a == b
}

// options are what the session was made with, for another like it.
func (s *Session) options() Options {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.opts
	o.Denials = nil
	return o
}

// sameMachine puts back what cannot differ in a copy.
func (s *Session) sameMachine(o Options) Options {
	o.Image, o.Root = s.opts.Image, s.opts.Root
	limits := s.opts.Limits
	limits.Wall, limits.Idle = o.Limits.Wall, o.Limits.Idle
	o.Limits = limits
	return o
}

// revival says what sessions are revived from.
type revival struct {
	*frozen
	accel  qemu.Accelerator
	origin Origin
	past   *past // nil: it was in another process, perhaps
}

// past is what a copy's processes rely on and only the host knows.
type past struct {
	authority *ca.CA
	secrets   *secret.Set
	store     *secret.Store // of secrets
	guard     *netguard.Guard
}

// reviveAll makes a session of each of the options, whose places are reserved. On failure
// none is left.
func (h *Host) reviveAll(ctx context.Context, list []Options, from revival) ([]*Session, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sessions, errs := make([]*Session, len(list)), make([]error, len(list))
	gate := make(chan struct{}, runtime.NumCPU())
	var wg sync.WaitGroup
	for i, o := range list {
		wg.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			if sessions[i], errs[i] = h.revive(ctx, o, from); errs[i] != nil {
				cancel() // the others are not wanted either
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			errs = []error{err} // the rest are its consequences
			break
		}
	}
	err := errors.Join(errs...)
	if err == nil {
		return sessions, nil
	}
	for _, s := range sessions {
		if s != nil {
			s.end("another of the copies made with it failed")
		}
	}
	return nil, err
}

// revive makes one session, whose place is reserved, of a frozen machine.
func (h *Host) revive(ctx context.Context, o Options, from revival) (*Session, error) {
	began := time.Now()
	s, err := h.startRevived(ctx, o, from)
	if err == nil {
		s.origin, s.boot = from.origin, time.Since(began)
		if from.past != nil {
			own := *from.past
			s.past = &own
		}
		s.log.Info("session started", "origin", s.origin, "took", s.boot.Round(time.Millisecond))
	}
	return h.handOut(ctx, s, err)
}

func (h *Host) startRevived(ctx context.Context, o Options, from revival) (*Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	id := newID()
	config, err := h.machine(id, &o)
	if err != nil {
		return nil, err
	}
	config.Accelerator = from.accel
	begin := start{template: from.Template, again: true}
	if config.Scratch {
		if begin.scratch, err = cloneScratch(h.opts.CacheDir, from.Disk()); err != nil {
			return nil, err
		}
	}
	dir, err := newRunDir(h.opts.RuntimeDir, id)
	if err != nil {
		if begin.scratch != nil {
			begin.scratch.Close()
		}
		return nil, err
	}
	s := newSession(ctx, h, id, dir, o)
	if err := h.bootOnce(ctx, s, config, begin); err != nil {
		s.cancel()
		return nil, errors.Join(err, dir.remove())
	}
	return s, nil
}
