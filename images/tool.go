package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// toolPackage is the Debian package of an external program.
func toolPackage(tool string) string {
	switch tool {
	case "apt-get", "apt-cache", "apt-config":
		return "apt"
	case "dpkg-deb", "dpkg":
		return "dpkg"
	case "xz":
		return "xz-utils"
	}
	return tool
}

// lookTool finds a program, also in the sbin directories that a user's PATH often lacks.
func lookTool(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("the program %s is missing: install it (on Debian and Ubuntu: `apt-get install %s`)", name, toolPackage(name))
}

// tail keeps the last bytes of what a program says, for the error.
type tail struct{ buf []byte }

func (t *tail) Write(p []byte) (int, error) {
	const keep = 4096
	t.buf = append(t.buf, p...)
	if len(t.buf) > keep {
		t.buf = t.buf[len(t.buf)-keep:]
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.TrimSpace(stripCredentials(string(t.buf))) }

// command prepares an external program in a C locale; it gets a chance to clean up when the context
// ends, and no more than that.
func command(ctx context.Context, dir, name string, args ...string) (*exec.Cmd, error) {
	path, err := lookTool(name)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	// A group of its own, so that the programs that it started hear of the end as well: mmdebstrap waits for
	// them before it cleans up.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGINT) }
	cmd.WaitDelay = 20 * time.Second
	return cmd, nil
}

// reap waits for a started program and makes sure that nothing of its group outlives a cancelled one.
func reap(ctx context.Context, cmd *exec.Cmd) error {
	err := cmd.Wait()
	if ctx.Err() != nil {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // mostly there is no one left
	}
	return err
}

// run runs an external program to its end and returns what it printed.
func run(ctx context.Context, dir string, stdin io.Reader, name string, args ...string) ([]byte, error) {
	cmd, err := command(ctx, dir, name, args...)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	var said tail
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &said
	err = cmd.Start()
	if err == nil {
		err = reap(ctx, cmd)
	}
	if err != nil {
		return nil, toolError(ctx, name, args, err, &said)
	}
	return out.Bytes(), nil
}

func toolError(ctx context.Context, name string, args []string, err error, said *tail) error {
	if ctx.Err() != nil {
		return fmt.Errorf("running %s: %w", name, ctx.Err())
	}
	what := name
	for _, a := range args {
		if !strings.HasPrefix(a, "-") && !strings.Contains(a, "=") {
			what += " " + a
			break
		}
	}
	if text := said.String(); text != "" {
		return fmt.Errorf("running %s: %w: %w", what, err, errors.New(text))
	}
	return fmt.Errorf("running %s: %w", what, err)
}
