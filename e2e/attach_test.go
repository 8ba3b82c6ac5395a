package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/guest/wire"
	"github.com/gondolin-go/gondolin/sandbox"
)

func attachShared(t *testing.T) *sandbox.Attached {
	t.Helper()
	s := sharedSession(t)
	a, err := sandbox.Attach(t.Context(), sharedDir, s.ID()[:6], nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	return a
}

func TestAttachedProgramWorksLikeTheOwner(t *testing.T) {
	a := attachShared(t)
	ctx := t.Context()
	var out, errOut bytes.Buffer
	exit, err := a.Run(ctx, sandbox.Command{
		Shell: "cat; echo $WHO >&2; exit 3", Stdin: strings.NewReader("in\x00out"), Stdout: &out, Stderr: &errOut, Env: map[string]string{"WHO": "me"},
	})
	require.NoError(t, err)
	require.Equal(t, 3, exit.Code)
	require.Equal(t, "in\x00out", out.String())
	require.Equal(t, "me\n", errOut.String())

	big := make([]byte, 8<<20)
	_, _ = rand.Read(big)
	_, err = a.WriteFile(ctx, "attached", bytes.NewReader(big), sandbox.WriteOptions{})
	require.NoError(t, err)
	f, info, err := a.Open(ctx, "/root/attached", 0, 0)
	require.NoError(t, err, "relative paths begin where the session's do")
	defer f.Close()
	back, err := io.ReadAll(f)
	require.NoError(t, err)
	require.True(t, bytes.Equal(big, back))
	require.EqualValues(t, len(big), info.Size)

	_, err = a.Stat(ctx, "/no/such")
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = a.Run(ctx, sandbox.Command{Argv: []string{"no-such-command"}})
	require.ErrorIs(t, err, fs.ErrNotExist)
	exit, err = a.Run(ctx, sandbox.Command{Shell: "sleep 100", Timeout: 300 * time.Millisecond})
	require.NoError(t, err)
	require.True(t, exit.TimedOut)
	_, err = a.Run(ctx, sandbox.Command{})
	require.ErrorIs(t, err, sandbox.ErrInvalid)
}

func TestCommandsOfAProgramThatGoesEndAndThoseThatWereLeftGoOn(t *testing.T) {
	a := attachShared(t)
	ctx := t.Context()
	_, err := a.Start(ctx, sandbox.Command{Argv: []string{"sleep", "7001"}})
	require.NoError(t, err)
	job, err := a.StartJob(ctx, sandbox.Command{Argv: []string{"sleep", "7002"}})
	require.NoError(t, err)
	var out syncBuffer
	p, err := a.Start(ctx, sandbox.Command{Shell: "echo begin; read line; echo got $line; exit 4", KeepStdin: true, Retain: true, Stdout: &out})
	require.NoError(t, err)
	eventually(t, 20*time.Second, "output", func() bool { return strings.Contains(out.String(), "begin") })
	require.NoError(t, p.Detach(ctx))
	_, err = p.Wait()
	require.ErrorIs(t, err, sandbox.ErrDetached)
	require.NoError(t, a.Close())
	_, err = a.Run(ctx, sandbox.Command{Argv: []string{"true"}})
	require.ErrorIs(t, err, sandbox.ErrClosed)

	s := sharedSession(t)
	eventually(t, 20*time.Second, "the end of the command that was not left", func() bool {
		_, exit := try(t, s, sandbox.Command{Argv: []string{"pgrep", "-f", "^sleep 7001"}})
		return exit.Code == 1
	})
	_, exit := try(t, s, sandbox.Command{Argv: []string{"pgrep", "-f", "^sleep 7002"}})
	require.Zero(t, exit.Code, "a job belongs to the session")
	require.NoError(t, s.Signal(ctx, job.ID, "KILL"))

	b := attachShared(t)
	var rest syncBuffer
	again, err := b.Rejoin(ctx, p.ID(), sandbox.Command{Stdin: strings.NewReader("more\n"), Stdout: &rest})
	require.NoError(t, err)
	end, err := again.Wait()
	require.NoError(t, err)
	require.Equal(t, 4, end.Code)
	require.Equal(t, "begin\ngot more\n", rest.String())
}

// Who takes up a process brings a terminal along, whether the process reads or not.
// A program that has read the end of its command may be gone before the holder has written it.
func TestACommandOfAProgramThatGoesAtOnceIsOnRecordAsItEnded(t *testing.T) {
	const commands = 40
	ends := make(chan error, commands)
	dir := runtimeDir(t)
	s := newSession(t, newHost(t, sandbox.HostOptions{RuntimeDir: dir, Register: "e2e"}), sandbox.Options{Visited: func(sandbox.Command) (func(sandbox.Exit, error), error) {
		return func(_ sandbox.Exit, err error) { ends <- err }, nil
	}})
	for range commands {
		a, err := sandbox.Attach(t.Context(), dir, s.ID(), nil)
		require.NoError(t, err)
		_, err = a.Run(t.Context(), sandbox.Command{Argv: []string{"true"}})
		require.NoError(t, err)
		require.NoError(t, a.Close())
	}
	for range commands {
		select {
		case err := <-ends:
			require.NoError(t, err)
		case <-time.After(10 * time.Second):
			t.Fatal("the end of a command was not told")
		}
	}
}

func TestAProcessWithoutInputIsTakenUpUnharmed(t *testing.T) {
	s := sharedSession(t)
	job, err := s.StartJob(t.Context(), sandbox.Command{Shell: "echo begin; sleep 1; echo end"})
	require.NoError(t, err)
	a, err := sandbox.Attach(t.Context(), sharedDir, s.ID(), nil)
	require.NoError(t, err)
	defer a.Close()
	var out bytes.Buffer
	p, err := a.Rejoin(t.Context(), job.ID, sandbox.Command{Stdin: strings.NewReader("typed\n"), Stdout: &out})
	require.NoError(t, err)
	exit, err := p.Wait()
	require.NoError(t, err)
	require.Zero(t, exit.Code, exit.Signal)
	require.Equal(t, "begin\nend\n", out.String())
}

func TestManyAttachedProgramsAtOnceDoNotMix(t *testing.T) {
	s := sharedSession(t)
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			a, err := sandbox.Attach(t.Context(), sharedDir, s.ID(), nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer a.Close()
			for j := range 5 {
				var out bytes.Buffer
				want := fmt.Sprintf("%d-%d\n", i, j)
				if _, err := a.Run(t.Context(), sandbox.Command{Argv: []string{"echo", strings.TrimSpace(want)}, Stdout: &out}); err != nil || out.String() != want {
					t.Errorf("got %q, %v", out.String(), err)
				}
			}
		})
	}
	wg.Wait()
}

func TestAMisspeltSessionIsAnsweredWithTheNamesThatThereAre(t *testing.T) {
	dir := runtimeDir(t)
	h := newHost(t, sandbox.HostOptions{RuntimeDir: dir, Register: "e2e"})
	o := small
	o.Label = "work"
	s := newSession(t, h, o)
	_, err := sandbox.Attach(t.Context(), dir, "wrok", nil)
	require.ErrorIs(t, err, sandbox.ErrUnknown)
	require.ErrorContains(t, err, `open are `+s.ID()+` ("work")`)
}

func TestAttachingHasBounds(t *testing.T) {
	s := sharedSession(t)
	var all []*sandbox.Attached
	var refused error
	for range 40 {
		a, err := sandbox.Attach(t.Context(), sharedDir, s.ID(), nil)
		if err != nil {
			refused = err
			break
		}
		all = append(all, a)
	}
	require.ErrorContains(t, refused, "programs are attached to it already")
	for range 3 { // who says nothing does not keep others from their answer
		mute, err := net.Dial("unix", filepath.Join(sharedDir, s.ID(), "attach"))
		require.NoError(t, err)
		defer mute.Close()
	}
	asked := time.Now()
	_, refused = sandbox.Attach(t.Context(), sharedDir, s.ID(), nil)
	require.ErrorContains(t, refused, "programs are attached to it already")
	require.Less(t, time.Since(asked), 4*time.Second)
	for _, a := range all {
		require.NoError(t, a.Close())
	}
	eventually(t, 10*time.Second, "room again", func() bool {
		a, err := sandbox.Attach(t.Context(), sharedDir, s.ID(), nil)
		if err == nil {
			a.Close()
		}
		return err == nil
	})
}

// What concerns the host's side of a session is refused, and nonsense ends only its connection.
func TestAttachedProgramCannotTouchTheHostsSide(t *testing.T) {
	s := sharedSession(t)
	dial := func() net.Conn {
		conn, err := net.Dial("unix", filepath.Join(sharedDir, s.ID(), "attach"))
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		require.NoError(t, conn.SetDeadline(time.Now().Add(30*time.Second)))
		return conn
	}
	conn := dial()
	var hi wire.Announce
	require.NoError(t, wire.ReadHandshake(conn, &hi))
	require.Equal(t, s.ID(), hi.Session)
	require.NoError(t, wire.WriteHandshake(conn, wire.Visit{Version: wire.Version}))
	var ready wire.Ready
	require.NoError(t, wire.ReadHandshake(conn, &ready))
	require.Empty(t, ready.Err)
	mux, err := wire.Client(conn)
	require.NoError(t, err)
	defer mux.Close()
	for _, op := range []wire.Op{wire.OpTrust, wire.OpMount, wire.OpFreshen, "nonsense"} {
		st, err := mux.OpenStream()
		require.NoError(t, err)
		require.NoError(t, wire.SendRequest(st, op, nil))
		var werr *wire.Error
		require.True(t, errors.As(wire.ReadReply(st, nil), &werr), op)
		require.Contains(t, werr.Msg, "not for programs that attach")
		require.NoError(t, st.Close())
	}

	other := dial()
	require.NoError(t, wire.ReadHandshake(other, &hi))
	require.NoError(t, wire.WriteHandshake(other, wire.Visit{Version: 99}))
	require.NoError(t, wire.ReadHandshake(other, &ready))
	require.Contains(t, ready.Err, "protocol version")

	_, err = io.Copy(dial(), io.LimitReader(rand.Reader, 1<<20))
	_ = err // it may be cut off
	require.Equal(t, "still here", sh(t, s, "echo still here"))
}

func TestEndOfTheSessionIsToldToAttachedPrograms(t *testing.T) {
	dir := runtimeDir(t)
	s := newSession(t, newHost(t, sandbox.HostOptions{RuntimeDir: dir, Register: "e2e"}), sandbox.Options{Label: "mine"})
	list, err := sandbox.List(t.Context(), dir, nil)
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, s.ID(), list[0].ID)
	require.Equal(t, "mine", list[0].Label)
	require.Equal(t, os.Getpid(), list[0].PID)

	a, err := sandbox.Attach(t.Context(), dir, "mine", nil)
	require.NoError(t, err)
	defer a.Close()
	p, err := a.Start(t.Context(), sandbox.Command{Argv: []string{"sleep", "1000"}})
	require.NoError(t, err)
	other, err := sandbox.Attach(t.Context(), dir, "mine", nil)
	require.NoError(t, err)
	defer other.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, other.End(ctx, "enough of it"))
	_, err = p.Wait()
	require.ErrorIs(t, err, sandbox.ErrClosed)
	require.ErrorContains(t, err, "enough of it")
	<-s.Done()
	require.Equal(t, "enough of it", s.Info().Reason)
	_, err = sandbox.Attach(t.Context(), dir, "mine", nil)
	require.ErrorIs(t, err, sandbox.ErrUnknown)
	require.ErrorContains(t, err, "none is open")
	require.Empty(t, entries(t, dir))
}
