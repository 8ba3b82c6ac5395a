package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

// pause is longer than any time after which the stream multiplexer closes a
// stream by itself.
const pause = "7"

func TestProcessThatReadsItsInputLateGetsAllOfIt(t *testing.T) {
	t.Parallel()
	out, exit := try(t, sharedSession(t), sandbox.Command{
		Shell: "sleep " + pause + "; wc -c", Stdin: strings.NewReader(strings.Repeat("x", 300_000)),
	})
	require.Zero(t, exit.Code)
	require.Equal(t, "300000\n", out)
}

func TestProcessThatClosesItsInputEarlyGoesOn(t *testing.T) {
	t.Parallel()
	out, exit := try(t, sharedSession(t), sandbox.Command{
		Shell: "head -c 3; exec 0<&-; sleep " + pause + "; echo done", Stdin: strings.NewReader(strings.Repeat("x", 8<<20)),
	})
	require.Zero(t, exit.Code, exit.Signal)
	require.Equal(t, "xxxdone\n", out)
}

func TestInputIsDeliveredAsItComes(t *testing.T) {
	t.Parallel()
	r, w := io.Pipe()
	lines := make(chan string, 2)
	p, err := sharedSession(t).Start(t.Context(), sandbox.Command{Argv: []string{"cat"}, Stdin: r, Stdout: lineWriter(lines)})
	require.NoError(t, err)
	for _, line := range []string{"one\n", "two\n"} {
		_, err := w.Write([]byte(line))
		require.NoError(t, err)
		require.Equal(t, line, <-lines)
	}
	require.NoError(t, w.Close())
	exit, err := p.Wait()
	require.NoError(t, err)
	require.Zero(t, exit.Code)
}

type lineWriter chan string

func (l lineWriter) Write(p []byte) (int, error) { l <- string(p); return len(p), nil }

func TestReaderThatPausesStillGetsTheEndOfTheFile(t *testing.T) {
	t.Parallel()
	s := sharedSession(t)
	sh(t, s, "head -c 400000 /dev/zero > /tmp/pausing")
	f, _, err := s.Open(t.Context(), "/tmp/pausing", 0, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = io.ReadFull(f, make([]byte, 10))
	require.NoError(t, err)
	time.Sleep(7 * time.Second) // the promise is about time
	rest, err := io.ReadAll(f)
	require.NoError(t, err)
	require.Len(t, rest, 399_990)
}

// A background child that floods must not push out what the command itself wrote.
func TestFloodOfABackgroundChildLosesNothingOfTheCommand(t *testing.T) {
	s := newSession(t, newHost(t, sandbox.HostOptions{}), sandbox.Options{Limits: sandbox.Limits{MemoryMiB: 512}})
	out := &slowWriter{}
	exit, err := s.Run(t.Context(), sandbox.Command{Shell: "seq 20000; (yes &)", Stdout: out})
	require.NoError(t, err)
	require.Zero(t, exit.Code)
	var want bytes.Buffer
	_, err = s.Run(t.Context(), sandbox.Command{Shell: "seq 20000", Stdout: &want})
	require.NoError(t, err)
	require.True(t, bytes.HasPrefix(out.Bytes(), want.Bytes()), "got %d bytes", out.Len())
	require.Less(t, out.Len(), 4<<20, "and the call ended with the command")
}

// slowWriter holds the first write back until the command has long ended.
type slowWriter struct {
	bytes.Buffer
	waited bool
}

func (w *slowWriter) Write(p []byte) (int, error) {
	if !w.waited {
		w.waited = true
		time.Sleep(time.Second)
	}
	return w.Buffer.Write(p)
}

// What a job started is the job's, also after its first process has ended.
func TestSignalsReachWhatAnEndedJobLeftBehind(t *testing.T) {
	s := sharedSession(t)
	for _, signal := range []string{"KILL", "TERM"} {
		job, err := s.StartJob(t.Context(), sandbox.Command{Shell: "setsid sleep 7654 & exit 0"})
		require.NoError(t, err)
		eventually(t, 10*time.Second, "the job's first process ends", func() bool {
			j, err := s.Job(t.Context(), job.ID)
			require.NoError(t, err)
			return j.State == sandbox.JobExited
		})
		require.Equal(t, "1", sh(t, s, "pgrep -cf '^sleep 7654' || true"))
		require.NoError(t, s.Signal(t.Context(), job.ID, signal))
		eventually(t, 10*time.Second, signal+" ends its child", func() bool {
			return sh(t, s, "pgrep -cf '^sleep 7654' || true") == "0"
		})
	}
}

// Half a frame, or a guest that reads nothing, must not hold a caller beyond his context.
func TestCallsToAGuestThatStoppedHalfwayEndWithTheirContext(t *testing.T) {
	for _, mode := range []string{"half", "deaf"} {
		t.Run(mode, func(t *testing.T) {
			s := newSession(t, newHost(t, sandbox.HostOptions{}), sandbox.Options{Limits: sandbox.Limits{MemoryMiB: 512}})
			_, err := s.Start(t.Context(), sandbox.Command{Argv: []string{"python3", "-c", hijack, mode}})
			require.NoError(t, err)
			began := time.Now()
			for time.Since(began) < 12*time.Second {
				call, cancel := context.WithTimeout(t.Context(), time.Second)
				asked := time.Now()
				_, err = s.Stat(call, "/")
				if err != nil {
					require.Less(t, time.Since(asked), 3*time.Second, err)
				}
				asked = time.Now()
				_, err = s.WriteFile(call, "/tmp/x", strings.NewReader(strings.Repeat("x", 4<<20)), sandbox.WriteOptions{})
				if err != nil {
					require.Less(t, time.Since(asked), 3*time.Second, err)
				}
				cancel()
			}
			require.Error(t, err, "the guest did not stop answering")
			asked := time.Now()
			require.NoError(t, s.Close())
			require.Less(t, time.Since(asked), 5*time.Second)
		})
	}
}

// ^Z and fg, or a host that is short of breath for a while. (35 s in a whole run: longer than anything waits for a write.)
func TestCommandGoesOnAfterItsHostStoodStill(t *testing.T) {
	t.Parallel()
	still := time.Duration(amount(3, 35)) * time.Second
	count := amount(400, 4000)
	script := fmt.Sprintf("import time\nfor i in range(%d): print(i); time.sleep(0.01)\nprint('over')", count)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(program(t), "gondolin-mcp"), "run", "--", "python3", "-uc", script)
	cmd.Env = append(os.Environ(), "GONDOLIN_PATHS_RUNTIME="+runtimeDir(t))
	cmd.Stderr = testWriter{t}
	var out syncBuffer
	cmd.Stdout = &out
	require.NoError(t, cmd.Start())
	eventually(t, time.Minute, "output", func() bool { return strings.Contains(out.String(), "10\n") })
	require.NoError(t, cmd.Process.Signal(syscall.SIGSTOP))
	time.Sleep(still)
	require.NoError(t, cmd.Process.Signal(syscall.SIGCONT))
	require.NoError(t, cmd.Wait(), "%d bytes came", len(out.String()))
	lines := strings.Fields(out.String())
	require.Len(t, lines, count+1)
	require.Equal(t, "over", lines[count])
}
