package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

// program is the directory of the real program.
func program(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(serverPath)
	require.NoError(t, err)
	require.FileExists(t, path, "build it with `make build`")
	return filepath.Dir(path)
}

// cliScript runs a script of testdata/cli with sessions in a runtime directory.
func cliScript(t *testing.T, name, runtime, id string) {
	testscript.Run(t, testscript.Params{
		Files: []string{filepath.Join("testdata", "cli", name)},
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", program(t)+":"+e.Getenv("PATH"))
			e.Setenv("GONDOLIN_PATHS_CACHE", cacheDir())
			e.Setenv("GONDOLIN_PATHS_RUNTIME", runtime)
			e.Setenv("XDG_STATE_HOME", e.WorkDir+"/state")
			e.Setenv("XDG_CONFIG_HOME", e.WorkDir+"/config")
			e.Setenv("ID", id)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": exitCode},
	})
}

// exitCode is `code N program args…`: it ends with N. Its outputs are checked by stdout and stderr.
func exitCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N program args…")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if err != nil {
		exit, ok := err.(*exec.ExitError)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d instead of %s", got, args[0])
	}
}

func TestCommandLineWorksWithSessionsOfOthers(t *testing.T) {
	s := sharedSession(t)
	cliScript(t, "session.txtar", sharedDir, s.ID())
}

func TestCommandLineRunsACommandInAMachineOfItsOwn(t *testing.T) {
	cliScript(t, "run.txtar", runtimeDir(t), "")
}

func TestAPersonKeepsASessionAndGoesOnFromIt(t *testing.T) {
	cliScript(t, "snapshot.txtar", runtimeDir(t), "")
}

// cli runs the program on a runtime directory.
func cli(t *testing.T, runtime string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(program(t), "gondolin-mcp"), args...)
	cmd.Env = append(os.Environ(), "GONDOLIN_PATHS_RUNTIME="+runtime)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func TestTwoServersAndTheCommandLineNeverCross(t *testing.T) {
	dir := runtimeDir(t)
	ids, servers := map[string]*server{}, map[string]*exec.Cmd{}
	for _, name := range []string{"one", "two"} {
		s := startServer(t, nil, "--runtime-dir", dir, "--memory", "512MiB", "--cpus", "1")
		res, err := s.client.CallTool(t.Context(), &mcp.CallToolParams{Name: "exec", Arguments: map[string]any{"command": "echo " + name + " > /root/who"}})
		require.NoError(t, err)
		require.False(t, res.IsError)
		list, err := sandbox.List(t.Context(), dir, nil)
		require.NoError(t, err)
		for _, i := range list {
			if ids[i.ID] == nil {
				require.Equal(t, s.cmd.Process.Pid, i.PID)
				require.Equal(t, "serve", i.Holder)
				ids[i.ID], servers[name] = s, s.cmd
			}
		}
	}
	require.Len(t, ids, 2)
	seen := map[string]string{}
	for id := range ids {
		out, err := cli(t, dir, "exec", id, "--", "cat", "/root/who")
		require.NoError(t, err, out)
		seen[out] = id
		out, err = cli(t, dir, "logs", id)
		require.NoError(t, err, out)
		require.Contains(t, out, "cat /root/who", "what was run from outside is on record")
	}
	require.Len(t, seen, 2)

	qemu, err := os.ReadFile(filepath.Join(dir, seen["one"], "qemu.pid"))
	require.NoError(t, err)
	pid, err := strconv.Atoi(string(qemu))
	require.NoError(t, err)
	require.NoError(t, servers["one"].Process.Kill())
	eventually(t, 20*time.Second, "the end of the machine", func() bool { return syscall.Kill(pid, 0) != nil })
	out, err := cli(t, dir, "list", "-q")
	require.NoError(t, err)
	require.Equal(t, seen["two"], out)
	out, err = cli(t, dir, "exec", seen["two"], "--", "cat", "/root/who")
	require.NoError(t, err)
	require.Equal(t, "two", out)
	require.NoDirExists(t, filepath.Join(dir, seen["one"]))

	out, err = cli(t, dir, "kill", seen["two"][:5])
	require.NoError(t, err, out)
	require.Equal(t, seen["two"], out)
	require.Empty(t, entries(t, dir))
	out, err = cli(t, dir, "kill", seen["two"])
	require.Error(t, err)
	require.Contains(t, out, "none is open")
	res, err := ids[seen["two"]].client.CallTool(t.Context(), &mcp.CallToolParams{Name: "exec", Arguments: map[string]any{"command": "ls /root/who"}})
	require.NoError(t, err, "the server goes on")
	require.NotNil(t, res)
}

func TestCommandOfAKilledProgramEnds(t *testing.T) {
	s := sharedSession(t)
	cmd := exec.Command(filepath.Join(program(t), "gondolin-mcp"), "exec", s.ID(), "--", "sleep", "7003")
	cmd.Env = append(os.Environ(), "GONDOLIN_PATHS_RUNTIME="+sharedDir)
	require.NoError(t, cmd.Start())
	running := func() bool {
		_, exit := try(t, s, sandbox.Command{Argv: []string{"pgrep", "-f", "^sleep 7003"}})
		return exit.Code == 0
	}
	eventually(t, 30*time.Second, "its begin", running)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	eventually(t, 30*time.Second, "its end", func() bool { return !running() })
}
