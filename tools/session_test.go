package tools

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

func TestTheDefaultSessionIsMadeOnceAtTheFirstCall(t *testing.T) {
	boxes := newFakeBoxes()
	making := make(chan struct{})
	boxes.create = func(context.Context, SessionOptions) error { <-making; return nil }
	c := dial(t, Options{Sandboxes: boxes})
	c.send(`{"jsonrpc":"2.0","id":"t","method":"tools/list"}`)
	c.answer(`"t"`)
	assert.Empty(t, boxes.List(), "listing tools makes no machine")
	for i := range 10 {
		c.begin(i, "exec", `{"command":"echo hi"}`)
	}
	close(making)
	for i := range 10 {
		assert.Equal(t, "vm-1", decodeAs[ExecResult](t, c.end(i)).SessionID)
	}
}

func TestAFailedCreationIsToldInFullAndTriedAnew(t *testing.T) {
	boxes := newFakeBoxes()
	var once sync.Once
	boxes.create = func(context.Context, SessionOptions) (err error) {
		once.Do(func() { err = errors.New("QEMU is missing: apt-get install qemu-system-x86") })
		return err
	}
	c := dial(t, Options{Sandboxes: boxes})
	r := c.call("exec", `{"command":"echo hi"}`)
	assert.True(t, r.IsError)
	assert.Contains(t, r.text(), "apt-get install qemu-system-x86")
	assert.False(t, c.call("exec", `{"command":"echo hi"}`).IsError)
}

func TestACreationIsNotWastedWhenItsCallIsCancelled(t *testing.T) {
	boxes := newFakeBoxes()
	began, making := make(chan struct{}, 9), make(chan struct{})
	boxes.create = func(ctx context.Context, _ SessionOptions) error {
		began <- struct{}{}
		select {
		case <-making:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c := dial(t, Options{Sandboxes: boxes})
	c.begin(1, "exec", `{"command":"echo hi"}`)
	wait(t, began, "the creation")
	c.send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`)
	assert.Contains(t, c.end(1).text(), "cancelled")
	close(making)
	assert.Equal(t, "vm-1", decodeAs[ExecResult](t, c.call("exec", `{"command":"echo hi"}`)).SessionID)
	assert.Empty(t, began, "made once")
}

func TestAPanicInTheCreationIsAnErrorToo(t *testing.T) {
	boxes := newFakeBoxes()
	boxes.create = func(context.Context, SessionOptions) error { panic("boom") }
	c := dial(t, Options{Sandboxes: boxes})
	assert.Contains(t, c.call("exec", `{"command":"echo hi"}`).text(), "could not be started")
}

func TestTheEndOfTheDefaultSessionIsToldOnceAndANewOneIsThere(t *testing.T) {
	c := dial(t, Options{})
	c.call("write_file", `{"path":"/f","content":"x"}`)
	c.boxes.session("vm-1").closeFor("idle for 30 minutes")
	r := c.call("exec", `{"command":"echo hi"}`)
	assert.False(t, r.IsError)
	const note = "The previous session vm-1 ended: idle for 30 minutes. Its files and processes are gone; this is a new one (vm-2)."
	assert.True(t, strings.HasPrefix(r.text(), "["+note+"]\n"), r.text())
	got := decodeAs[ExecResult](t, r)
	assert.Equal(t, []string{note}, got.Notes)
	assert.Equal(t, "vm-2", got.SessionID)
	assert.NotContains(t, c.call("exec", `{"command":"echo hi"}`).text(), "previous")
}

func TestASessionThatEndsDuringACallSaysWhy(t *testing.T) {
	boxes := newFakeBoxes()
	c := dial(t, Options{Sandboxes: boxes})
	c.call("list_files", `{}`)
	sess := boxes.session("vm-1")
	sess.run = func(context.Context, sandbox.Command) (sandbox.Exit, error) {
		sess.closeFor("QEMU exited with status 1")
		return sandbox.Exit{}, sandbox.ErrClosed
	}
	r := c.call("exec", `{"command":"x"}`)
	assert.True(t, r.IsError)
	assert.Contains(t, r.text(), "QEMU exited with status 1")
	assert.Contains(t, r.text(), "files and processes are gone")
}

func TestTheLastLinesOfADeadMachineStayLines(t *testing.T) {
	const reason = "the machine powered off\nlast lines of the console:\n[1.0] Out of memory\r\n[1.1]\tsandboxd was ended by killed"
	const shown = "the machine powered off\nlast lines of the console:\n[1.0] Out of memory\n[1.1] sandboxd was ended by killed\n"
	boxes := newFakeBoxes()
	c := dial(t, Options{Sandboxes: boxes})
	c.call("list_files", `{}`)
	sess := boxes.session("vm-1")
	sess.run = func(context.Context, sandbox.Command) (sandbox.Exit, error) {
		sess.closeFor(reason)
		return sandbox.Exit{}, sandbox.ErrClosed
	}
	assert.Contains(t, c.call("exec", `{"command":"x"}`).text(), "ended meanwhile: "+shown+"Its files")
	assert.Contains(t, c.call("exec", `{"command":"x","session":"vm-1"}`).text(), "has ended: "+shown+"Its files")
	r := c.call("exec", `{"command":"echo"}`)
	assert.Contains(t, r.text(), "[The previous session vm-1 ended: "+shown+"Its files")
	assert.Contains(t, decodeAs[ExecResult](t, r).Notes[0], shown)

	// A flood of them keeps the reason itself and the end.
	long := reasonOf(sandbox.Info{Reason: "QEMU ended\n" + strings.Repeat("noise\n", 10000) + "panic: the cause"}, 600)
	assert.Less(t, len(long), 700)
	assert.True(t, strings.HasPrefix(long, "QEMU ended\n…"), long)
	assert.True(t, strings.HasSuffix(long, "\npanic: the cause"), long)
}

func TestSessionsAreCreatedListedResetAndClosed(t *testing.T) {
	c := dial(t, Options{Limits: sandbox.Limits{CPUs: 4}})
	r := c.call("session", `{"action":"create","label":"second","cpus":2,"memory_mib":512,"idle_seconds":60}`)
	made := decodeAs[SessionResult](t, r)
	require.Equal(t, "vm-1", made.SessionID)
	assert.Equal(t, 2, c.boxes.made[0].Limits.CPUs)
	assert.Contains(t, c.call("session", `{"action":"create","cpus":5}`).text(), "from 1 to 4")

	c.call("write_file", `{"path":"/f","content":"x"}`) // makes the default, vm-2
	c.call("write_file", `{"path":"/f","content":"other","session":"vm-1"}`)
	assert.Equal(t, "x", string(c.boxes.session("vm-2").files["/f"]))
	assert.Equal(t, "other", string(c.boxes.session("vm-1").files["/f"]))
	list := decodeAs[SessionResult](t, c.call("session", `{"action":"list"}`))
	require.Len(t, list.Sessions, 2)
	assert.False(t, list.Sessions[0].Default)
	assert.True(t, list.Sessions[1].Default)

	r = c.call("exec", `{"command":"x","session":"vm-9"}`)
	assert.True(t, r.IsError)
	assert.Contains(t, r.text(), "Sessions: vm-1, vm-2 (the default)")

	reset := decodeAs[SessionResult](t, c.call("session", `{"action":"reset"}`))
	assert.Equal(t, "vm-3", reset.SessionID)
	r = c.call("read_file", `{"path":"/f"}`)
	assert.True(t, r.IsError, "the new one is empty")
	assert.NotContains(t, r.text(), "previous session", "a reset that was asked for needs no note")
	reset = decodeAs[SessionResult](t, c.call("session", `{"action":"reset","cpus":1}`))
	assert.Equal(t, "vm-4", reset.SessionID)
	assert.Equal(t, "vm-4", decodeAs[ExecResult](t, c.call("exec", `{"command":"echo"}`)).SessionID)

	assert.False(t, c.call("session", `{"action":"close","session":"vm-1"}`).IsError)
	r = c.call("exec", `{"command":"x","session":"vm-1"}`)
	assert.Contains(t, r.text(), "vm-1 has ended: closed by the agent")
	assert.False(t, c.call("session", `{"action":"close"}`).IsError)
	assert.Contains(t, c.call("session", `{"action":"close"}`).text(), "no session to close")
	assert.False(t, c.call("session", `{"action":"reset","session":"vm-1"}`).IsError, "a dead one can be reset")
}

func TestALimitIsAClearAnswer(t *testing.T) {
	boxes := newFakeBoxes()
	boxes.create = func(context.Context, SessionOptions) error {
		return errors.Join(sandbox.ErrLimit, errors.New("8 sessions run, which is the most (max_sessions); close one"))
	}
	c := dial(t, Options{Sandboxes: boxes})
	assert.Contains(t, c.call("session", `{"action":"create"}`).text(), "max_sessions")
	assert.Contains(t, c.call("exec", `{"command":"x"}`).text(), "max_sessions")
}

func TestTheInstructionsSayWhenExactlyAMachineEnds(t *testing.T) {
	for want, limits := range map[string]sandbox.Limits{
		"when it is closed or the client ends.":                                                  {},
		"when it is closed, after 30m without a call, or the client ends.":                       {Idle: 30 * time.Minute},
		"when it is closed, 8h after its start, or the client ends.":                             {Wall: 8 * time.Hour},
		"when it is closed, after 1m30s without a call, 8h after its start, or the client ends.": {Idle: 90 * time.Second, Wall: 8 * time.Hour},
	} {
		assert.Contains(t, instructions(Options{Limits: limits}.withDefaults()), want)
	}
}

func TestForksSnapshotsAndRestoresAreToldWithTheirIds(t *testing.T) {
	c := dial(t, Options{Sandboxes: newFakeBoxes()})
	r := c.call("session", `{"action":"fork"}`)
	assert.True(t, r.IsError)
	assert.Contains(t, r.text(), "no session to fork")
	c.call("exec", `{"command":"echo hi"}`)
	r = c.call("session", `{"action":"fork","count":2}`)
	require.False(t, r.IsError, r.text())
	got := decodeAs[SessionResult](t, r)
	assert.Equal(t, []string{"vm-2", "vm-3"}, got.Forks)
	assert.EqualValues(t, 80, got.PauseMS)
	assert.Len(t, got.Sessions, 3)

	r = c.call("session", `{"action":"snapshot"}`)
	assert.True(t, r.IsError)
	assert.Contains(t, r.text(), "needs `name`")
	r = c.call("session", `{"action":"snapshot","name":"busy"}`)
	assert.True(t, r.IsError)
	assert.Contains(t, r.text(), "process 7 (vi) has /workspace/a open")
	r = c.call("session", `{"action":"snapshot","name":"one","session":"vm-2"}`)
	require.False(t, r.IsError, r.text())
	assert.Equal(t, "one", decodeAs[SessionResult](t, r).Snapshot)
	assert.Contains(t, r.text(), "with its processes as snapshot one")

	assert.Contains(t, c.call("session", `{"action":"restore","name":"none"}`).text(), "no such snapshot")
	r = c.call("session", `{"action":"restore","name":"one"}`)
	require.False(t, r.IsError, r.text())
	assert.Equal(t, "vm-4", decodeAs[SessionResult](t, r).SessionID)
	assert.Contains(t, r.text(), "Restored snapshot one as session vm-4")
}

func TestArgumentsOfAnotherActionAreRefusedAndNothingIsDone(t *testing.T) {
	c := dial(t, Options{Sandboxes: newFakeBoxes()})
	for arguments, want := range map[string]string{
		`{"action":"create","session":"vm-1"}`:       "`session` goes with close, reset, fork, snapshot and not with create: leave it out",
		`{"action":"create","name":"x","count":2}`:   "`count` goes with fork and not with create",
		`{"action":"fork","label":"copy"}`:           "`label` goes with create, reset, restore and not with fork",
		`{"action":"restore","name":"one","cpus":2}`: "`cpus` goes with create, reset and not with restore",
		`{"action":"list","disk_only":true}`:         "`disk_only` goes with snapshot and not with list",
		`{"action":"close","count":"two"}`:           "`count` must be an integer",
	} {
		r := c.call("session", arguments)
		assert.True(t, r.IsError, arguments)
		assert.Contains(t, r.text(), want)
		assert.Contains(t, r.text(), "session was not run")
	}
	// What says nothing is no mistake: some clients fill in every argument.
	r := c.call("session", `{"action":"list","session":"","label":"","count":1,"name":null,"disk_only":false}`)
	require.False(t, r.IsError, r.text())
	assert.Empty(t, decodeAs[SessionResult](t, r).Sessions)
}
