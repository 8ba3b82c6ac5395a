package sandbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"reflect"
	"sync"
	"time"

	"github.com/gondolin-go/gondolin/guest/wire"
)

const (
	// refillDelay leaves the machine to the session that was just taken.
	refillDelay = time.Second
	// refillRetry is the pause after a session that could not be made.
	refillRetry = 30 * time.Second
	// wakeTimeout is how long a pooled session has to go on; it takes milliseconds.
	wakeTimeout = 5 * time.Second
)

// Pool says how many sessions a host keeps ready, stopped, beside those in use.
type Pool struct {
	Size      int // sessions; 0: none
	MemoryMiB int // bound on the guest memory of all of them together; 0: none
}

// pool keeps sessions ready that are like the one asked for last.
type pool struct {
	Pool
	host *Host
	wake chan struct{} // holds one token: look again
	done chan struct{} // closed when run has returned

	mu    sync.Mutex
	like  *Options
	ready []*Session
}

func newPool(h *Host, o Pool) *pool {
	return &pool{Pool: o, host: h, wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// want says what sessions to keep ready.
func (p *pool) want(o Options) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.like == nil || !alike(*p.like, o) {
		like := impersonal(o)
		like.Dir = "/"
		p.like = &like
	}
	p.kick()
}

func (p *pool) kick() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// alike reports whether a session made for a can serve b.
func alike(a, b Options) bool {
	return reflect.DeepEqual(impersonal(a), impersonal(b))
}

// impersonal leaves out what a session gets when it is taken; a machine does not know its directory.
func impersonal(o Options) Options {
	o.Label, o.Dir, o.Mounts, o.Denials, o.Network, o.Visited, o.Snapshotted = "", "", nil, nil, nil, nil, nil
	return o
}

// take returns a ready session like o, or nil.
func (p *pool) take(o Options) *Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ready) == 0 || !alike(p.ready[0].opts, o) {
		return nil
	}
	s := p.ready[0]
	p.ready = p.ready[1:]
	return s
}

// run fills the pool until the host closes, and then empties it.
func (p *pool) run(ctx context.Context) {
	defer close(p.done)
	var due <-chan time.Time // when to fill; further sessions taken do not put it off
	for ctx.Err() == nil {
		select {
		case <-p.wake:
			if due == nil {
				due = time.After(refillDelay)
			}
		case <-due:
			due = nil
			if err := p.fill(ctx); err != nil && ctx.Err() == nil {
				p.host.log.Warn("filling the pool of sessions", "err", err)
				due = time.After(refillRetry)
			}
		case <-ctx.Done():
		}
	}
	p.drop(func(*Session) bool { return true })
}

// fill makes the sessions that are missing, one after the other.
func (p *pool) fill(ctx context.Context) error {
	for ctx.Err() == nil {
		p.mu.Lock()
		like := *p.like
		p.mu.Unlock()
		p.drop(func(s *Session) bool { return s.vm.Err() != nil || !alike(s.opts, like) })
		size := p.Size
		if p.MemoryMiB > 0 {
			size = min(size, p.MemoryMiB/like.Limits.MemoryMiB)
		}
		p.mu.Lock()
		n := len(p.ready)
		p.mu.Unlock()
		if n >= size {
			return nil
		}
		s, err := p.host.standby(ctx, like)
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.ready = append(p.ready, s)
		p.mu.Unlock()
	}
	return nil
}

// drop ends the ready sessions for which out says so.
func (p *pool) drop(out func(*Session) bool) {
	p.mu.Lock()
	var kept, dropped []*Session
	for _, s := range p.ready {
		if out(s) {
			dropped = append(dropped, s)
		} else {
			kept = append(kept, s)
		}
	}
	p.ready = kept
	p.mu.Unlock()
	for _, s := range dropped {
		s.end("it was not needed")
	}
}

// Ready is how many sessions stand ready in the pool.
func (h *Host) Ready() int {
	h.pool.mu.Lock()
	defer h.pool.mu.Unlock()
	return len(h.pool.ready)
}

// standby makes a session and stops it when it is ready. Its guest trusts its authority and has run a
// command, so that what these cost is paid.
func (h *Host) standby(ctx context.Context, o Options) (*Session, error) {
	s, err := h.boot(ctx, o)
	if err != nil {
		return nil, err
	}
	warm, cancel := context.WithTimeout(ctx, wakeTimeout)
	defer cancel()
	if err = s.makeAuthority(); err == nil {
		err = s.trust(warm, true)
	}
	if err == nil {
		_, err = s.Run(warm, Command{Shell: "true"})
	}
	if file := new(FileError); errors.As(err, &file) || errors.Is(err, ErrInvalid) {
		err = nil // the image has no shell, or not the user: that is for who uses the session
	}
	if err == nil {
		err = s.vm.Stop()
	}
	if err != nil {
		s.end("it did not get ready")
		return nil, err
	}
	return s, nil
}

// pooled returns a session from the pool, or nil.
func (h *Host) pooled(ctx context.Context, o Options) *Session {
	if h.pool.Size == 0 {
		return nil
	}
	h.pool.want(o)
	for {
		s := h.pool.take(o)
		if s == nil {
			return nil
		}
		err := s.vm.Continue()
		if err == nil {
			err = s.setClock(ctx)
		}
		if err == nil {
			now := time.Now()
			s.mu.Lock()
			s.opts.Label, s.opts.Dir, s.opts.Mounts, s.opts.Network = o.Label, o.Dir, o.Mounts, o.Network
			s.opts.Visited, s.opts.Snapshotted = o.Visited, o.Snapshotted
			s.created, s.lastUsed, s.origin = now, now, OriginPooled
			if o.Denials != nil {
				s.denials = o.Denials
			}
			s.mu.Unlock()
			return s
		}
		s.log.Warn("a pooled session did not go on", "err", err)
		s.end("it did not go on")
		if ctx.Err() != nil {
			return nil
		}
	}
}

// freshen gives a machine that stood still the time, and entropy of its own.
func (s *Session) freshen(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	fresh := wire.Freshen{Entropy: make([]byte, wire.EntropySize)}
	if _, err := io.ReadFull(rand.Reader, fresh.Entropy); err != nil {
		return fmt.Errorf("drawing entropy: %w", err)
	}
	fresh.UnixNano = time.Now().UnixNano()
	return s.call(ctx, wire.OpFreshen, "", fresh, nil)
}
