package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"gondolin-mcp": main, "noisy": noisy})
}

// noisy is a server whose libraries and children all print to standard output.
func noisy() {
	out, err := takeStdout(os.Stdout)
	if err != nil {
		panic(err)
	}
	fmt.Println("a library")
	fmt.Fprintln(os.NewFile(1, "descriptor"), "the descriptor")
	cmd := exec.Command("echo", "a child")
	cmd.Stdout = os.Stdout
	if err := cmd.Run(); err != nil {
		panic(err)
	}
	fmt.Fprintln(out, "a message")
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			// Nothing of the developer's own, and short enough for sockets.
			run, err := os.MkdirTemp("", "g")
			if err != nil {
				return err
			}
			e.Defer(func() { _ = os.RemoveAll(run) })
			e.Setenv("HOME", e.WorkDir+"/home")
			e.Setenv("XDG_CACHE_HOME", e.WorkDir+"/cache")
			e.Setenv("XDG_CONFIG_HOME", e.WorkDir+"/config")
			e.Setenv("XDG_STATE_HOME", e.WorkDir+"/state")
			e.Setenv("XDG_RUNTIME_DIR", run)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exitcode": exitCode,
			"mcp":      speakMCP,
		},
	})
}

// exitCode is `exitcode N command…`: the command ends with N; its outputs are
// kept in the files out and err.
func exitCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exitcode N command…")
	}
	cmd := exec.Command(lookPath(ts, args[1]), args[2:]...)
	cmd.Dir, cmd.Env = ts.Getenv("WORK"), environ(ts)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	_ = cmd.Run() // judged by its code
	ts.Check(os.WriteFile(ts.MkAbs("out"), []byte(out.String()), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("err"), []byte(errOut.String()), 0o600))
	if got := fmt.Sprint(cmd.ProcessState.ExitCode()); got != args[0] {
		ts.Fatalf("exit code %s instead of %s\nstdout: %s\nstderr: %s", got, args[0], &out, &errOut)
	}
}

// own is where testscript puts the program, also for scripts that change PATH.
var own = sync.OnceValues(func() (string, error) { return exec.LookPath("gondolin-mcp") })

func lookPath(ts *testscript.TestScript, name string) string {
	if name != "gondolin-mcp" {
		ts.Fatalf("only gondolin-mcp can be run")
	}
	path, err := own()
	ts.Check(err)
	return path
}

func environ(ts *testscript.TestScript) []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "TMPDIR", "GONDOLIN_IMAGE_AUTO_BUILD", "GONDOLIN_LIMITS_CPUS", "GONDOLIN_LIMITS_CPU", "GONDOLIN_NETWORK_PROXY", "HTTPS_PROXY"} {
		if v := ts.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// speakMCP is `mcp [-term|-hup] FILE args…`: it runs the server with args, sends the
// lines of FILE one after the other, waiting for the answer to each request, and
// ends the input, or the server by a signal. With -hup it sends that signal first, which
// must make the server read its policy again. In the end it must exit with 0. Every line of
// the output must be a JSON-RPC message; the answers are kept in the file out, and what was
// logged in err.
func speakMCP(ts *testscript.TestScript, neg bool, args []string) {
	term, hup := len(args) > 0 && args[0] == "-term", len(args) > 0 && args[0] == "-hup"
	if term || hup {
		args = args[1:]
	}
	if neg || len(args) < 1 {
		ts.Fatalf("usage: mcp [-term|-hup] FILE args…")
	}
	cmd := exec.Command(lookPath(ts, "gondolin-mcp"), args[1:]...)
	cmd.Dir, cmd.Env = ts.Getenv("WORK"), environ(ts)
	var errOut lockedText
	cmd.Stderr = &errOut
	stdin, err := cmd.StdinPipe()
	ts.Check(err)
	stdout, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	watchdog := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
	defer watchdog.Stop()

	var out strings.Builder
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 1<<20)
	read := func() (id any, more bool) {
		if !lines.Scan() {
			return nil, false
		}
		var m struct {
			Version string `json:"jsonrpc"`
			ID      any    `json:"id"`
		}
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil || m.Version != "2.0" {
			ts.Fatalf("not an MCP message on standard output: %s", lines.Text())
		}
		out.Write(append(lines.Bytes(), '\n'))
		return m.ID, true
	}
	for request := range strings.Lines(strings.TrimSpace(ts.ReadFile(args[0]))) {
		var m struct {
			ID any `json:"id"`
		}
		ts.Check(json.Unmarshal([]byte(request), &m))
		_, err := fmt.Fprintln(stdin, strings.TrimSpace(request))
		ts.Check(err)
		for m.ID != nil {
			id, more := read()
			if !more {
				ts.Fatalf("no answer to %s\nstderr: %s", request, &errOut)
			}
			if id == m.ID {
				break
			}
		}
	}
	if hup {
		ts.Check(cmd.Process.Signal(syscall.SIGHUP))
		for end := time.Now().Add(20 * time.Second); !strings.Contains(errOut.String(), "was read again") && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
	}
	if term {
		ts.Check(cmd.Process.Signal(syscall.SIGTERM))
	} else {
		ts.Check(stdin.Close())
	}
	for more := true; more; {
		_, more = read()
	}
	err = cmd.Wait()
	ts.Check(os.WriteFile(ts.MkAbs("out"), []byte(out.String()), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("err"), []byte(errOut.String()), 0o600))
	if err != nil {
		ts.Fatalf("the server ended with %v\nstderr: %s", err, &errOut)
	}
}
