package tools

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

// withRun is a server whose commands do what f says.
func withRun(f func(ctx context.Context, cmd sandbox.Command) (sandbox.Exit, error)) Options {
	boxes := newFakeBoxes()
	boxes.run = f
	return Options{Sandboxes: boxes}
}

func TestExecReturnsOutputAndANonZeroExitAsAnOrdinaryResult(t *testing.T) {
	c := dial(t, withRun(func(_ context.Context, cmd sandbox.Command) (sandbox.Exit, error) {
		assert.Equal(t, []string{"make", "all"}, cmd.Argv)
		assert.Equal(t, "/src", cmd.Dir)
		assert.Equal(t, map[string]string{"CC": "gcc"}, cmd.Env)
		assert.Equal(t, "nobody", cmd.User)
		assert.Equal(t, 2*time.Minute, cmd.Timeout)
		stdin, err := io.ReadAll(cmd.Stdin)
		assert.NoError(t, err)
		_, _ = cmd.Stdout.Write(stdin)
		_, _ = io.WriteString(cmd.Stderr, "oops\n")
		return sandbox.Exit{Code: 2, Duration: 1500 * time.Millisecond}, nil
	}))
	r := c.call("exec", `{"argv":["make","all"],"cwd":"/src","env":{"CC":"gcc"},"user":"nobody","stdin":"in"}`)
	require.False(t, r.IsError)
	got := decodeAs[ExecResult](t, r)
	assert.Equal(t, 2, *got.ExitCode)
	assert.Equal(t, "in", got.Stdout)
	assert.Equal(t, "oops\n", got.Stderr)
	assert.EqualValues(t, 1500, got.DurationMS)
	assert.Empty(t, got.JobID)
	assert.Contains(t, string(r.Structured), `"denials":[]`)
	assert.Equal(t, "in\n[stderr]\noops\n[exit code 2 after 1.5s]", r.text())
	assert.Equal(t, []string{"job-1"}, c.boxes.session("vm-1").released, "what was shown whole is not kept")
}

func TestExecWantsExactlyOneOfCommandAndArgv(t *testing.T) {
	c := dial(t, Options{})
	for _, args := range []string{`{}`, `{"command":"ls","argv":["ls"]}`, `{"argv":[""]}`} {
		r := c.call("exec", args)
		assert.True(t, r.IsError, args)
		assert.Contains(t, r.text(), "nothing was run", args)
	}
}

func TestExecTimeoutIsAnErrorWithTheOutputSoFar(t *testing.T) {
	c := dial(t, withRun(func(_ context.Context, cmd sandbox.Command) (sandbox.Exit, error) {
		assert.Equal(t, 50*time.Millisecond, cmd.Timeout)
		_, _ = io.WriteString(cmd.Stdout, "half")
		return sandbox.Exit{Code: 143, Signal: "SIGTERM", TimedOut: true}, nil
	}))
	r := c.call("exec", `{"command":"sleep 9","timeout_ms":50}`)
	assert.True(t, r.IsError)
	assert.Contains(t, r.text(), "half")
	assert.Contains(t, r.text(), "timed out")
	assert.True(t, decodeAs[ExecResult](t, r).TimedOut)
}

func TestLongOutputKeepsHeadAndTailAndSaysWhereTheRestIs(t *testing.T) {
	c := dial(t, withRun(func(_ context.Context, cmd sandbox.Command) (sandbox.Exit, error) {
		for i := range 20000 {
			fmt.Fprintf(cmd.Stdout, "line %d\n", i)
		}
		return sandbox.Exit{}, nil
	}))
	r := c.call("exec", `{"command":"seq"}`)
	got := decodeAs[ExecResult](t, r)
	require.True(t, got.Truncated)
	assert.True(t, strings.HasPrefix(got.Stdout, "line 0\n"))
	assert.True(t, strings.HasSuffix(got.Stdout, "line 19999\n"))
	require.NotNil(t, got.RestOffset)
	head, _, _ := strings.Cut(got.Stdout, "[... ")
	assert.EqualValues(t, len(head), *got.RestOffset, "the offset is exactly where the head ends")
	assert.Contains(t, r.text(), fmt.Sprintf(`job_output {"job_id": %q, "offset": %d}`, got.JobID, *got.RestOffset))
	assert.Equal(t, "resource_link", r.Content[1].Type)
	assert.Empty(t, c.boxes.session("vm-1").released)

	// The rest is really there, page after page.
	all, offset := head, *got.RestOffset
	for range 100 {
		page := decodeAs[JobOutputResult](t, c.call("job_output", fmt.Sprintf(`{"job_id":%q,"offset":%d}`, got.JobID, offset)))
		all += page.Chunk
		offset = page.NextOffset
		if !page.More {
			break
		}
	}
	assert.True(t, strings.HasSuffix(all, "line 19999\n"))
	assert.EqualValues(t, got.StdoutBytes, len(all))

	c.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":5,"method":"resources/read","params":{"uri":%q}}`, r.Content[1].URI))
	res := c.answer("5")
	assert.Contains(t, string(res.Result), `line 0\nline 1\n`)
	assert.Contains(t, string(res.Result), "continues at "+r.Content[1].URI+"?offset=40000")
	c.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":6,"method":"resources/read","params":{"uri":%q}}`, r.Content[1].URI+"?offset=40000"))
	assert.NotContains(t, string(c.answer("6").Result), `line 0\n`)
}

func TestResultsStayBelow50000CharactersUnderAnyOutput(t *testing.T) {
	floods := map[string]string{
		"plain": "abcdefghi\n", "no lines": "x", "control characters": "\x01\x1b[0m", "astral": "😀",
		"invalid": "\xff\xfe", "quotes": `"\"`, "html": "<b>&", "NUL": "\x00", "half characters": "\xe2\x82",
	}
	var flood string
	c := dial(t, withRun(func(_ context.Context, cmd sandbox.Command) (sandbox.Exit, error) {
		for range 3 {
			_, _ = io.WriteString(cmd.Stdout, strings.Repeat(flood, 200000/len(flood)))
			_, _ = io.WriteString(cmd.Stderr, strings.Repeat(flood, 100000/len(flood)))
		}
		return sandbox.Exit{Note: strings.Repeat("n", 5000)}, nil
	}))
	c.call("list_files", `{}`)
	sess := c.boxes.session("vm-1")
	for name, text := range floods {
		flood = text
		sess.mu.Lock()
		sess.files["/f"] = []byte(strings.Repeat(text, 300000/len(text)))
		sess.entries, sess.matches = nil, nil
		for i := range 3000 {
			sess.entries = append(sess.entries, sandbox.FileInfo{Name: fmt.Sprint(i, strings.Repeat(text, 8)), Type: "file"})
			sess.matches = append(sess.matches, sandbox.GrepMatch{Path: "p", Line: i, Text: strings.Repeat(text, 50)})
		}
		sess.mu.Unlock()
		exec := c.call("exec", `{"command":"flood"}`)
		job := decodeAs[ExecResult](t, exec).JobID
		for what, r := range map[string]toolResult{
			"exec":        exec,
			"job_output":  c.call("job_output", `{"job_id":"`+job+`"}`),
			"read_file":   c.call("read_file", `{"path":"/f"}`),
			"read base64": c.call("read_file", `{"path":"/f","encoding":"base64"}`),
			"list_files":  c.call("list_files", `{"limit":10000}`),
			"glob":        c.call("glob", `{"pattern":"*"}`),
			"grep":        c.call("grep", `{"pattern":"x","limit":10000}`),
			"edit_file":   c.call("edit_file", `{"path":"/f","old_string":"zzz","new_string":"y"}`),
		} {
			size := units(decoded(t, r.Structured))
			for _, block := range r.Content {
				size += units(block.Text)
			}
			assert.Less(t, size, 50000, "%s of %s", what, name)
			if what == "edit_file" {
				continue
			}
			assert.False(t, r.IsError, "%s of %s: %s", what, name, short(r.text(), 300))
			// Runs of bytes that are no characters become one mark, and a NUL makes a file binary.
			if !strings.Contains("invalid half characters NUL", name) {
				assert.Greater(t, size, 5000, "%s of %s uses its room", what, name)
			}
		}
	}
}

// decoded is structured content as a client shows it.
func decoded(t *testing.T, raw json.RawMessage) string {
	if raw == nil {
		return ""
	}
	var v any
	require.NoError(t, json.Unmarshal(raw, &v))
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	require.NoError(t, e.Encode(v))
	return b.String()
}

func TestInvalidUTF8IsReplacedAndSaid(t *testing.T) {
	c := dial(t, withRun(func(_ context.Context, cmd sandbox.Command) (sandbox.Exit, error) {
		_, _ = io.WriteString(cmd.Stdout, "a\xffb")
		return sandbox.Exit{}, nil
	}))
	r := c.call("exec", `{"command":"x"}`)
	got := decodeAs[ExecResult](t, r)
	assert.Equal(t, "a\uFFFDb", got.Stdout)
	assert.True(t, got.InvalidUTF8)
	assert.Contains(t, r.text(), "not UTF-8")
}

func TestFailureToRunIsAnErrorThatTellsWhy(t *testing.T) {
	c := dial(t, withRun(func(_ context.Context, cmd sandbox.Command) (sandbox.Exit, error) {
		return sandbox.Exit{}, fmt.Errorf("%w: user %q does not exist", sandbox.ErrInvalid, cmd.User)
	}))
	r := c.call("exec", `{"command":"x","user":"bob"}`)
	assert.True(t, r.IsError)
	assert.Contains(t, r.text(), `user "bob" does not exist`)
}

func TestTheClassOfAnErrorIsNoPartOfItsWords(t *testing.T) {
	for want, err := range map[string]error{
		"exec failed: start: no user bob\ntoo much":                        errors.Join(fmt.Errorf("start: no user bob: %w", sandbox.ErrInvalid), fmt.Errorf("too much: %w", sandbox.ErrInvalid)),
		"no process 9: it ended. Jobs of session vm-1: job-1 (exited, x).": fmt.Errorf("no process 9: it ended: %w", sandbox.ErrNoJob),
		"exec failed: 8 sessions run":                                      fmt.Errorf("8 sessions run: %w", sandbox.ErrLimit),
		"exec failed: write /sys/x: invalid argument":                      &sandbox.FileError{Op: "write", Path: "/sys/x", Errno: "EINVAL", Msg: "invalid argument"},
	} {
		t.Run(want, func(t *testing.T) {
			c := dial(t, withRun(func(context.Context, sandbox.Command) (sandbox.Exit, error) { return sandbox.Exit{}, err }))
			assert.Equal(t, want, c.call("exec", `{"command":"x"}`).text())
		})
	}
}

func TestACommandThatDoesNotStartSaysWhatToGiveInstead(t *testing.T) {
	var file *sandbox.FileError
	c := dial(t, withRun(func(context.Context, sandbox.Command) (sandbox.Exit, error) { return sandbox.Exit{}, file }))
	c.call("list_files", `{}`)
	sess := c.boxes.session("vm-1")
	home := &sandbox.FileError{Op: "starting", Path: "/nonexistent", Errno: "ENOENT", Msg: "working directory: no such file or directory"}
	program := &sandbox.FileError{Op: "starting", Path: "ls -la", Errno: "ENOENT", Msg: "command not found in PATH (/bin)"}
	for _, tt := range []struct {
		err        *sandbox.FileError
		args, want string
	}{
		{home, `{"command":"id","user":"nobody"}`, "working directory: no such file or directory. That is the home of the user or the session's directory; give a cwd that exists"},
		{home, `{"command":"id","cwd":"/nonexistent"}`, "cwd is a path in the machine; list_files"},
		{home, `{"command":"id","user":"nobody","background":true}`, "give a cwd that exists"},
		{program, `{"argv":["ls -la"]}`, "give a whole command line as `command`"},
		{program, `{"command":"ls"}`, "exec failed: starting ls -la: command not found"},
	} {
		file, sess.startErr = tt.err, tt.err
		r := c.call("exec", tt.args)
		assert.True(t, r.IsError, tt.args)
		assert.Contains(t, r.text(), tt.want, tt.args)
	}
}

func TestABackgroundCommandKeepsTheTimeoutAndTheInputThatItWasGiven(t *testing.T) {
	c := dial(t, Options{})
	r := c.call("exec", `{"command":"server","background":true,"timeout_ms":1500,"stdin":"hello\n"}`)
	require.False(t, r.IsError, r.text())
	assert.Contains(t, r.text(), "It is ended after 1.5s.")
	sess := c.boxes.session("vm-1")
	assert.Equal(t, 1500*time.Millisecond, sess.jobs["job-1"].cmd.Timeout)
	assert.Equal(t, "hello\n", string(sess.jobs["job-1"].in))
	assert.True(t, sess.jobs["job-1"].eof)
	sess.update("job-1", func(j *fakeJob) { j.exit = &sandbox.Exit{Code: 143, Signal: "SIGTERM", TimedOut: true} })
	r = c.call("job_output", `{"job_id":"job-1"}`)
	assert.Contains(t, r.text(), "timed out and was ended")
	assert.True(t, decodeAs[JobOutputResult](t, r).TimedOut)

	assert.NotContains(t, c.call("exec", `{"command":"server","background":true,"timeout_ms":null}`).text(), "ended after")
	assert.Zero(t, sess.jobs["job-2"].cmd.Timeout)
}

func TestAJobRunsInTheBackgroundAndIsFollowedFedAndStopped(t *testing.T) {
	c := dial(t, Options{})
	r := c.call("exec", `{"command":"server","background":true}`)
	got := decodeAs[ExecResult](t, r)
	assert.Equal(t, "running", got.State)
	assert.Nil(t, got.ExitCode)
	require.Equal(t, "job-1", got.JobID)
	sess := c.boxes.session("vm-1")
	assert.True(t, sess.jobs["job-1"].cmd.KeepStdin)
	assert.Zero(t, sess.jobs["job-1"].cmd.Timeout)

	// A waiting read is answered when something comes, and holds nothing up.
	c.begin(1, "job_output", `{"job_id":"job-1","wait_ms":60000}`)
	c.call("job_input", `{"job_id":"job-1","data":"hello\n","eof":true}`)
	sess.update("job-1", func(j *fakeJob) { j.out = append(j.out, "caf\xc3"...) })
	out := decodeAs[JobOutputResult](t, c.end(1))
	assert.Equal(t, "caf", out.Chunk, "half a character waits for its other half")
	assert.EqualValues(t, 3, out.NextOffset)
	sess.update("job-1", func(j *fakeJob) { j.out = append(j.out, "\xa9\n"...) })
	out = decodeAs[JobOutputResult](t, c.call("job_output", `{"job_id":"job-1","offset":3}`))
	assert.Equal(t, "é\n", out.Chunk)
	assert.Equal(t, "hello\n", string(sess.jobs["job-1"].in))
	assert.True(t, sess.jobs["job-1"].eof)

	sess.ignoresSignal = "TERM"
	stopped := decodeAs[JobStateResult](t, c.call("job_stop", `{"job_id":"job-1"}`))
	assert.Equal(t, "exited", stopped.State)
	assert.Equal(t, []string{"TERM", "KILL"}, sess.jobs["job-1"].signals)

	for tool, args := range map[string]string{"job_output": `{"job_id":"job-9"}`, "job_input": `{"job_id":"job-9","eof":true}`, "job_stop": `{"job_id":"job-9"}`} {
		r = c.call(tool, args)
		assert.True(t, r.IsError, tool)
		assert.Contains(t, r.text(), "job-1 (exited, server)", tool)
	}
	c.call("exec", `{"command":"other","background":true}`)
	stopped = decodeAs[JobStateResult](t, c.call("job_stop", `{"job_id":"job-2","signal":"SIGINT"}`))
	assert.Equal(t, "exited", stopped.State)
	assert.Equal(t, []string{"INT"}, sess.jobs["job-2"].signals)
	assert.True(t, c.call("job_input", `{"job_id":"job-1"}`).IsError)
}
