package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/gondolin-go/gondolin/sandbox"
)

func (a *app) newSSHCommand() *cobra.Command {
	show, n := false, newSession{}
	cmd := a.withFlags(&cobra.Command{
		Use: "ssh [flags] [-- COMMAND...]", Short: "Open a session over SSH",
		Long: `Make a session and open it with this computer's ssh: a shell, or a command whose
exit code becomes that of gondolin-mcp. When that ends, so does the session. With --print
nothing is run: the command to paste is printed, for ssh, scp, rsync and editors, and the session
lives until gondolin-mcp is interrupted. --ssh-forward lets clients reach ports of the
machine's loopback, which editors need.` + exitCodesHelp,
		Args: func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); len(args) > 0 && dash != 0 {
				return usageError{named(cmd, fmt.Errorf("%q: this makes a new session, and its command goes after --; for one that runs there is gondolin-mcp attach %s --ssh", args[0], args[0]))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.ssh(cmd, args, show, &n) },
	})
	cmd.Flags().BoolVar(&show, "print", false, "print the command and wait")
	n.add(cmd)
	return cmd
}

func (a *app) ssh(cmd *cobra.Command, args []string, show bool, n *newSession) error {
	if err := n.check(cmd); err != nil {
		return err
	}
	client, err := sshClient(cmd, show, args)
	if err != nil {
		return err
	}
	config, err := a.loadHere()
	if err != nil {
		return err
	}
	config.SSH.Enabled = false // this one is opened below
	if n.snapshot == "" {
		n.name = firstOf(n.name, "ssh") // else it has the snapshot's
	}
	s, end, err := sessionFor(cmd, config, n)
	if err != nil {
		return err
	}
	defer end()
	way, err := s.SSH(cmd.Context(), sandbox.SSHOptions{Forward: config.SSH.Forward})
	if err != nil {
		return codeError{err, exitNotRun}
	}
	err = sshVia(cmd, client, way, show, args, s.Done(), func() string { return fmt.Sprintf("session %s ended: %s", s.ID(), s.Info().Reason) })
	if !show {
		tellDenials(cmd.ErrOrStderr(), s.Denials(time.Time{}))
	}
	return err
}

// sshClient finds this computer's client, which --print can do without, for a command line.
func sshClient(cmd *cobra.Command, show bool, command []string) (string, error) {
	client, err := exec.LookPath("ssh")
	switch {
	case show && len(command) > 0:
		return "", usageError{named(cmd, errors.New("--print runs no command: leave one of them out"))}
	case err != nil && !show:
		return "", codeError{fmt.Errorf("no SSH client: install OpenSSH's, or use --print: %w", err), exitNotFound}
	}
	return client, nil
}

// sshVia runs the client, or shows how and waits until the session is done, for the reason that why gives.
func sshVia(cmd *cobra.Command, client string, way *sandbox.SSH, show bool, command []string, done <-chan struct{}, why func() string) error {
	if show {
		fmt.Fprintln(cmd.OutOrStdout(), way.Command())
		select {
		case <-cmd.Context().Done():
			return nil
		case <-done:
			return codeError{errors.New(why()), exitNotRun}
		}
	}
	return runSSH(cmd.Context(), client, append(way.Argv("ssh")[1:], append([]string{sandbox.SSHName}, command...)...), cmd)
}

// runSSH runs the client on this program's terminal. Its interrupts are the client's: it hands
// them on.
func runSSH(ctx context.Context, client string, args []string, cmd *cobra.Command) error {
	c := exec.CommandContext(ctx, client, args...)
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.Stdin, c.Stdout, c.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	c.Env = os.Environ()
	err := c.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return codeError{code: exitBySignal + int(status.Signal())}
	}
	return codeError{code: exit.ExitCode()}
}
