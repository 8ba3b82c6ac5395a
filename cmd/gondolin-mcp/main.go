// Command gondolin-mcp is an MCP server that gives a coding agent a virtual
// machine of its own: tools to run commands and to read and write files in it.
//
//	gondolin-mcp serve            speak MCP on standard input and output
//	gondolin-mcp run -- CMD       run a command in a machine that is thrown away
//	gondolin-mcp shell            open a shell in one
//	gondolin-mcp list, inspect, logs, attach, exec, cp, kill
//	                              what is done with sessions of any of these processes
//	gondolin-mcp snapshot …       list, show and remove snapshots
//	gondolin-mcp gc               remove what nobody needs any more
//	gondolin-mcp images …         build and look after guest images
//	gondolin-mcp config …         show, check and explain the configuration
//	gondolin-mcp policy …         check and explain what machines may reach
//	gondolin-mcp audit …          look at and verify the record of sessions
//	gondolin-mcp doctor           check this machine and say what to do
//	gondolin-mcp ssh              open a session with this computer's SSH client
//
// Without a command and with an input that is no terminal it serves, so that a
// client needs to know nothing but the program's name.
//
// # Wiring
//
// This package only joins the others: configs says what is wanted, images has
// what machines run, sandbox runs them, tools speaks MCP. What lies between is in
// sandboxes.go, which fits sandbox to what tools asks for, in mounts.go and roots.go,
// which decide what of this machine's files a session sees, in network.go and record.go,
// which make a session's network and record, in reload.go, which takes up changes of
// the policy, in reach.go, which opens ways into a session, and in keeper.go, which builds the default image when it is missing. The
// commands that work with sessions share front.go, which joins a command in a machine to this
// program's terminal, and terminal.go.
//
// # Signals
//
// INT and TERM end a command, and so does HUP, except that a server reads its
// network policy again.
//
// # Output
//
// While it serves, standard output carries MCP messages and nothing else: the
// descriptor is set aside first and standard error put in its place, so that
// neither a library nor a child process can reach it. Logs go to standard error
// or to log.file.
//
// # Exit codes
//
// 0 is success, which the end of the input and a signal are to a server; 1 a
// failure; 2 a mistake in the command line or the configuration. run, shell, attach, exec and
// ssh end with the command's own code, 128 and the signal's number when a signal ended it; 125 when
// it is gondolin-mcp that failed, 126 when the command cannot be started, and 127 when there is
// none of that name.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/gondolin-go/gondolin/configs"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// A second signal ends the program at once, should the orderly end take too long.
	context.AfterFunc(ctx, stop)
	if os.Getenv("GOGC") == "" {
		// What a flood of requests leaves as garbage is half of what this process takes at most.
		debug.SetGCPercent(50)
	}
	os.Exit(run(ctx, os.Args[1:], os.Stderr))
}

// Exit codes.
const (
	exitOK = iota
	exitFailure
	exitUsage

	exitNotRun      = 125 // of commands that run one: it is us who failed
	exitNotStarted  = 126
	exitNotFound    = 127
	exitBySignal    = 128 // and the signal's number
	exitInterrupted = exitBySignal + int(syscall.SIGINT)
)

// codeError ends the program with a code of its own; a nil error says nothing.
type codeError struct {
	error
	code int
}

func (e codeError) Unwrap() error { return e.error }

func (e codeError) Error() string {
	if e.error == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.error.Error()
}

func run(ctx context.Context, args []string, stderr io.Writer) int {
	root, app := newRoot(os.Environ())
	root.SetArgs(args)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		err = app.wrong
	}
	if err == nil {
		return exitOK
	}
	if quiet := (quietError{}); errors.As(err, &quiet) {
		return exitFailure
	}
	code := codeError{code: exitFailure}
	if errors.As(err, &code) && code.error == nil {
		return code.code
	}
	// Names of files and messages of a guest may be in it.
	lines := strings.Split(strings.ReplaceAll(err.Error(), "\t", "  "), "\n")
	for i, line := range lines {
		lines[i] = harmless(line)
	}
	fmt.Fprintf(stderr, "gondolin-mcp: %s\n", strings.Join(lines, "\n  "))
	var usage usageError
	var config *configs.Error
	if errors.As(err, &usage) || errors.As(err, &config) {
		return exitUsage
	}
	return code.code
}
