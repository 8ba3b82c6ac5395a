package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

// QEMU's serial ports go on while a machine stands still: what the host sends or takes then must not
// be half in a copy.
func TestForkWhileMuchGoesInAndOut(t *testing.T) {
	h := templated(t, sandbox.HostOptions{}, small)
	s := newSession(t, h, small)
	ctx, stop := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	defer busy.Wait()
	defer stop()
	var in, out flowed
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	busy.Go(func() {
		for ctx.Err() == nil {
			if _, err := s.WriteFile(ctx, "/dev/shm/in", io.TeeReader(bytes.NewReader(data), &in), sandbox.WriteOptions{}); err != nil && ctx.Err() == nil {
				t.Errorf("writing: %v", err)
				return
			}
		}
	})
	busy.Go(func() {
		if _, err := s.Run(ctx, sandbox.Command{Shell: "exec cat /dev/zero", Stdout: &out}); ctx.Err() == nil {
			t.Errorf("reading: %v", err)
		}
	})
	for range 3 {
		wasIn, wasOut := in.Load(), out.Load()
		eventually(t, time.Minute, "more goes in and out", func() bool { return in.Load() > wasIn && out.Load() > wasOut })
		for _, c := range fork(t, s, 1) {
			sum, err := c.WriteFile(t.Context(), "/dev/shm/copy", bytes.NewReader(data), sandbox.WriteOptions{})
			require.NoError(t, err)
			require.EqualValues(t, len(data), sum.Bytes)
			require.Equal(t, "4194304", sh(t, c, "wc -c < /dev/shm/copy"))
			require.NoError(t, c.Close())
		}
	}
}

// flowed counts what is written to it.
type flowed struct{ atomic.Int64 }

func (c *flowed) Write(b []byte) (int, error) {
	c.Add(int64(len(b)))
	return len(b), nil
}

// A command that is started at the moment of a fork waits for its end, and runs once.
func TestCommandsStartedWhileASessionIsForkedRun(t *testing.T) {
	h := templated(t, sandbox.HostOptions{}, small)
	s := newSession(t, h, small)
	ctx, stop := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	defer busy.Wait()
	defer stop()
	var ran atomic.Int64
	for range 3 {
		busy.Go(func() {
			for ctx.Err() == nil {
				exit, err := s.Run(ctx, sandbox.Command{Shell: "echo x >> /root/ran"})
				if err == nil && exit.Code == 0 {
					ran.Add(1)
				} else if ctx.Err() == nil {
					t.Errorf("%v, %+v", err, exit)
					return
				}
			}
		})
	}
	for range 3 {
		for _, c := range fork(t, s, 1) {
			require.Equal(t, "fine", sh(t, c, "echo fine"))
			require.NoError(t, c.Close())
		}
	}
	stop()
	busy.Wait()
	require.NotZero(t, ran.Load())
	require.Equal(t, "fine", sh(t, s, "echo fine"))
}

// Who closes a session while it is copied gets no copy, and neither waits for the other for ever.
func TestSessionClosedWhileItIsForkedEndsBoth(t *testing.T) {
	dir := runtimeDir(t)
	h := templated(t, sandbox.HostOptions{RuntimeDir: dir}, small)
	for _, wait := range []time.Duration{0, 20 * time.Millisecond, 60 * time.Millisecond, 120 * time.Millisecond} {
		s := newSession(t, h, small)
		closed := make(chan error, 1)
		time.AfterFunc(wait, func() { closed <- s.Close() })
		f, err := s.Fork(t.Context(), sandbox.ForkOptions{})
		if err == nil {
			for _, c := range f.Sessions {
				require.NoError(t, c.Close())
			}
		} else {
			require.True(t, errors.Is(err, sandbox.ErrClosed) || s.Info().State == sandbox.StateClosed, "%v", err)
		}
		require.NoError(t, <-closed)
	}
	require.Empty(t, h.Sessions())
	left, err := filepath.Glob(filepath.Join(dir, "*", "qemu.pid"))
	require.NoError(t, err)
	require.Empty(t, left)
}
