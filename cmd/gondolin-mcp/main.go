// Command gondolin-mcp is an MCP server that gives a coding agent a virtual
// machine of its own: tools to run commands and to read and write files in it.
//
//	gondolin-mcp serve            speak MCP on standard input and output
//	gondolin-mcp images …         build and look after guest images
//	gondolin-mcp config …         show, check and explain the configuration
//	gondolin-mcp policy …         check and explain what machines may reach
//	gondolin-mcp audit …          look at and verify the record of sessions
//	gondolin-mcp doctor           check this machine and say what to do
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
// the policy, and in keeper.go, which builds the default image when it is missing.
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
// failure; 2 a mistake in the command line or the configuration.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/gondolin-go/gondolin/configs"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// A second signal ends the program at once, should the orderly end take too long.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stderr))
}

// Exit codes.
const (
	exitOK = iota
	exitFailure
	exitUsage
)

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
	fmt.Fprintf(stderr, "gondolin-mcp: %s\n", strings.ReplaceAll(err.Error(), "\n", "\n  "))
	var usage usageError
	var config *configs.Error
	if errors.As(err, &usage) || errors.As(err, &config) {
		return exitUsage
	}
	return exitFailure
}
