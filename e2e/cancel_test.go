package e2e

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

// brood starts children that leave the process group, ignore TERM and run for ever.
const brood = `trap '' TERM; setsid bash -c 'trap "" TERM; exec -a brood-a sleep 1000' & bash -c 'exec -a brood-b sleep 1000' & echo up; exec -a brood-c sleep 1000`

func broodSize(t *testing.T, s *sandbox.Session) string {
	return sh(t, s, "pgrep -cf '^brood-' || true")
}

func TestCancelEndsEverythingThatTheCommandStarted(t *testing.T) {
	s := sharedSession(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out syncBuffer
	p, err := s.Start(ctx, sandbox.Command{Argv: []string{"bash", "-c", brood}, Stdout: &out, Grace: 200 * time.Millisecond})
	require.NoError(t, err)
	eventually(t, 20*time.Second, "the brood is up", func() bool { return broodSize(t, s) == "3" })
	cancel()
	_, err = p.Wait()
	require.ErrorIs(t, err, context.Canceled, "a cancelled call is answered")
	eventually(t, 10*time.Second, "nothing is left", func() bool { return broodSize(t, s) == "0" })
}

func TestTimeoutEndsEverythingAndKeepsTheOutputSoFar(t *testing.T) {
	s := sharedSession(t)
	var out bytes.Buffer
	exit, err := s.Run(t.Context(), sandbox.Command{
		Argv: []string{"bash", "-c", brood}, Stdout: &out, Timeout: time.Second, Grace: 200 * time.Millisecond,
	})
	require.NoError(t, err)
	require.True(t, exit.TimedOut)
	require.Equal(t, "SIGKILL", exit.Signal)
	require.Equal(t, "up\n", out.String())
	eventually(t, 10*time.Second, "nothing is left", func() bool { return broodSize(t, s) == "0" })
}

func TestPoliteProcessMayCleanUpWithinItsGrace(t *testing.T) {
	s := sharedSession(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out syncBuffer
	p, err := s.Start(ctx, sandbox.Command{
		Shell: "trap 'echo cleaned; exit 3' TERM; echo up; while :; do sleep 0.05; done", Stdout: &out, Grace: 20 * time.Second,
	})
	require.NoError(t, err)
	eventually(t, 20*time.Second, "it is up", func() bool { return out.String() == "up\n" })
	cancel()
	exit, err := p.Wait()
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 3, exit.Code)
	require.Equal(t, "up\ncleaned\n", out.String())
}

func TestCancelledBeforeItsStartNeverRuns(t *testing.T) {
	s := sharedSession(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Run(ctx, sandbox.Command{Shell: "touch /tmp/never"})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, "no", sh(t, s, "test -e /tmp/never && echo yes || echo no"))
}

func TestFailingReaderEndsTheProcess(t *testing.T) {
	s := sharedSession(t)
	_, err := s.Run(t.Context(), sandbox.Command{Shell: "yes", Stdout: failingWriter{}})
	require.ErrorContains(t, err, "writing the process's output")
	eventually(t, 10*time.Second, "nothing is left", func() bool { return sh(t, s, "pgrep -cx yes || true") == "0" })
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, context.DeadlineExceeded }

func TestInterruptReachesCommands(t *testing.T) {
	s := sharedSession(t)
	require.Equal(t, "0000000000000000", sh(t, s, "awk '/SigIgn/{print $2}' /proc/self/status"), "no signal is ignored from above")
	p, err := s.Start(t.Context(), sandbox.Command{Argv: []string{"sleep", "1000"}})
	require.NoError(t, err)
	require.NoError(t, p.Signal(t.Context(), "INT"))
	exit, err := p.Wait()
	require.NoError(t, err)
	require.Equal(t, "SIGINT", exit.Signal)
}
