package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/stretchr/testify/require"
)

const serverPath = "../bin/gondolin-mcp"

// server is the real server with a client that is not ours.
type server struct {
	cmd     *exec.Cmd
	client  *mcp.ClientSession
	runtime string
	stderr  *syncBuffer
}

// startServer starts gondolin-mcp as an MCP client would.
func startServer(t *testing.T, options *mcp.ClientOptions, args ...string) *server {
	t.Helper()
	s := &server{runtime: runtimeDir(t), stderr: &syncBuffer{}}
	path, err := filepath.Abs(serverPath)
	require.NoError(t, err)
	require.FileExists(t, path, "build it with `make build`")
	s.cmd = exec.Command(path, append([]string{"serve"}, args...)...)
	s.cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+s.runtime)
	s.cmd.Stderr = s.stderr
	client := mcp.NewClient(&mcp.Implementation{Name: "e2e", Version: "1"}, options)
	s.client, err = client.Connect(t.Context(), &mcp.CommandTransport{Command: s.cmd}, nil)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = s.client.Close()
		if t.Failed() {
			t.Log(s.stderr.String())
		}
	})
	return s
}

// call calls a tool and decodes its structured result.
func (s *server) call(t *testing.T, tool string, args any, result any) *mcp.CallToolResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	res, err := s.client.CallTool(ctx, &mcp.CallToolParams{Name: tool, Arguments: args})
	require.NoError(t, err)
	if result != nil {
		b, err := json.Marshal(res.StructuredContent)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(b, result))
	}
	return res
}

func text(res *mcp.CallToolResult) string {
	var b bytes.Buffer
	for _, c := range res.Content {
		if t, ok := c.(*mcp.TextContent); ok {
			b.WriteString(t.Text)
		}
	}
	return b.String()
}

type object = map[string]any

type execResult struct {
	ExitCode    int    `json:"exit_code"`
	Signal      string `json:"signal"`
	Stdout      string `json:"stdout"`
	Stderr      string `json:"stderr"`
	TimedOut    bool   `json:"timed_out"`
	Truncated   bool   `json:"truncated"`
	StdoutBytes int64  `json:"stdout_bytes"`
	JobID       string `json:"job_id"`
	Session     string `json:"session"`
}

func TestAgentRunsCommandsAndEditsFilesThroughMCP(t *testing.T) {
	s := startServer(t, nil)
	var run execResult
	require.False(t, s.call(t, "exec", object{"command": "echo out; echo err >&2; exit 3"}, &run).IsError, "a failing command is a result")
	require.Equal(t, 3, run.ExitCode)
	require.Equal(t, "out\n", run.Stdout)
	require.Equal(t, "err\n", run.Stderr)

	require.False(t, s.call(t, "write_file", object{"path": "/root/app/main.py", "content": "def f():\n    return 1\n\nprint(f())\n"}, nil).IsError)
	res := s.call(t, "edit_file", object{"path": "/root/app/main.py", "old_string": "return 1", "new_string": "return 42"}, nil)
	require.False(t, res.IsError, text(res))
	require.Contains(t, text(res), "+    return 42")
	s.call(t, "exec", object{"argv": []string{"python3", "/root/app/main.py"}}, &run)
	require.Equal(t, "42\n", run.Stdout)
	require.Contains(t, text(s.call(t, "read_file", object{"path": "/root/app/main.py"}, nil)), "return 42")
	require.Contains(t, text(s.call(t, "list_files", object{"path": "/root/app"}, nil)), "main.py")
	require.Contains(t, text(s.call(t, "glob", object{"path": "/root", "pattern": "**/*.py"}, nil)), "app/main.py")
	require.Contains(t, text(s.call(t, "grep", object{"path": "/root", "pattern": `ret\w+ 42`}, nil)), "main.py")

	res = s.call(t, "edit_file", object{"path": "/root/app/main.py", "old_string": "return 43", "new_string": "x"}, nil)
	require.True(t, res.IsError)
	require.Contains(t, text(res), "return 42", "the nearest lines help to correct the call")
	res = s.call(t, "read_file", object{"path": "/root/nothing"}, nil)
	require.True(t, res.IsError)
	require.Contains(t, text(res), "/root/nothing")
}

func TestBackgroundJobIsFollowedFedAndStopped(t *testing.T) {
	s := startServer(t, nil)
	var job execResult
	s.call(t, "exec", object{"command": "while read line; do echo got $line; done; echo end", "background": true}, &job)
	require.NotEmpty(t, job.JobID)
	require.False(t, s.call(t, "job_input", object{"job_id": job.JobID, "data": "one\ntwo\n"}, nil).IsError)
	var out struct {
		Chunk string `json:"chunk"`
		Next  int64  `json:"next_offset"`
		State string `json:"state"`
	}
	var all string
	var next int64
	for all != "got one\ngot two\n" {
		s.call(t, "job_output", object{"job_id": job.JobID, "offset": next, "wait_ms": 10000}, &out)
		all, next = all+out.Chunk, out.Next
	}
	require.Equal(t, "running", out.State)
	require.False(t, s.call(t, "job_input", object{"job_id": job.JobID, "eof": true}, nil).IsError)
	for out.State == "running" {
		s.call(t, "job_output", object{"job_id": job.JobID, "offset": next, "wait_ms": 10000}, &out)
		all, next = all+out.Chunk, out.Next
	}
	require.Equal(t, "got one\ngot two\nend\n", all)

	s.call(t, "exec", object{"argv": []string{"sleep", "1000"}, "background": true}, &job)
	require.False(t, s.call(t, "job_stop", object{"job_id": job.JobID}, nil).IsError)
	s.call(t, "job_output", object{"job_id": job.JobID, "wait_ms": 20000}, &out)
	require.Equal(t, "exited", out.State)
}

// 1 GiB of it, in a whole run.
func TestMuchOutputLeavesTheServersMemoryFlat(t *testing.T) {
	size := int64(amount(192, 1024)) << 20
	s := startServer(t, nil)
	var run execResult
	s.call(t, "exec", object{"command": "true"}, &run)
	before := rss(t, s.cmd.Process.Pid)
	res := s.call(t, "exec", object{"command": fmt.Sprintf("head -c %d /dev/zero; echo the end", size), "timeout_ms": 170000}, &run)
	require.False(t, res.IsError, text(res))
	require.Equal(t, size+8, run.StdoutBytes)
	require.True(t, run.Truncated)
	require.Contains(t, run.Stdout, "the end", "the tail is kept")
	require.Less(t, rss(t, s.cmd.Process.Pid), before+32)
	require.Less(t, len(text(res)), 50000)
	var out struct {
		Chunk string `json:"chunk"`
	}
	s.call(t, "job_output", object{"job_id": run.JobID, "offset": size - 30}, &out)
	require.Contains(t, out.Chunk, "the end", "the rest can be read")
}

func TestCancelledCallEndsInTheGuestAndDelaysNoOther(t *testing.T) {
	s := startServer(t, nil)
	var run execResult
	s.call(t, "exec", object{"command": "true"}, &run)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			_, err := s.client.CallTool(ctx, &mcp.CallToolParams{Name: "exec", Arguments: object{"command": "exec -a slowpoke sleep 1000"}})
			require.ErrorIs(t, err, context.Canceled)
		})
	}
	count := func() string {
		s.call(t, "exec", object{"command": "pgrep -cf '^slowpoke' || true"}, &run)
		return run.Stdout
	}
	eventually(t, 30*time.Second, "all run at once, and a quick call comes through", func() bool { return count() == "12\n" })
	cancel()
	wg.Wait()
	eventually(t, 30*time.Second, "none is left", func() bool { return count() == "0\n" })
}

func TestSessionsAreSeparateAndCanBeReset(t *testing.T) {
	s := startServer(t, nil, "--max-sessions", "2")
	var a, b execResult
	s.call(t, "exec", object{"command": "echo first > /root/note"}, &a)
	var made struct {
		Session string `json:"session"`
	}
	res := s.call(t, "session", object{"action": "create"}, &made)
	require.False(t, res.IsError, text(res))
	s.call(t, "exec", object{"command": "ls /root/note", "session": made.Session}, &b)
	require.NotZero(t, b.ExitCode)
	require.NotEqual(t, a.Session, b.Session)
	res = s.call(t, "session", object{"action": "create"}, nil)
	require.True(t, res.IsError)
	require.Contains(t, text(res), "sessions.max")
	require.False(t, s.call(t, "session", object{"action": "close", "session": made.Session}, nil).IsError)
	require.False(t, s.call(t, "session", object{"action": "reset"}, nil).IsError)
	s.call(t, "exec", object{"command": "ls /root/note"}, &b)
	require.NotZero(t, b.ExitCode, "a reset session is empty")
}

func TestKilledServerLeavesNothing(t *testing.T) {
	s := startServer(t, nil, "--templates=false")
	s.call(t, "exec", object{"argv": []string{"sleep", "1000"}, "background": true}, nil)
	base := filepath.Join(s.runtime, "gondolin")
	require.Len(t, entries(t, base), 1)
	pid, err := os.ReadFile(filepath.Join(base, entries(t, base)[0], "qemu.pid"))
	require.NoError(t, err)
	require.NoError(t, s.cmd.Process.Kill())
	eventually(t, 20*time.Second, "QEMU dies with its server", func() bool {
		_, err := os.Stat("/proc/" + string(pid) + "/cmdline")
		return os.IsNotExist(err)
	})
	_ = s.client.Close()

	path, err := filepath.Abs(serverPath)
	require.NoError(t, err)
	next := exec.Command(path, "serve")
	next.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+s.runtime)
	client := mcp.NewClient(&mcp.Implementation{Name: "e2e", Version: "1"}, nil)
	session, err := client.Connect(t.Context(), &mcp.CommandTransport{Command: next}, nil)
	require.NoError(t, err)
	defer session.Close()
	_, err = session.CallTool(t.Context(), &mcp.CallToolParams{Name: "session", Arguments: object{"action": "list"}})
	require.NoError(t, err)
	eventually(t, 20*time.Second, "the next server collects the rest", func() bool { return len(entries(t, base)) == 0 })
}
