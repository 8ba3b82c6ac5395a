package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

// resident is a process's memory of its own, in KiB.
func resident(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "RssAnon:" {
			n, err := strconv.Atoi(f[1])
			require.NoError(t, err)
			return n
		}
	}
	return 0
}

func TestSoakOfSessionsLeaksNothing(t *testing.T) {
	runtime := runtimeDir(t)
	h := templated(t, sandbox.HostOptions{RuntimeDir: runtime}, small)
	const at = 8
	var failed atomic.Int32
	cycles := func(n int) {
		var wg sync.WaitGroup
		gate := make(chan struct{}, at)
		for range n {
			gate <- struct{}{}
			wg.Go(func() {
				defer func() { <-gate }()
				o := small
				o.Image = bootable(defaultImage(t))
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				s, err := h.Create(ctx, o)
				if err != nil {
					t.Error(err)
					failed.Add(1)
					return
				}
				exit, err := s.Run(ctx, sandbox.Command{Shell: "echo data > /root/file && sync"})
				if err != nil || exit.Code != 0 {
					t.Error(exit, err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	cycles(at) // what is made once
	descriptors, memory := descriptorsOf(t), resident(t, os.Getpid())
	machines := children(t, os.Getpid(), "qemu-system") // that other tests share
	scratch := len(entries(t, filepath.Join(cacheDir(), "scratch")))
	n := amount(24, 500)
	began := time.Now()
	cycles(n)
	t.Logf("%d cycles in %v; memory %d -> %d KiB, descriptors %d -> %d", n, time.Since(began).Round(time.Second),
		memory, resident(t, os.Getpid()), descriptors, descriptorsOf(t))
	require.Zero(t, failed.Load())
	require.Empty(t, h.Sessions())
	require.Empty(t, entries(t, runtime))
	require.Len(t, entries(t, filepath.Join(cacheDir(), "scratch")), scratch)
	require.ElementsMatch(t, machines, children(t, os.Getpid(), "qemu-system"))
	eventually(t, 10*time.Second, "no descriptor is left", func() bool { return descriptorsOf(t) <= descriptors })
	require.LessOrEqual(t, resident(t, os.Getpid()), memory+64<<10, "KiB of the host process")
}

// As many sessions at once, each with a command every second.
func TestManySessionsEachRunACommandEverySecond(t *testing.T) {
	n := amount(4, 30)
	h := templated(t, sandbox.HostOptions{MaxSessions: n}, small)
	o := small
	o.Image = bootable(defaultImage(t))
	var sessions []*sandbox.Session
	for range n {
		sessions = append(sessions, newSession(t, h, o))
	}
	const rounds = 10
	var wg sync.WaitGroup
	var slowest atomic.Int64
	for _, s := range sessions {
		wg.Go(func() {
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for range rounds {
				began := time.Now()
				exit, err := s.Run(t.Context(), sandbox.Command{Argv: []string{"/bin/true"}})
				if err != nil || exit.Code != 0 {
					t.Error(exit, err)
					return
				}
				for took := int64(time.Since(began)); ; {
					old := slowest.Load()
					if took <= old || slowest.CompareAndSwap(old, took) {
						break
					}
				}
				<-tick.C
			}
		})
	}
	wg.Wait()
	t.Logf("%d sessions, slowest of %d commands each: %v", n, rounds, time.Duration(slowest.Load()))
}
