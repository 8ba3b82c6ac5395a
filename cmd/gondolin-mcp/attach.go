package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/sandbox"
)

// registry is where the sessions of all processes are found.
type registry struct {
	config *configs.Config
	log    *slog.Logger
	close  func()
}

// openRegistry reads the configuration for a command that works with sessions of other processes.
func (a *app) openRegistry(cmd *cobra.Command) (*registry, error) {
	c, err := a.load()
	if err != nil {
		return nil, err
	}
	quietly(c)
	log, closeLog, err := newLogger(c, cmd.ErrOrStderr())
	if err != nil {
		return nil, err
	}
	return &registry{config: c, log: log, close: closeLog}, nil
}

func (r *registry) list(ctx context.Context) ([]sandbox.Info, error) {
	return sandbox.List(ctx, r.config.Paths.Runtime, r.log)
}

func (r *registry) attach(ctx context.Context, name string) (*sandbox.Attached, error) {
	return sandbox.Attach(ctx, r.config.Paths.Runtime, name, r.log)
}

// registryFlags are the flags with which a command finds the registry.
func (a *app) registryFlags(cmd *cobra.Command) *cobra.Command {
	for _, name := range []string{"runtime-dir", "audit-dir"} {
		cmd.Flags().AddFlag(a.flags.Lookup(name))
	}
	return cmd
}

func (f *commandFlags) addForSession(cmd *cobra.Command) {
	f.add(cmd)
	cmd.Flags().StringArrayVar(&f.env, "env", nil, "environment variable `NAME=VALUE` of the command, may be given several times")
	cmd.Flags().StringVar(&f.user, "user", "", "run the command as this `user` of the machine (default: the session's)")
}

func (a *app) newExecCommand() *cobra.Command {
	var f commandFlags
	cmd := a.registryFlags(&cobra.Command{
		Use: "exec SESSION -- COMMAND [ARGUMENT...]", Short: "Run a command in a session that runs",
		Long: `Run a command in the machine of a session, whichever process holds it. A session is named by its
id, the beginning of that, or its name (see gondolin-mcp list). Standard input, output and error
are the command's, byte by byte. It has the session's environment, user and directory unless flags
say otherwise, and the session's network and mounts in any case. When this program ends, so does the command.` + exitCodesHelp,
		Example: "  gondolin-mcp exec 4uuv -- ps aux",
		Args:    arguments(2, anyNumber), ValidArgsFunction: a.completeSessions(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.join(cmd, args[0], &f, args[1:], false, "")
		},
	})
	f.addForSession(cmd)
	return cmd
}

func (a *app) newAttachCommand() *cobra.Command {
	var f commandFlags
	var process string
	var over sshFlags
	cmd := a.registryFlags(&cobra.Command{
		Use: "attach SESSION [-- COMMAND [ARGUMENT...]]", Short: "Work in a session that runs: a shell, a command, or one that was left",
		Long: `Open a shell, or run a command, with this terminal in the machine of a session. Ctrl-] leaves: the
command goes on, and --process takes it up again with the latest of its output. What it writes
meanwhile is kept up to 1 MiB; then it waits for somebody to read it. When this program ends
in another way, so does the command.

With --ssh this computer's ssh does it, and with --print nothing is run: the command to paste is printed,
for ssh, scp, rsync and editors, and works until gondolin-mcp is interrupted. --ssh-forward lets clients
reach ports of the machine's loopback, which editors need.` + exitCodesHelp,
		Example: `  gondolin-mcp attach 4uuv
  gondolin-mcp attach 4uuv -- top
  gondolin-mcp attach 4uuv --process 17
  gondolin-mcp attach 4uuv --ssh --print --ssh-forward`,
		Args: arguments(1, anyNumber), ValidArgsFunction: a.completeSessions(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if over.any() {
				return a.joinSSH(cmd, args, &over)
			}
			if process != "" && len(args) > 1 {
				return usageError{named(cmd, fmt.Errorf("--process takes up a command that runs; leave %q out, or the flag", args[1]))}
			}
			return a.join(cmd, args[0], &f, args[1:], true, process)
		},
	})
	f.addForSession(cmd)
	cmd.Flags().StringVar(&process, "process", "", "take up this `process` of the session, which was left before")
	cmd.Flags().BoolVar(&over.on, "ssh", false, "with this computer's ssh")
	cmd.Flags().BoolVar(&over.show, "print", false, "with --ssh: print the command and wait")
	cmd.Flags().BoolVar(&over.forward, "ssh-forward", false, "with --ssh: let clients reach ports of the machine's loopback")
	return cmd
}

// visit attaches to a session for a command line that ends with the exit code of what it runs there.
func (a *app) visit(cmd *cobra.Command, name string) (_ *sandbox.Attached, leave func(), err error) {
	r, err := a.openRegistry(cmd)
	if err != nil {
		return nil, nil, err
	}
	s, err := r.attach(cmd.Context(), name)
	if err != nil {
		r.close()
		return nil, nil, codeError{err, exitNotRun}
	}
	return s, func() { s.Close(); r.close() }, nil
}

// sshFlags say how a session is opened over SSH.
type sshFlags struct{ on, show, forward bool }

func (f *sshFlags) any() bool { return f.on || f.show || f.forward }

// joinSSH opens a session of another process over SSH. args are its name and a command.
func (a *app) joinSSH(cmd *cobra.Command, args []string, f *sshFlags) error {
	if !f.on {
		return usageError{named(cmd, errors.New("--print and --ssh-forward are about SSH: give --ssh too"))}
	}
	for _, name := range []string{"process", "tty", "env", "user", "cwd"} {
		if cmd.Flags().Changed(name) {
			return usageError{named(cmd, fmt.Errorf("--%s is not for --ssh: leave one of them out", name))}
		}
	}
	client, err := sshClient(cmd, f.show, args[1:])
	if err != nil {
		return err
	}
	s, leave, err := a.visit(cmd, args[0])
	if err != nil {
		return err
	}
	defer leave()
	way, err := s.SSH(cmd.Context(), sandbox.SSHOptions{Forward: f.forward})
	if err != nil {
		return codeError{err, exitNotRun}
	}
	defer way.Close()
	return sshVia(cmd, client, way, f.show, args[1:], s.Done(), func() string { return fmt.Sprintf("session %s: %s", s.ID(), s.Reason()) })
}

// join runs a command in a session of another process, or takes up one that runs.
func (a *app) join(cmd *cobra.Command, name string, f *commandFlags, args []string, person bool, process string) error {
	front := newFront(cmd)
	if err := front.wantTerminal(cmd, f.tty, person); err != nil {
		return err
	}
	command, err := f.command(args)
	if err != nil {
		return err
	}
	s, leave, err := a.visit(cmd, name)
	if err != nil {
		return err
	}
	defer leave()
	front.goesOn = front.tty != nil
	front.how = func(p *sandbox.Process) string {
		return fmt.Sprintf("gondolin-mcp attach %s --process %s", s.ID(), p.ID())
	}
	var p *sandbox.Process
	front.start = func(ctx context.Context, c sandbox.Command) (*sandbox.Process, error) {
		if process == "" {
			p, err = s.Start(ctx, c)
			return p, err
		}
		if p, err = s.Rejoin(ctx, process, c); err == nil && c.TTY != nil {
			_ = p.Resize(ctx, *c.TTY) // a process without a terminal has no size
		}
		return p, err
	}
	err = front.run(cmd.Context(), command)
	if p != nil && process == "" && front.goesOn && !front.detached {
		// It was kept for coming back to it. One that was taken up may be an agent's, who asks for its output.
		_ = s.Release(cmd.Context(), p.ID())
	}
	return err
}
