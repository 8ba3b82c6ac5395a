package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/images"
	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/tools"
)

const exitCodesHelp = `

Exit code: the command's own, or 128 and the number of the signal that ended it; 125 when
gondolin-mcp itself failed; 126 when the command cannot be started; 127 when there is none of
that name; 2 for a mistake in the command line or the configuration.`

// commandFlags are those of commands that run one in a machine.
type commandFlags struct {
	cwd  string
	tty  bool
	env  []string // of exec and attach; run and shell have the configuration's
	user string
}

func (f *commandFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.cwd, "cwd", "", "working `directory` of the command in the machine")
	cmd.Flags().BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal; Ctrl-] leaves it")
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return flagError(c, fmt.Errorf("%w (what belongs to the command goes after --)", err))
	})
}

// command is what is to run; a shell for a person when nothing is named.
func (f *commandFlags) command(args []string) (sandbox.Command, error) {
	c := sandbox.Command{Argv: args, Dir: f.cwd, User: f.user}
	if len(args) == 0 {
		c.Shell = loginShell
	}
	for _, v := range f.env {
		name, value, ok := strings.Cut(v, "=")
		if !ok || name == "" {
			return c, usageError{fmt.Errorf("--env %q: write NAME=VALUE", v)}
		}
		c.Env = withVariable(c.Env, name, value)
	}
	return c, nil
}

// newSession says what session a command makes for itself.
type newSession struct {
	name     string
	snapshot string // that it goes on from
}

func (n *newSession) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&n.name, "name", "", "`name` of the session in lists and for attach")
	cmd.Flags().StringVar(&n.snapshot, "snapshot", "", "go on from this snapshot, with its processes and disk")
	if err := cmd.RegisterFlagCompletionFunc("snapshot", completeSnapshots); err != nil {
		panic(err) // a command that was put together wrongly
	}
}

// setBySnapshot are flags for what a machine that goes on from a snapshot has of it.
var setBySnapshot = []string{"image", "root", "cpus", "memory", "disk", "processes"}

func (n *newSession) check(cmd *cobra.Command) error {
	if f := cmd.Flags().Lookup("snapshot"); f.Changed && n.snapshot == "" {
		return usageError{named(cmd, errors.New("--snapshot is empty: give it a name, or leave it out"))}
	}
	if n.snapshot == "" {
		return nil
	}
	for _, name := range setBySnapshot {
		if f := cmd.Flags().Lookup(name); f != nil && f.Changed {
			return usageError{named(cmd, fmt.Errorf("--%s does not go with --snapshot: the machine has what it had when the snapshot was made", name))}
		}
	}
	return nil
}

// make makes the session.
func (n *newSession) make(ctx context.Context, boxes *sandboxes) (*session, error) {
	o := tools.SessionOptions{Label: n.name}
	if n.snapshot != "" {
		return boxes.restore(ctx, n.snapshot, o)
	}
	return boxes.create(ctx, o)
}

func (a *app) newRunCommand() *cobra.Command {
	var f commandFlags
	var n newSession
	cmd := a.withFlags(&cobra.Command{
		Use: "run [flags] -- COMMAND [ARGUMENT...]", Short: "Run a command in a machine of its own, which is then thrown away",
		Long: `Run a command in a new machine and throw that away. Standard input, output and error are the
command's, byte by byte; with --tty it gets a terminal. The machine reaches what --allow-host and
the configuration say, and sees what --mount gives it; see also gondolin-mcp config.

While it runs, the session is in gondolin-mcp list.` + exitCodesHelp,
		Example: `  gondolin-mcp run -- uname -a
  gondolin-mcp run --workspace=. -- make test
  gondolin-mcp run --allow-host api.example.com --secret API_TOKEN@api.example.com -- ./client
  tar c . | gondolin-mcp run -- tar t`,
		Args: arguments(1, anyNumber),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runOnce(cmd, &f, &n, args, false)
		},
	})
	f.add(cmd)
	n.add(cmd)
	return cmd
}

func (a *app) newShellCommand() *cobra.Command {
	var f commandFlags
	var n newSession
	cmd := a.withFlags(&cobra.Command{
		Use: "shell [flags] [SESSION]", Short: "Open a shell in a new machine, or in one that runs",
		Long: `Open a shell in a new machine, which is thrown away when the shell ends, or in the machine of a
session that runs. With a terminal as standard input the shell has one, else it reads commands.
Ctrl-] leaves: a new machine ends with that; in a session of another process the shell goes on
(see gondolin-mcp attach). With --ssh it is this computer's ssh that opens a new machine, as
gondolin-mcp ssh does.` + exitCodesHelp,
		Example: `  gondolin-mcp shell --workspace=.
  gondolin-mcp shell 4uuv`,
		Args: arguments(0, 1), ValidArgsFunction: a.completeSessions(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if err := onlyNew(cmd); err != nil {
					return err
				}
				return a.join(cmd, args[0], &f, nil, true, "")
			}
			// Flags of the configuration are texts.
			if ssh, _ := strconv.ParseBool(cmd.Flags().Lookup("ssh").Value.String()); ssh {
				for _, flag := range []string{"cwd", "tty"} {
					if cmd.Flags().Changed(flag) {
						return usageError{named(cmd, fmt.Errorf("--%s does not go with --ssh: leave one of them out", flag))}
					}
				}
				return a.ssh(cmd, nil, false, &n)
			}
			return a.runOnce(cmd, &f, &n, nil, true)
		},
	})
	f.add(cmd)
	n.add(cmd)
	return cmd
}

// forAny are flags of the configuration that also mean something for a session that exists.
var forAny = map[string]bool{"config": true, "cache-dir": true, "runtime-dir": true, "log-level": true, "log-format": true, "log-file": true, "cwd": true, "tty": true}

// onlyNew refuses flags that only a new machine can follow.
func onlyNew(cmd *cobra.Command) error {
	var wrong []string
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if !forAny[f.Name] {
			wrong = append(wrong, "--"+f.Name)
		}
	})
	if len(wrong) == 0 {
		return nil
	}
	hint := ""
	for _, name := range []string{"ssh", "ssh-forward", "env", "user"} {
		if slices.Contains(wrong, "--"+name) {
			hint = "; for --ssh, --env and --user there is gondolin-mcp attach"
		}
	}
	return usageError{named(cmd, fmt.Errorf("%s: a session that runs keeps its settings; leave it out, or the session%s", strings.Join(wrong, ", "), hint))}
}

// runOnce makes a session, runs a command in it, and ends it.
func (a *app) runOnce(cmd *cobra.Command, f *commandFlags, n *newSession, args []string, person bool) error {
	if err := n.check(cmd); err != nil {
		return err
	}
	front := newFront(cmd)
	if err := front.wantTerminal(cmd, f.tty, person); err != nil {
		return err
	}
	command, err := f.command(args)
	if err != nil {
		return err
	}
	config, err := a.loadHere()
	if err != nil {
		return err
	}
	s, end, err := sessionFor(cmd, config, n)
	if err != nil {
		return err
	}
	defer end()
	var watched sync.WaitGroup
	defer watched.Wait()
	front.start = func(ctx context.Context, c sandbox.Command) (*sandbox.Process, error) {
		ended, err := s.record.follow(c)
		if err != nil {
			return nil, err
		}
		p, err := s.Start(ctx, c)
		if err != nil {
			ended(sandbox.Exit{}, err)
			return nil, err
		}
		watched.Go(func() { ended(p.Wait()) })
		return p, nil
	}
	err = front.run(cmd.Context(), command)
	tellDenials(cmd.ErrOrStderr(), s.Denials(time.Time{}))
	return errors.Join(err, s.closeFor("the command ended"))
}

// sessionFor makes a session for one command; end ends it and all that was opened for it.
func sessionFor(cmd *cobra.Command, config *configs.Config, n *newSession) (_ *session, end func(), err error) {
	quietly(config)
	log, closeLog, err := newLogger(config, cmd.ErrOrStderr())
	if err != nil {
		return nil, nil, codeError{err, exitNotRun}
	}
	boxes := newSandboxes(cmd.Context(), config, log)
	boxes.program, boxes.once = cmd.Name(), true
	boxes.images.build = buildShown(cmd.ErrOrStderr())
	if !log.Enabled(cmd.Context(), slog.LevelInfo) {
		boxes.tell = func(format string, args ...any) {
			fmt.Fprintf(cmd.ErrOrStderr(), "gondolin-mcp: "+format+"\n", args...)
		}
	}
	end = func() {
		boxes.close()
		closeLog()
	}
	boxes.pruneRecords()
	s, err := n.make(cmd.Context(), boxes)
	switch {
	case err == nil:
		return s, end, nil
	case cmd.Context().Err() != nil:
		err = codeError{code: exitInterrupted}
	default:
		err = codeError{err, exitNotRun}
	}
	end()
	return nil, nil, err
}

// quietly leaves out of the log what a server tells, unless a level was chosen.
func quietly(c *configs.Config) {
	if c.Origins()["log.level"].Kind == configs.KindDefault {
		c.Log.Level = "warn"
	}
}

// buildShown builds the default image with its progress on the terminal.
func buildShown(w io.Writer) func(context.Context, *images.Store, images.Spec, images.Progress) (*images.Image, error) {
	return func(ctx context.Context, s *images.Store, spec images.Spec, _ images.Progress) (*images.Image, error) {
		fmt.Fprintln(w, "gondolin-mcp: the default image is missing; building it, once")
		return images.Build(ctx, s, spec, images.NewProgress(w))
	}
}

// toldDenials is how many refusals are told after a command.
const toldDenials = 10

// tellDenials says what the host refused the machine.
func tellDenials(w io.Writer, list []sandbox.Denial) {
	more := len(list) - toldDenials
	if more > 0 {
		list = list[more:]
	}
	for _, d := range list {
		line := fmt.Sprintf("gondolin-mcp: refused: %s %s: %s", d.What, d.Path, d.Reason)
		if d.Remedy != "" {
			line += ". " + d.Remedy
		}
		fmt.Fprintln(w, harmless(line))
	}
	if more > 0 {
		fmt.Fprintf(w, "gondolin-mcp: %d more were refused before; see gondolin-mcp audit show --refused\n", more)
	}
}
