package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/stretchr/testify/require"
)

// The server is killed at moments that fall into each phase of a fork, a snapshot and a restore.
func TestServerKilledWhileItCopiesSessionsLeavesNothing(t *testing.T) {
	state := stateOfOwn(t)
	t.Setenv("XDG_STATE_HOME", state)
	first := startServer(t, nil)
	first.call(t, "exec", object{"command": "echo kept > /root/file"}, nil)
	res := first.call(t, "session", object{"action": "snapshot", "name": "good"}, nil)
	require.False(t, res.IsError, text(res))
	require.NoError(t, first.client.Close())

	for _, action := range []object{
		{"action": "fork", "count": 2}, {"action": "snapshot", "name": "half"}, {"action": "restore", "name": "good"},
	} {
		for _, after := range []time.Duration{20, 150, 500} {
			name := fmt.Sprint(action["action"], after)
			s := startServer(t, nil)
			s.call(t, "exec", object{"command": "true"}, nil)
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = s.client.CallTool(t.Context(), &mcp.CallToolParams{Name: "session", Arguments: action})
			}()
			<-time.After(after * time.Millisecond) // into its midst, wherever that is
			machines := children(t, s.cmd.Process.Pid, "qemu-system")
			require.NoError(t, s.cmd.Process.Signal(syscall.SIGKILL))
			<-done
			_ = s.client.Close()
			eventually(t, 20*time.Second, name+": QEMU dies with its server", func() bool {
				for _, pid := range machines {
					if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && len(b) > 0 {
						return false
					}
				}
				return true
			})
			path, err := filepath.Abs(serverPath)
			require.NoError(t, err)
			gc := exec.Command(path, "gc", "--keep-days", "1000")
			gc.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+s.runtime)
			out, err := gc.CombinedOutput()
			require.NoError(t, err, string(out))
			require.Empty(t, entries(t, filepath.Join(s.runtime, "gondolin")), name)
			for _, e := range entries(t, filepath.Join(state, "gondolin", "snapshots")) {
				require.False(t, strings.HasPrefix(e, "."), "%s: %s", name, e)
				if e == "half" { // it was finished before the end came
					require.NoError(t, os.RemoveAll(filepath.Join(state, "gondolin", "snapshots", e)))
				}
			}
		}
	}
	last := startServer(t, nil)
	var r struct {
		Session string `json:"session"`
	}
	res = last.call(t, "session", object{"action": "restore", "name": "good"}, &r)
	require.False(t, res.IsError, text(res))
	require.Contains(t, text(last.call(t, "exec", object{"command": "cat /root/file", "session": r.Session}, nil)), "kept")

	path, err := filepath.Abs(serverPath)
	require.NoError(t, err)
	for want, args := range map[string][]string{
		"good": {"snapshot", "list"}, `"memory": true`: {"snapshot", "inspect", "good", "--json"}, "processes and files": {"snapshot", "inspect", "good"},
	} {
		out, err := exec.Command(path, args...).CombinedOutput()
		require.NoError(t, err, string(out))
		require.Contains(t, string(out), want)
	}
	out, err := exec.Command(path, "snapshot", "rm", "good").CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "removed snapshot good")
	require.Empty(t, entries(t, filepath.Join(state, "gondolin", "snapshots")))
}
