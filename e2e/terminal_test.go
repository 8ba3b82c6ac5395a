package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// screen is a terminal of tmux.
type screen struct {
	t      *testing.T
	socket string
}

func newScreen(t *testing.T, runtime string) *screen {
	t.Helper()
	_, err := exec.LookPath("tmux")
	require.NoError(t, err, "install it with `make setup-test`")
	s := &screen{t: t, socket: filepath.Join(t.TempDir(), "tmux")}
	cmd := s.command("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", "env", "PS1=host> ", "sh")
	cmd.Env = append(os.Environ(), "GONDOLIN_PATHS_RUNTIME="+runtime, "PATH="+program(t)+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Cleanup(func() { _ = s.command("kill-server").Run() })
	return s
}

func (s *screen) command(args ...string) *exec.Cmd {
	return exec.Command("tmux", append([]string{"-S", s.socket}, args...)...)
}

func (s *screen) do(args ...string) {
	s.t.Helper()
	out, err := s.command(args...).CombinedOutput()
	require.NoError(s.t, err, "%s", out)
}

// types sends a line, and keys sends keys by tmux's names.
func (s *screen) types(line string) { s.t.Helper(); s.do("send-keys", "-l", line); s.keys("Enter") }
func (s *screen) keys(k ...string)  { s.t.Helper(); s.do(append([]string{"send-keys"}, k...)...) }

func (s *screen) shows(text string) {
	s.t.Helper()
	var last string
	defer func() {
		if s.t.Failed() {
			s.t.Log(last)
		}
	}()
	eventually(s.t, time.Minute, text, func() bool {
		out, _ := s.command("capture-pane", "-p", "-J", "-S", "-200").Output()
		last = string(out)
		return strings.Contains(last, text)
	})
}

func TestShellBehavesLikeATerminalAndCanBeLeftAndTakenUpAgain(t *testing.T) {
	session := sharedSession(t)
	s := newScreen(t, sharedDir)
	s.types("gondolin-mcp shell " + session.ID()[:5])
	s.types("tty; stty size | tr ' ' x")
	s.shows("/dev/pts/")
	s.shows("30x100")
	s.do("resize-window", "-x", "90", "-y", "25")
	s.types("stty size | tr ' ' x")
	s.shows("25x90")
	s.types(`sh -c 'echo re""ady; exec sleep 100'`)
	s.shows("\nready")
	s.keys("C-c") // for the command in there, and not for us
	s.types("echo interrupted=$?")
	s.shows("interrupted=130")
	s.types("left=behind")
	s.keys("C-]")
	s.shows("detached; the command goes on: gondolin-mcp attach " + session.ID())
	s.types("stty -a | tr ' ' '\\n' | grep -x -e icanon -e echo | tr '\\n' +; echo")
	s.shows("icanon+echo+") // the terminal is ours again

	out, err := cli(t, sharedDir, "inspect", session.ID())
	require.NoError(t, err)
	var process string
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "process ") && strings.Contains(line, "runs") && strings.Contains(line, "exec bash") {
			process = strings.Fields(line)[1]
		}
	}
	require.NotEmpty(t, process, out)
	s.types(fmt.Sprintf("gondolin-mcp attach %s --process %s", session.ID(), process))
	s.types("echo found=$left")
	s.shows("found=behind")
	s.types("exit 6")
	s.shows("exit\nhost>")
	s.types("echo host=$?")
	s.shows("host=6")
}

func TestTerminalIsGivenBackWhenTheSessionEndsUnderIt(t *testing.T) {
	dir := runtimeDir(t)
	s := newScreen(t, dir)
	s.types("gondolin-mcp shell --cpus 1 --memory 512MiB --name mine")
	s.types("echo up=$((40+2))")
	s.shows("up=42")
	out, err := cli(t, dir, "kill", "mine")
	require.NoError(t, err, out)
	s.shows("has ended: the user ended it with `gondolin-mcp kill`")
	s.types("echo host=$?; stty -a | tr ' ' '\\n' | grep -x -e icanon -e echo | tr '\\n' +; echo")
	s.shows("host=125")
	s.shows("icanon+echo+")
}
