package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

// sshInto opens an SSH server of the shared session.
func sshInto(t *testing.T, o sandbox.SSHOptions) *sandbox.SSH {
	t.Helper()
	c, err := sharedSession(t).SSH(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// client is a program of OpenSSH's that knows the session.
func client(t *testing.T, c *sandbox.SSH, program string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	argv := append(c.Argv(program), args...)
	return exec.CommandContext(ctx, argv[0], argv[1:]...)
}

func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s: %s", cmd, out)
	return string(out)
}

func TestSSHRunsCommandsWithTheirStreamsAndEnd(t *testing.T) {
	c := sshInto(t, sandbox.SSHOptions{})

	cmd := client(t, c, "ssh", sandbox.SSHName, `tr a-z A-Z; echo oops >&2; exit 7`)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("hello\n"), &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 7, exit.ExitCode())
	require.Equal(t, "HELLO\n", stdout.String())
	require.Equal(t, "oops\n", stderr.String())

	require.Equal(t, "0 root\n", output(t, client(t, c, "ssh", sandbox.SSHName, `echo $(id -u) $USER`)))
	require.Equal(t, "65534 nobody\n", output(t, client(t, c, "ssh", "-l", "nobody", sandbox.SSHName, `echo $(id -u) $USER`)))
	set := client(t, c, "ssh", "-o", "SendEnv=GREETING", sandbox.SSHName, `echo $GREETING`)
	set.Env = append(os.Environ(), "GREETING=hi there")
	require.Equal(t, "hi there\n", output(t, set))

	killed := client(t, c, "ssh", sandbox.SSHName, `kill -9 $$`)
	require.ErrorAs(t, killed.Run(), &exit)
	require.Equal(t, 255, exit.ExitCode(), "that is how OpenSSH reports a signal")

	out, err := client(t, c, "ssh", "-l", "no-such-user", sandbox.SSHName, `true`).CombinedOutput()
	require.ErrorAs(t, err, &exit)
	require.Contains(t, string(out), "no user")
}

func TestSSHGivesAShellWithATerminalThatCanBeResized(t *testing.T) {
	c := sshInto(t, sandbox.SSHOptions{})
	cmd := client(t, c, "ssh", "-tt", sandbox.SSHName)
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 101})
	require.NoError(t, err)
	defer tty.Close()
	seen := make(chan string, 64)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := tty.Read(buf)
			if err != nil {
				close(seen)
				return
			}
			seen <- string(buf[:n])
		}
	}()
	// expect waits for strings, one behind the other.
	expect := func(want ...string) {
		t.Helper()
		var all strings.Builder
		there := func() bool {
			rest, found := all.String(), true
			for _, w := range want {
				if _, rest, found = strings.Cut(rest, w); !found {
					return false
				}
			}
			return true
		}
		for deadline := time.After(30 * time.Second); !there(); {
			select {
			case s := <-seen:
				all.WriteString(s)
			case <-deadline:
				require.FailNow(t, "did not see "+strings.Join(want, " and then "), all.String())
			}
		}
	}
	write := func(s string) {
		_, err := tty.WriteString(s)
		require.NoError(t, err)
	}
	const prompt = "\x1b[?2004h" // bash asks for bracketed paste as it begins to read a line
	write("echo size=$(stty size) login=$(shopt -q login_shell && echo yes)\n")
	expect("size=33 101 login=yes", prompt)
	require.NoError(t, pty.Setsize(tty, &pty.Winsize{Rows: 44, Cols: 155}))
	// One line at a time: a terminal forgets what was typed ahead of an interrupt, and half of a line then stands.
	write("until [ \"$(stty size)\" = '44 155' ]; do sleep 0.05; done; echo resized=$((1+1))\n")
	expect("resized=2", prompt)
	// What is to be interrupted says so itself: between a builtin and the next program the shell has the terminal.
	write("sh -c 'echo begun=$((1+1)); exec sleep 1000'\n")
	expect("begun=2")
	write("\x03")
	expect("^C", prompt)
	write("echo after=$((40+2))\n")
	expect("after=42", prompt)
	write("exit 5\n")
	go func() {
		for range seen {
		}
	}()
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Wait(), &exit)
	require.Equal(t, 5, exit.ExitCode())
}

// A big file there and back, with every client that people use.
func TestSSHCopiesFiles(t *testing.T) {
	c := sshInto(t, sandbox.SSHOptions{})
	dir := t.TempDir()
	data := make([]byte, 8<<20)
	_, _ = rand.Read(data)
	file := filepath.Join(dir, "big file")
	require.NoError(t, os.WriteFile(file, data, 0o640))
	sum := fmt.Sprintf("%x", sha256.Sum256(data))

	for _, how := range []struct{ name, flag string }{{"sftp", "-s"}, {"legacy", "-O"}} {
		t.Run("scp "+how.name, func(t *testing.T) {
			output(t, client(t, c, "scp", how.flag, "-p", file, sandbox.SSHName+":/tmp/there"))
			require.Contains(t, sh(t, sharedSession(t), "sha256sum /tmp/there; stat -c %a /tmp/there; rm -f /tmp/there.d"), sum)
			back := filepath.Join(dir, "back-"+how.name)
			output(t, client(t, c, "scp", how.flag, sandbox.SSHName+":/tmp/there", back))
			got, err := os.ReadFile(back)
			require.NoError(t, err)
			require.True(t, bytes.Equal(data, got))
		})
	}
	t.Run("as another user", func(t *testing.T) {
		out, err := client(t, c, "scp", "-s", file, "nobody@"+sandbox.SSHName+":/root/forbidden").CombinedOutput()
		require.Error(t, err)
		require.Contains(t, string(out), "ermission denied")
	})
	t.Run("rsync", func(t *testing.T) {
		path, err := exec.LookPath("rsync")
		if err != nil && os.Getenv("CI") == "" {
			t.Skip("rsync is not installed here: .ci/setup --test")
		}
		require.NoError(t, err)
		bringIn(t, sharedSession(t), path)
		tree := filepath.Join(dir, "tree")
		require.NoError(t, os.MkdirAll(filepath.Join(tree, "a/b"), 0o755))
		for i := range 20 {
			require.NoError(t, os.WriteFile(filepath.Join(tree, "a/b", fmt.Sprint(i)), data[:i*1000], 0o644))
		}
		via := strings.Join(c.Argv("ssh"), " ")
		run := func(args ...string) string {
			return output(t, exec.CommandContext(t.Context(), "rsync", append([]string{"-a", "-e", via}, args...)...))
		}
		run("--delete", tree+"/", sandbox.SSHName+":/tmp/tree/")
		require.Equal(t, "20", sh(t, sharedSession(t), "find /tmp/tree -type f | wc -l"))
		require.NoError(t, os.Remove(filepath.Join(tree, "a/b/3")))
		run("--delete", tree+"/", sandbox.SSHName+":/tmp/tree/")
		require.Equal(t, "19", sh(t, sharedSession(t), "find /tmp/tree -type f | wc -l"))
		run(sandbox.SSHName+":/tmp/tree/", filepath.Join(dir, "again"))
		require.Equal(t, "", output(t, exec.Command("diff", "-r", tree, filepath.Join(dir, "again"))))
	})
}

// bringIn puts a program of this machine, with its libraries, where the guest finds it. Both are
// Debian of the same kind or the libraries come along; the loader is asked for by name.
func bringIn(t *testing.T, s *sandbox.Session, program string) {
	t.Helper()
	out, err := exec.Command("ldd", program).Output()
	require.NoError(t, err)
	put := func(from, to string, mode uint32) {
		f, err := os.Open(from)
		require.NoError(t, err)
		defer f.Close()
		_, err = s.WriteFile(t.Context(), to, f, sandbox.WriteOptions{Mode: &mode, Parents: true})
		require.NoError(t, err)
	}
	put(program, "/opt/brought/bin", 0o755)
	loader := ""
	for line := range strings.Lines(string(out)) {
		for _, word := range strings.Fields(line) {
			if !strings.HasPrefix(word, "/") {
				continue
			}
			if strings.Contains(word, "ld-linux") {
				loader = "/opt/brought/" + filepath.Base(word)
			}
			put(word, "/opt/brought/"+filepath.Base(word), 0o755)
		}
	}
	require.NotEmpty(t, loader)
	sh(t, s, fmt.Sprintf(`printf '#!/bin/sh\nexec %s --library-path /opt/brought /opt/brought/bin "$@"\n' > /usr/local/bin/%s && chmod +x /usr/local/bin/%[2]s`, loader, filepath.Base(program)))
}

func TestSSHAcceptsOnlyTheKeyOfItsSession(t *testing.T) {
	c := sshInto(t, sandbox.SSHOptions{})
	key := filepath.Join(t.TempDir(), "key")
	output(t, exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key))
	out, err := client(t, c, "ssh", "-o", "IdentityFile=none", "-i", key, sandbox.SSHName, "true").CombinedOutput()
	// The configuration's own key is offered as well, so it is taken out.
	if err == nil {
		config, rerr := os.ReadFile(c.ConfigFile)
		require.NoError(t, rerr)
		other := filepath.Join(t.TempDir(), "config")
		require.NoError(t, os.WriteFile(other, bytes.ReplaceAll(config, []byte("IdentityFile \""+filepath.Join(filepath.Dir(c.ConfigFile), "id_ed25519")), []byte("IdentityFile \""+key)), 0o600))
		out, err = exec.CommandContext(t.Context(), "ssh", "-F", other, sandbox.SSHName, "true").CombinedOutput()
	}
	require.Error(t, err)
	require.Contains(t, string(out), "Permission denied")

	second := sshInto(t, sandbox.SSHOptions{})
	_, port, err := net.SplitHostPort(second.Addr)
	require.NoError(t, err)
	out, err = client(t, c, "ssh", "-p", port, sandbox.SSHName, "true").CombinedOutput()
	require.Error(t, err, "the key and the known host of one server must not do for another")
	require.Contains(t, string(out), "Host key verification failed")

	for _, name := range []string{"config", "id_ed25519", "known_hosts"} {
		st, err := os.Stat(filepath.Join(filepath.Dir(c.ConfigFile), name))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), st.Mode().Perm(), name)
	}
}

func TestSSHForwardsNothingUnlessAskedTo(t *testing.T) {
	s := sharedSession(t)
	job, err := s.StartJob(t.Context(), sandbox.Command{Shell: "mkdir -p /tmp/web && cd /tmp/web && echo page > index.html && exec python3 -m http.server 8123 --bind 127.0.0.1"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Signal(context.WithoutCancel(t.Context()), job.ID, "KILL") })
	sh(t, s, "until curl -sf http://127.0.0.1:8123/ >/dev/null; do sleep 0.1; done")
	const request = "GET / HTTP/1.0\r\n\r\n"
	through := func(c *sandbox.SSH, to string) (string, error) {
		cmd := client(t, c, "ssh", "-W", to, sandbox.SSHName)
		cmd.Stdin = strings.NewReader(request)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	closed := sshInto(t, sandbox.SSHOptions{})
	out, err := through(closed, "localhost:8123")
	require.Error(t, err)
	require.Contains(t, out, "prohibited")
	out, err = func() (string, error) {
		b, err := client(t, closed, "ssh", "-o", "ExitOnForwardFailure=yes", "-R", "0:localhost:22", sandbox.SSHName, "true").CombinedOutput()
		return string(b), err
	}()
	require.Error(t, err, "the guest must not be able to reach this machine: %s", out)

	open := sshInto(t, sandbox.SSHOptions{Forward: true})
	out, err = through(open, "localhost:8123")
	require.NoError(t, err, out)
	require.Contains(t, out, "page")
	out, err = through(open, "192.0.2.1:80")
	require.Error(t, err)
	require.Contains(t, out, "prohibited")
}

func TestSSHEndsCommandsWithTheirClientAndItselfWithTheSession(t *testing.T) {
	s := newSession(t, newHost(t, sandbox.HostOptions{}), sandbox.Options{})
	c, err := s.SSH(t.Context(), sandbox.SSHOptions{})
	require.NoError(t, err)
	cmd := client(t, c, "ssh", sandbox.SSHName, "echo begun; exec sleep 4321")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = out.Read(make([]byte, 16))
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	eventually(t, 20*time.Second, "the command's end", func() bool {
		_, exit := try(t, s, sandbox.Command{Shell: "pgrep -f 'sleep 432[1]'"})
		return exit.Code != 0
	})
	running := client(t, c, "ssh", sandbox.SSHName, "echo begun; exec sleep 4321")
	out, err = running.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, running.Start())
	_, err = out.Read(make([]byte, 16))
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.Error(t, running.Wait())
	require.NoFileExists(t, c.ConfigFile)
	_, err = net.Dial("tcp", c.Addr)
	require.Error(t, err)
}

func TestTheSSHCommandOpensASessionAndEndsWithItsCode(t *testing.T) {
	path, err := filepath.Abs(serverPath)
	require.NoError(t, err)
	env := append(os.Environ(), "XDG_RUNTIME_DIR="+runtimeDir(t))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	run := exec.CommandContext(ctx, path, "ssh", "--workspace=none", "--", "echo out; cat; exit 7")
	run.Env, run.Stdin = env, strings.NewReader("in\n")
	var stdout, stderr bytes.Buffer
	run.Stdout, run.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	require.ErrorAs(t, run.Run(), &exit, stderr.String())
	require.Equal(t, 7, exit.ExitCode(), stderr.String())
	require.Equal(t, "out\nin\n", stdout.String())

	show := exec.CommandContext(ctx, path, "ssh", "--workspace=none", "--print")
	show.Env = env
	out, err := show.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, show.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "hi\n", output(t, exec.CommandContext(ctx, "sh", "-c", strings.TrimSpace(line)+" echo hi")))
	require.NoError(t, show.Process.Signal(os.Interrupt))
	require.NoError(t, show.Wait())
	_, file, _ := strings.Cut(strings.TrimSpace(line), "-F ")
	file, _, _ = strings.Cut(file, " ")
	require.NoFileExists(t, file)
}

func TestSSHIntoASessionOfAnotherProcessGoesWithTheProgramThatAskedForIt(t *testing.T) {
	s := sharedSession(t)
	path, err := filepath.Abs(serverPath)
	require.NoError(t, err)
	servers := func() []string {
		list, err := filepath.Glob(filepath.Join(sharedDir, s.ID(), "ssh-*"))
		require.NoError(t, err)
		return list
	}
	run := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), path, append([]string{"attach", s.ID(), "--ssh"}, args...)...)
		cmd.Env, cmd.Stderr = append(os.Environ(), "GONDOLIN_PATHS_RUNTIME="+sharedDir), testWriter{t}
		return cmd
	}
	require.Equal(t, "marked", sh(t, s, "echo marked | tee /root/mark"))
	before := servers()
	cmd := run("--", "cat - /root/mark; exit 7")
	cmd.Stdin = strings.NewReader("in\n")
	out, err := cmd.Output()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 7, exit.ExitCode())
	require.Equal(t, "in\nmarked\n", string(out))

	for _, end := range []os.Signal{os.Interrupt, os.Kill} {
		show := run("--print")
		out, err := show.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, show.Start())
		line, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "marked\n", output(t, exec.CommandContext(t.Context(), "sh", "-c", strings.TrimSpace(line)+" cat /root/mark")))
		require.NoError(t, show.Process.Signal(end))
		_ = show.Wait()
	}
	eventually(t, 10*time.Second, "no server is left", func() bool { return len(servers()) == len(before) })
}

func TestWhatComesOverSSHIsToldAndCanBeRefused(t *testing.T) {
	var mu sync.Mutex
	var told []string
	s := newSession(t, newHost(t, sandbox.HostOptions{}), sandbox.Options{Visited: func(c sandbox.Command) (func(sandbox.Exit, error), error) {
		name := c.Shell + strings.Join(c.Argv, " ")
		if strings.Contains(name, "forbidden") {
			return nil, errors.New("not this one")
		}
		return func(exit sandbox.Exit, err error) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, fmt.Sprintf("%s -> %d %v", name, exit.Code, err))
		}, nil
	}})
	c, err := s.SSH(t.Context(), sandbox.SSHOptions{})
	require.NoError(t, err)
	require.Error(t, client(t, c, "ssh", sandbox.SSHName, "exit 3").Run())
	out, err := client(t, c, "ssh", sandbox.SSHName, "echo forbidden").CombinedOutput()
	require.Error(t, err)
	require.Equal(t, "gondolin: not this one\n", string(out))
	batch := client(t, c, "sftp", "-b", "-", sandbox.SSHName)
	batch.Stdin = strings.NewReader("ls /\n")
	output(t, batch)
	require.NoError(t, c.Close())
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []string{"exit 3 -> 3 <nil>", "sftp -> 0 <nil>"}, told)
}
