package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/gondolin-go/gondolin/sandbox"
)

// loginShell is what a person gets who names no command: bash, or sh where there is none.
const loginShell = `if command -v bash >/dev/null 2>&1; then exec bash; else exec sh; fi`

// front joins one command in a machine to this program's input, output and signals.
type front struct {
	in       io.Reader
	out, err io.Writer
	tty      *os.File // the terminal that the command gets; nil: none
	start    func(context.Context, sandbox.Command) (*sandbox.Process, error)
	// goesOn says that the command can be left running; how tells how to come back to it. Without
	// it the detach key ends the command.
	goesOn   bool
	how      func(p *sandbox.Process) string
	detached bool // run has left the command running
}

func newFront(cmd *cobra.Command) *front {
	return &front{in: cmd.InOrStdin(), out: cmd.OutOrStdout(), err: cmd.ErrOrStderr()}
}

// wantTerminal gives the command a terminal: because the user said so, which needs one here,
// or because it is for a person and one is here.
func (f *front) wantTerminal(cmd *cobra.Command, asked, person bool) error {
	if !asked && !person {
		return nil
	}
	f.tty = terminalOf(f.in)
	if asked && f.tty == nil {
		return usageError{named(cmd, errors.New("--tty needs a terminal as standard input"))}
	}
	return nil
}

// run runs the command to its end. Its exit code is a codeError, and so is a failure of ours.
func (f *front) run(ctx context.Context, cmd sandbox.Command) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	if f.tty == nil { // a terminal must be given back first
		// As in main, the second one ends the program at once.
		defer context.AfterFunc(ctx, func() { signal.Stop(signals) })()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// What is typed after the command's end is for whoever reads here next.
	in, err := wakeable(f.in)
	if err != nil {
		return codeError{err, exitNotRun}
	}
	if c, ok := in.(*input); ok {
		defer c.Close()
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, f.out, f.err
	var term *terminal
	left := make(chan struct{})
	if f.tty != nil {
		if term, err = takeTerminal(f.tty); err != nil {
			return codeError{err, exitNotRun}
		}
		defer term.Close()
		cmd.Stdin = &keys{in: in, left: left, over: ctx.Done()}
		term.describe(&cmd)
		cmd.Retain = f.goesOn
	}
	p, err := f.start(ctx, cmd)
	if err != nil {
		return notStarted(err)
	}
	exit, err := f.follow(ctx, p, term, left, cancel)
	if term != nil {
		if rerr := term.Close(); rerr != nil && err == nil {
			err = fmt.Errorf("giving the terminal back: %w", rerr)
		}
	}
	select {
	case s := <-signals:
		if n, ok := s.(syscall.Signal); ok && ctx.Err() != nil {
			return codeError{code: exitBySignal + int(n)}
		}
	default:
	}
	return f.outcome(p, exit, err, wasLeft(left))
}

// outcome tells how a command came out, and returns it as run does.
func (f *front) outcome(p *sandbox.Process, exit sandbox.Exit, err error, left bool) error {
	switch {
	case errors.Is(err, sandbox.ErrDetached):
		f.detached = true
		fmt.Fprintf(f.err, "\ngondolin-mcp: detached; the command goes on: %s\n", f.how(p))
		return nil
	case err != nil && left:
		fmt.Fprint(f.err, "\ngondolin-mcp: left; the session ends\n")
		return nil
	case err != nil:
		return codeError{err, exitNotRun}
	case exit.Code != 0:
		if exit.Note != "" {
			fmt.Fprintf(f.err, "gondolin-mcp: %s\n", exit.Note)
		}
		return codeError{code: exit.Code}
	}
	return nil
}

// follow waits for the command's end, hands on the terminal's size, and leaves at the detach key.
func (f *front) follow(ctx context.Context, p *sandbox.Process, term *terminal, left <-chan struct{}, cancel func()) (sandbox.Exit, error) {
	done := make(chan struct{})
	var exit sandbox.Exit
	var err error
	go func() {
		defer close(done)
		exit, err = p.Wait()
	}()
	var winch chan os.Signal
	if term != nil {
		winch = term.winch
	}
	for {
		select {
		case <-done:
			return exit, err
		case <-winch:
			_ = p.Resize(ctx, term.size()) // one that fails shows in the end
		case <-left:
			left = nil
			if f.goesOn && p.Detach(ctx) == nil {
				continue
			}
			cancel()
		}
	}
}

func wasLeft(left <-chan struct{}) bool {
	select {
	case <-left:
		return true
	default:
		return false
	}
}

// notStarted says, as a shell does, whether there is no such command, it cannot be started, or
// something else went wrong.
func notStarted(err error) error {
	var file *sandbox.FileError
	code := exitNotRun
	if errors.As(err, &file) && file.Op == sandbox.OpStarting {
		if code = exitNotStarted; errors.Is(err, fs.ErrNotExist) {
			code = exitNotFound
		}
	}
	return codeError{err, code}
}

func withVariable(env map[string]string, name, value string) map[string]string {
	merged := map[string]string{name: value}
	for k, v := range env {
		merged[k] = v
	}
	return merged
}
