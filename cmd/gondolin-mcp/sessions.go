package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/sandbox/audit"
)

// endTimeout is how long `kill` waits for the end of a session.
const endTimeout = 30 * time.Second

// sessionView is a session in JSON.
type sessionView struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	Holder      string    `json:"holder"`
	PID         int       `json:"pid"`
	Created     time.Time `json:"created"`
	LastUsed    time.Time `json:"last_used"`
	Image       string    `json:"image"`
	Accelerator string    `json:"accelerator"`
	Origin      string    `json:"origin"`
	StartMS     int64     `json:"start_ms"`
	Root        string    `json:"root"`
	CPUs        int       `json:"cpus"`
	MemoryMiB   int       `json:"memory_mib"`
	DiskMiB     int       `json:"disk_mib"`
	Processes   int       `json:"max_processes"`
	Dir         string    `json:"dir"`
	User        string    `json:"user"`
	Mounts      []string  `json:"mounts"`
	Commands    int       `json:"commands"`
}

func viewOf(i sandbox.Info) sessionView {
	v := sessionView{
		ID: i.ID, Name: i.Label, Holder: i.Holder, PID: i.PID, Created: i.Created, LastUsed: i.LastUsed, Image: i.Image,
		Accelerator: i.Accelerator, Origin: string(i.Origin), StartMS: i.Boot.Milliseconds(), Root: string(i.Root),
		CPUs: i.Limits.CPUs, MemoryMiB: i.Limits.MemoryMiB, DiskMiB: i.Limits.DiskMiB, Processes: i.Limits.Processes,
		Dir: i.Dir, User: i.User, Mounts: i.Mounts, Commands: i.Processes,
	}
	if v.Mounts == nil {
		v.Mounts = []string{}
	}
	return v
}

func (a *app) newListCommand() *cobra.Command {
	var asJSON, quiet bool
	cmd := a.registryFlags(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the sessions that run, of all processes of this user",
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.openRegistry(cmd)
			if err != nil {
				return err
			}
			defer r.close()
			list, lerr := r.list(cmd.Context()) // with those that do not answer beside the rest
			out := cmd.OutOrStdout()
			switch {
			case asJSON:
				views := []sessionView{}
				for _, i := range list {
					views = append(views, viewOf(i))
				}
				return errors.Join(printJSON(out, views), lerr)
			case quiet:
				for _, i := range list {
					fmt.Fprintln(out, i.ID)
				}
				return lerr
			}
			w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "SESSION\tNAME\tHOLDER\tAGE\tCPUS\tMEMORY\tCOMMANDS\tIMAGE")
			for _, i := range list {
				fmt.Fprintf(w, "%s\t%s\t%s (%d)\t%s\t%d\t%s\t%d\t%s\n", i.ID, orDash(harmless(i.Label)), i.Holder, i.PID, lasted(time.Since(i.Created)),
					i.Limits.CPUs, configs.Size(i.Limits.MemoryMiB), i.Processes, harmless(i.Image))
			}
			return errors.Join(w.Flush(), lerr)
		},
	})
	jsonFlag(cmd, &asJSON)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	return cmd
}

func orDash(s string) string { return firstOf(s, "-") }

// inspection is what `inspect` tells of a session.
type inspection struct {
	sessionView
	Processes []processView    `json:"processes"`
	Denials   []sandbox.Denial `json:"denials"`
}

type processView struct {
	ID       string    `json:"id"`
	Command  string    `json:"command"`
	Started  time.Time `json:"started"`
	Output   int64     `json:"output_bytes"`
	ExitCode *int      `json:"exit_code"` // null while it runs
}

func (a *app) newInspectCommand() *cobra.Command {
	var asJSON bool
	cmd := a.registryFlags(&cobra.Command{
		Use: "inspect SESSION", Short: "Show what a session is, what runs in it and what it was refused",
		Args: arguments(1, 1), ValidArgsFunction: a.completeSessions(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, args[0], func(s *sandbox.Attached) error {
				i, err := inspect(cmd.Context(), s)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), i)
				}
				return i.print(cmd.OutOrStdout())
			})
		},
	})
	jsonFlag(cmd, &asJSON)
	return cmd
}

// withSession attaches to a session for a while.
func (a *app) withSession(cmd *cobra.Command, name string, do func(*sandbox.Attached) error) error {
	r, err := a.openRegistry(cmd)
	if err != nil {
		return err
	}
	defer r.close()
	s, err := r.attach(cmd.Context(), name)
	if err != nil {
		return err
	}
	defer s.Close()
	return do(s)
}

func inspect(ctx context.Context, s *sandbox.Attached) (*inspection, error) {
	info, err := s.Info(ctx)
	if err != nil {
		return nil, err
	}
	jobs, err := s.Jobs(ctx)
	if err != nil {
		return nil, err
	}
	i := &inspection{sessionView: viewOf(info), Processes: []processView{}}
	for _, j := range jobs {
		p := processView{ID: j.ID, Command: j.Command, Started: j.Started, Output: j.Output}
		if j.Exit != nil {
			p.ExitCode = &j.Exit.Code
		}
		i.Processes = append(i.Processes, p)
	}
	i.Denials, err = s.Denials(ctx)
	return i, err
}

func (i *inspection) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(key, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", key, harmless(fmt.Sprintf(format, args...)))
	}
	line("session", "%s", i.ID)
	line("name", "%s", orDash(i.Name))
	line("held by", "%s, process %d", i.Holder, i.PID)
	line("created", "%s (%s, %s, ready after %s)", i.Created.Local().Format(time.RFC3339), i.Origin, i.Accelerator, lasted(time.Duration(i.StartMS)*time.Millisecond))
	line("last used", "%s", i.LastUsed.Local().Format(time.RFC3339))
	line("image", "%s", i.Image)
	line("root", "%s, %s of disk", i.Root, configs.Size(i.DiskMiB))
	line("size", "%s, %s of memory", counted(i.CPUs, "CPU"), configs.Size(i.MemoryMiB))
	line("user", "%s", i.User)
	line("directory", "%s", orDash(i.Dir))
	line("mounts", "%s", orDash(strings.Join(i.Mounts, " ")))
	for _, p := range i.Processes {
		state := "runs"
		if p.ExitCode != nil {
			state = fmt.Sprintf("ended with %d", *p.ExitCode)
		}
		line("process "+p.ID, "%s since %s: %s", state, p.Started.Local().Format("15:04:05"), p.Command)
	}
	for _, d := range i.Denials {
		line("refused", "%s %s: %s", d.What, d.Path, d.Reason)
	}
	return w.Flush()
}

// killed is one row of `kill --json`.
type killed struct {
	ID string `json:"id"`
}

func (a *app) newKillCommand() *cobra.Command {
	var asJSON bool
	cmd := a.registryFlags(&cobra.Command{
		Use: "kill SESSION...", Short: "End sessions: their machines and all that runs in them",
		Long: `End sessions, whichever process holds them, and wait until nothing is left of them. An agent
whose session it was is told so; its next call makes a new one.`,
		Args: arguments(1, anyNumber), ValidArgsFunction: a.completeSessions(anyNumber),
		RunE: func(cmd *cobra.Command, args []string) error {
			rows, errs := []killed{}, []error(nil)
			for _, name := range args {
				err := a.withSession(cmd, name, func(s *sandbox.Attached) error {
					ctx, cancel := context.WithTimeoutCause(cmd.Context(), endTimeout, fmt.Errorf("session %s did not end within %s", s.ID(), endTimeout))
					defer cancel()
					if err := s.End(ctx, "the user ended it with `gondolin-mcp kill`"); err != nil {
						return err
					}
					rows = append(rows, killed{s.ID()})
					if !asJSON {
						fmt.Fprintln(cmd.OutOrStdout(), s.ID())
					}
					return nil
				})
				errs = append(errs, err)
			}
			if asJSON {
				errs = append(errs, printJSON(cmd.OutOrStdout(), rows))
			}
			return errors.Join(errs...)
		},
	})
	jsonFlag(cmd, &asJSON)
	return cmd
}

// logsView is `logs --json`.
type logsView struct {
	Session string           `json:"session"`
	Records []audit.Record   `json:"records"`
	Denials []sandbox.Denial `json:"denials"`
	Console string           `json:"console"`
}

func (a *app) newLogsCommand() *cobra.Command {
	var lines int
	var asJSON, console, follow bool
	cmd := a.registryFlags(&cobra.Command{
		Use: "logs SESSION", Short: "Show the latest of what a session ran and was refused, or what its machine printed",
		Long: `Show the end of a session's audit record: what ran, and what its network was allowed and refused. With
--console it is what the machine itself printed. Of a session that has ended the record is left,
by its whole id.`,
		Args: arguments(1, 1), ValidArgsFunction: a.completeSessions(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case lines < 1 || lines > 1000:
				return usageError{named(cmd, errors.New("--lines is from 1 to 1000"))}
			case follow && (asJSON || console):
				return usageError{named(cmd, errors.New("--follow goes with neither --json nor --console"))}
			}
			return a.logs(cmd, args[0], lines, asJSON, console, follow)
		},
	})
	cmd.Flags().IntVarP(&lines, "lines", "n", 50, "how many records or lines")
	cmd.Flags().BoolVar(&console, "console", false, "show what the machine printed")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is recorded later, until interrupted")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (a *app) logs(cmd *cobra.Command, name string, lines int, asJSON, console, follow bool) error {
	ctx := cmd.Context()
	r, err := a.openRegistry(cmd)
	if err != nil {
		return err
	}
	defer r.close()
	v := logsView{Session: name, Records: []audit.Record{}, Denials: []sandbox.Denial{}}
	s, aerr := r.attach(ctx, name)
	if aerr == nil {
		defer s.Close()
		v.Session = s.ID()
		if v.Console, err = s.Console(ctx, lines); err != nil {
			return err
		}
		if v.Denials, err = s.Denials(ctx); err != nil {
			return err
		}
	} else if console {
		return aerr
	}
	out := cmd.OutOrStdout()
	if console && !asJSON {
		if v.Console == "" {
			return nil // it has printed nothing
		}
		_, err := fmt.Fprintln(out, v.Console)
		return err
	}
	reader, last, rerr := lastRecords(r.config.Audit.Dir, v.Session, lines)
	if rerr != nil {
		if aerr != nil && errors.Is(rerr, fs.ErrNotExist) {
			return aerr // neither a session nor a record
		}
		if !errors.Is(rerr, fs.ErrNotExist) || !asJSON {
			return rerr
		}
	}
	v.Records = append(v.Records, last...)
	if asJSON {
		return printJSON(out, v)
	}
	for _, rec := range last {
		if err := printRecord(out, rec); err != nil {
			return err
		}
	}
	if follow {
		return followRecord(ctx, out, reader, printRecord, "")
	}
	return nil
}

// completeSessions completes up to n arguments that name sessions.
func (a *app) completeSessions(n int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		r, err := a.openRegistry(cmd)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer r.close()
		list, _ := r.list(cmd.Context()) // those that answer
		var words []cobra.Completion
		for _, i := range list {
			if !slices.Contains(args, i.ID) && strings.HasPrefix(i.ID, toComplete) {
				words = append(words, cobra.CompletionWithDesc(i.ID, harmless(firstOf(i.Label, i.Image))))
			}
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}
