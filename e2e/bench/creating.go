package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gondolin-go/gondolin/sandbox"
)

const poolSize = 4

// creating measures from nothing to the end of the first command: booted, cloned
// from a template, and taken from the pool.
func (b *bench) creating(ctx context.Context) error {
	cold, err := sandbox.NewHost(ctx, sandbox.HostOptions{RuntimeDir: b.dir, NoTemplates: true})
	if err != nil {
		return err
	}
	defer cold.Close()
	pool, err := sandbox.NewHost(ctx, sandbox.HostOptions{RuntimeDir: b.dir, Pool: sandbox.Pool{Size: poolSize}})
	if err != nil {
		return err
	}
	defer pool.Close()
	return errors.Join(
		b.starts(ctx, cold, sandbox.OriginBooted, row{Name: "create to first exec, booted", Unit: "s", Original: 6.3}, 7, 1),
		b.starts(ctx, cold, sandbox.OriginBooted, row{Name: "4 at once, create to exec, booted", Unit: "s", Original: 12.6}, 3, 4),
		b.starts(ctx, b.host, sandbox.OriginCloned, row{Name: "create to first exec, cloned", Unit: "s", Original: 6.3, Bar: 0.25}, 31, 1),
		b.starts(ctx, b.host, sandbox.OriginCloned, row{Name: "4 at once, create to exec, cloned", Unit: "s", Original: 12.6, Bar: 0.8}, 11, 4),
		b.starts(ctx, pool, sandbox.OriginPooled, row{Name: "create to first exec, pooled", Unit: "s", Original: 6.3, Bar: 0.05}, 11, 1),
		b.starts(ctx, pool, sandbox.OriginPooled, row{Name: "4 at once, create to exec, pooled", Unit: "s", Original: 12.6, Bar: 0.8}, 5, 4),
	)
}

// starts measures n times how long it takes until each of so many sessions, asked for at once, has run a command.
func (b *bench) starts(ctx context.Context, h *sandbox.Host, origin sandbox.Origin, r row, n, sessions int) error {
	if b.skips(r) {
		return nil
	}
	if err := b.ready(ctx, h, origin); err != nil {
		return err
	}
	return b.measure(r, n, func() (float64, error) {
		if origin == sandbox.OriginPooled {
			if err := b.ready(ctx, h, origin); err != nil {
				return 0, err
			}
		}
		made := make(chan started, sessions)
		began := time.Now()
		for range sessions {
			go func() { made <- b.first(ctx, h) }()
		}
		var all []started
		for range sessions {
			all = append(all, <-made)
		}
		took := time.Since(began).Seconds()
		var errs []error
		for _, s := range all {
			errs = append(errs, s.err)
			if s.err == nil {
				if got := s.session.Info().Origin; got != origin {
					errs = append(errs, fmt.Errorf("a session was %s", got))
				}
				errs = append(errs, s.session.Close())
			}
		}
		return took, errors.Join(errs...)
	})
}

type started struct {
	session *sandbox.Session
	err     error
}

func (b *bench) first(ctx context.Context, h *sandbox.Host) started {
	s, err := h.Create(ctx, sandbox.Options{Image: b.image})
	if err != nil {
		return started{nil, err}
	}
	_, err = s.Run(ctx, sandbox.Command{Argv: []string{"/bin/true"}})
	return started{s, err}
}

// ready waits until a host can make sessions of an origin.
func (b *bench) ready(ctx context.Context, h *sandbox.Host, origin sandbox.Origin) error {
	if err := h.Prepare(sandbox.Options{Image: b.image}); err != nil {
		return err
	}
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); {
		ok := h.Ready() == poolSize // and nothing is being made for it beside what is measured
		if origin != sandbox.OriginPooled {
			s := b.first(ctx, h)
			if s.err != nil {
				return s.err
			}
			ok = s.session.Info().Origin == origin
			if err := s.session.Close(); err != nil {
				return err
			}
		}
		if ok {
			return nil
		}
		wait := time.NewTimer(100 * time.Millisecond)
		<-wait.C
	}
	return fmt.Errorf("no session was %s", origin)
}
