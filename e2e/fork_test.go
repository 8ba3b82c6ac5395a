package e2e

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

// fork makes n copies of a session.
func fork(t *testing.T, s *sandbox.Session, n int) []*sandbox.Session {
	t.Helper()
	f, err := s.Fork(t.Context(), sandbox.ForkOptions{Count: n})
	require.NoError(t, err)
	t.Logf("the session stood still for %v", f.Pause)
	for _, c := range f.Sessions {
		t.Cleanup(func() { c.Close() })
	}
	return f.Sessions
}

// counter starts a process that counts in memory, and returns what asks it how far it is.
func counter(t *testing.T, s *sandbox.Session) (job string, count func(s *sandbox.Session) int) {
	t.Helper()
	j, err := s.StartJob(t.Context(), sandbox.Command{Shell: `n=0; while :; do n=$((n+1)); echo $n > /dev/shm/count; echo $n; sleep 0.02; done`})
	require.NoError(t, err)
	count = func(s *sandbox.Session) int {
		n, _ := strconv.Atoi(sh(t, s, "cat /dev/shm/count 2>/dev/null || echo 0"))
		return n
	}
	eventually(t, 20*time.Second, "it counts", func() bool { return count(s) > 5 })
	return j.ID, count
}

func TestForkKeepsProcessesJobsMemoryAndDiskOfBoth(t *testing.T) {
	h := templated(t, sandbox.HostOptions{}, small)
	s := newSession(t, h, small)
	require.Equal(t, sandbox.OriginCloned, s.Info().Origin)
	job, count := counter(t, s)
	sh(t, s, "echo on disk > /root/file; echo in memory > /dev/shm/file")
	at := count(s)
	forks := fork(t, s, 2)
	require.Len(t, forks, 2)
	for i, c := range append(forks, s) {
		require.GreaterOrEqual(t, count(c), at, i)
		before := count(c)
		eventually(t, 20*time.Second, "it counts on", func() bool { return count(c) > before+5 })
		require.Equal(t, "on disk\nin memory", sh(t, c, "cat /root/file /dev/shm/file"))
		chunk, err := c.Output(t.Context(), job, 0, 1<<10, 0)
		require.NoError(t, err)
		require.Contains(t, string(chunk.Data), "1\n2\n3\n")
		require.Equal(t, sandbox.JobRunning, chunk.Job.State)
	}
	require.Equal(t, sandbox.OriginForked, forks[0].Info().Origin)
	sh(t, forks[0], "echo changed > /root/file; echo changed > /dev/shm/file")
	require.NoError(t, forks[0].Signal(t.Context(), job, "KILL"))
	for _, c := range []*sandbox.Session{s, forks[1]} {
		require.Equal(t, "on disk\nin memory", sh(t, c, "cat /root/file /dev/shm/file"))
		before := count(c)
		eventually(t, 20*time.Second, "it counts on", func() bool { return count(c) > before })
	}
}
