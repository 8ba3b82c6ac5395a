package e2e

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

// guestFacts are the agent's descriptors and memory (KiB), its cgroups, and the
// machine's processes.
func guestFacts(t *testing.T, s *sandbox.Session) (fds, memory, cgroups, processes int) {
	t.Helper()
	out := sh(t, s, `p=$(pgrep -x sandboxd); ls /proc/$p/fd | wc -l; awk '/VmRSS/{print $2}' /proc/$p/status; ls -d /sys/fs/cgroup/cmd/*/ | wc -l; ls -d /proc/[0-9]* | wc -l`)
	var n [4]int
	for i, f := range strings.Fields(out) {
		v, err := strconv.Atoi(f)
		require.NoError(t, err)
		n[i] = v
	}
	return n[0], n[1], n[2], n[3]
}

// Ten thousand, in a whole run.
func TestManyCommandsLeakNothing(t *testing.T) {
	s := newSession(t, newHost(t, sandbox.HostOptions{}), sandbox.Options{})
	burst := func(n int) {
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for i := range n / 4 {
					cmd := sandbox.Command{Argv: []string{"/bin/true"}}
					switch (i + w) % 50 {
					case 1:
						cmd.Argv, cmd.Stdin = []string{"cat"}, strings.NewReader("x")
					case 2:
						cmd.Retain = true
					case 3:
						cmd.Argv, cmd.Timeout, cmd.Grace = []string{"sleep", "9"}, time.Millisecond, time.Millisecond
					case 4:
						cmd.TTY = &sandbox.TTYSize{Rows: 24, Cols: 80}
					}
					if _, err := s.Run(t.Context(), cmd); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	burst(500)
	fds, memory, cgroups, processes := guestFacts(t, s)
	goroutines, files := runtime.NumGoroutine(), len(entries(t, "/proc/self/fd"))
	before := rss(t, os.Getpid())
	burst(amount(2000, 9500))
	fds2, memory2, cgroups2, processes2 := guestFacts(t, s)
	require.LessOrEqual(t, fds2, fds+4, "descriptors of the agent")
	require.LessOrEqual(t, memory2, memory+16<<10, "KiB of the agent")
	require.LessOrEqual(t, cgroups2, max(cgroups, 20), "cgroups")
	require.LessOrEqual(t, processes2, processes+3, "processes in the guest")
	require.LessOrEqual(t, runtime.NumGoroutine(), goroutines+4, "goroutines of the host")
	require.LessOrEqual(t, len(entries(t, "/proc/self/fd")), files+4, "descriptors of the host")
	require.LessOrEqual(t, rss(t, os.Getpid()), before+32, "MiB of the host")
	jobs, err := s.Jobs(t.Context())
	require.NoError(t, err)
	require.LessOrEqual(t, len(jobs), 66, "the newest 64 retained ones are listed")
}
