package secret

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/zalando/go-keyring"
)

// Options are what a Store uses of its surroundings. The zero value is useful.
type Options struct {
	Now       func() time.Time                              // nil: time.Now
	LookupEnv func(string) (string, bool)                   // nil: os.LookupEnv
	Keyring   func(service, account string) (string, error) // nil: the operating system's
}

// fetch gets the value from its source. What went wrong is said without anything
// that the source gave.
func (f From) fetch(ctx context.Context, o Options) (string, error) {
	switch {
	case f.Env != "":
		v, ok := o.LookupEnv(f.Env)
		if !ok {
			return "", fmt.Errorf("the environment variable %s is not set", f.Env)
		}
		return trim(v), nil
	case f.File != "":
		return readFile(f.File)
	case len(f.Command) > 0:
		return f.run(ctx)
	}
	service, account, _ := strings.Cut(f.Keyring, "/")
	v, err := o.Keyring(service, account)
	if errors.Is(err, keyring.ErrNotFound) {
		return "", fmt.Errorf("the keyring has no entry %s", quote(f.Keyring))
	} else if err != nil {
		return "", errors.New("the keyring cannot be read: is it there and unlocked?")
	}
	return trim(v), nil
}

// lifetime is how long a value is good for; 0 is for ever.
func (f From) lifetime() time.Duration {
	if f.Lifetime == 0 && f.File != "" {
		return 5 * time.Second
	}
	return f.Lifetime
}

func readFile(path string) (string, error) {
	file, err := os.Open(path)
	var perr *fs.PathError
	if errors.As(err, &perr) {
		return "", fmt.Errorf("the file %s: %w", quote(path), perr.Err)
	} else if err != nil {
		return "", fmt.Errorf("the file %s cannot be opened", quote(path))
	}
	defer func() { _ = file.Close() }()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no regular file", quote(path))
	}
	b, err := io.ReadAll(io.LimitReader(file, maxValue+3))
	if err != nil {
		return "", fmt.Errorf("the file %s cannot be read", quote(path))
	}
	return trim(string(b)), nil
}

// run runs the command. Its standard error is not shown, because programs
// that handle secrets print them there as well.
func (f From) run(ctx context.Context) (string, error) {
	timeout := f.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, f.Command[0], f.Command[1:]...)
	out := &limited{left: maxValue + 3}
	cmd.Stdout = out
	cmd.WaitDelay = time.Second // for children that keep the pipe open
	confine(cmd)
	err := cmd.Run()
	program := quote(f.Command[0])
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return "", fmt.Errorf("the command %s did not end within %s", program, timeout)
	case ctx.Err() != nil:
		return "", fmt.Errorf("the command %s was not waited for: %w", program, ctx.Err())
	case errors.As(err, &exit):
		return "", fmt.Errorf("the command %s ended with %s (run it by hand to see why)", program, exit.ProcessState)
	case errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("the command %s is not there", program)
	case out.left < 0:
		return "", fmt.Errorf("the command %s printed more than %d bytes", program, maxValue)
	case err != nil:
		return "", fmt.Errorf("the command %s cannot be run", program)
	}
	return trim(string(out.data)), nil
}

// limited keeps so many bytes and drops the rest.
type limited struct {
	data []byte
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if n := min(len(p), max(l.left, 0)); n > 0 {
		l.data = append(l.data, p[:n]...)
	}
	l.left -= len(p)
	return len(p), nil
}

// trim takes off the line break with which files and outputs end.
func trim(s string) string { return strings.TrimSuffix(strings.TrimSuffix(s, "\n"), "\r") }
