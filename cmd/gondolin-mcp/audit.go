package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gondolin-go/gondolin/sandbox/audit"
)

// followEvery is how often `audit tail --follow` looks for more.
const followEvery = 500 * time.Millisecond

func (a *app) newAuditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "audit", Short: "Look at and verify the record of what sessions did",
		Long: `Look at and verify the record of what sessions did and what their network was allowed and
refused. It lies in audit.dir of the configuration.`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.auditVerify(), a.auditTail(), a.auditShow(), a.auditExport())
	return cmd
}

// auditDir is the directory in force.
func (a *app) auditDir() (string, error) {
	c, err := a.load()
	if err != nil {
		return "", err
	}
	return c.Audit.Dir, nil
}

// auditSession is the session that is named, or the one whose record changed last.
func (a *app) auditSession(args []string) (dir, session string, err error) {
	if dir, err = a.auditDir(); err != nil {
		return "", "", err
	}
	if len(args) > 0 {
		return dir, args[0], nil
	}
	names, err := audit.Sessions(dir)
	if err != nil {
		return "", "", err
	}
	if len(names) == 0 {
		return "", "", fmt.Errorf("there is no audit record in %s", dir)
	}
	return dir, names[len(names)-1], nil
}

func (a *app) auditVerify() *cobra.Command {
	var asJSON bool
	cmd := a.withFlags(&cobra.Command{
		Use: "verify", Short: "Find out whether a record was changed or cut",
		Long: `Check the chain of every record and end with 1 if one is broken or if there is none. A record is closed,
running (its session is), or unfinished: its session was killed, or the end of the record
was cut off.`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := a.auditDir()
			if err != nil {
				return err
			}
			results, err := audit.Verify(dir)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				if results == nil {
					results = []audit.Result{}
				}
				err = printJSON(out, results)
			}
			broken := 0
			for _, r := range results {
				verdict := "ok    "
				if r.Problem != "" {
					verdict = "BROKEN"
					broken++
				}
				if asJSON {
					continue
				}
				fmt.Fprintf(out, "%s  %s  %s, %d records in %s", verdict, r.Session, r.State, r.Records, counted(r.Files, "file"))
				if r.Removed > 0 {
					fmt.Fprintf(out, ", %d older ones were removed to make room", r.Removed)
				}
				if r.Problem != "" {
					fmt.Fprintf(out, "\n        %s", r.Problem)
				} else {
					fmt.Fprintf(out, ", %.16s", r.Hash)
				}
				_, err = fmt.Fprintln(out)
			}
			switch {
			case err != nil:
			case broken > 0:
				err = fmt.Errorf("%s broken of %d", counted(broken, "record"), len(results))
			case len(results) == 0:
				// Nothing to check is not the same as all is well: somebody may have removed it.
				err = fmt.Errorf("there is no audit record in %s: nothing was verified", dir)
			}
			return err
		},
	})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) auditTail() *cobra.Command {
	var lines int
	var follow bool
	cmd := a.withFlags(&cobra.Command{
		Use: "tail [SESSION]", Short: "Print the end of a record, by default of the latest",
		Args: arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if lines < 0 {
				return usageError{named(cmd, errors.New("--lines is not negative"))}
			}
			dir, session, err := a.auditSession(args)
			if err != nil {
				return err
			}
			last, seq, err := lastRecords(dir, session, lines)
			if err != nil {
				return err
			}
			for _, r := range last {
				if err := printRecord(cmd.OutOrStdout(), r); err != nil {
					return err
				}
			}
			if !follow {
				return nil
			}
			return followRecord(cmd.Context(), cmd.OutOrStdout(), dir, session, seq)
		},
	})
	cmd.Flags().IntVarP(&lines, "lines", "n", 20, "how many records")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is recorded later, until interrupted")
	return cmd
}

// lastRecords are the last n records of a session, and the number of the very last.
func lastRecords(dir, session string, n int) (last []audit.Record, seq uint64, err error) {
	err = audit.Read(dir, session, func(r audit.Record) error {
		seq = r.Seq
		if last = append(last, r); len(last) > n {
			last = last[1:]
		}
		return nil
	})
	return last, seq, err
}

// followRecord prints what comes after seq until ctx ends.
func followRecord(ctx context.Context, out io.Writer, dir, session string, seq uint64) error {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := audit.Read(dir, session, func(r audit.Record) error {
			if r.Seq <= seq {
				return nil
			}
			seq = r.Seq
			return printRecord(out, r)
		})
		if err != nil {
			return err
		}
	}
}

func (a *app) auditShow() *cobra.Command {
	var asJSON, refused bool
	cmd := a.withFlags(&cobra.Command{
		Use: "show [SESSION]", Short: "Print a record, by default the latest",
		Args: arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, session, err := a.auditSession(args)
			if err != nil {
				return err
			}
			return audit.Read(dir, session, func(r audit.Record) error {
				switch {
				case refused && (r.Verdict == "" || r.Verdict == audit.Allow):
					return nil
				case asJSON:
					return printJSON(cmd.OutOrStdout(), r)
				}
				return printRecord(cmd.OutOrStdout(), r)
			})
		},
	})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&refused, "refused", false, "only what was refused or failed")
	return cmd
}

func (a *app) auditExport() *cobra.Command {
	var har bool
	cmd := a.withFlags(&cobra.Command{
		Use: "export [SESSION] --har", Short: "Write the HTTP requests of a session as an HTTP archive",
		Args: arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !har {
				return usageError{named(cmd, errors.New("say in which form: --har"))}
			}
			dir, session, err := a.auditSession(args)
			if err != nil {
				return err
			}
			return audit.WriteHAR(cmd.OutOrStdout(), dir, session)
		},
	})
	cmd.Flags().BoolVar(&har, "har", false, "HTTP archive (HAR 1.2)")
	return cmd
}

// printRecord prints one record on a line. Texts of the guest are quoted where they could
// do harm to a terminal.
func printRecord(w io.Writer, r audit.Record) error {
	words := []string{r.Time.Local().Format("2006-01-02 15:04:05.000"), string(r.Kind)}
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	if r.Exec != "" {
		add("command %s", r.Exec)
	}
	if r.Verdict != "" {
		add("%s", r.Verdict)
	}
	if r.Method != "" {
		add("%s", r.Method)
	}
	switch {
	case r.Host != "":
		add("%s", r.URL())
	case r.Path != "":
		add("%s", r.Path)
	}
	if r.Command != "" {
		add("%q", r.Command)
	}
	if r.Status != 0 || r.Kind == audit.KindExec && r.Done {
		add("-> %d", r.Status)
	}
	if r.Detail != "" {
		add("%s", r.Detail)
	}
	if r.Sent > 0 || r.Received > 0 {
		add("sent %d received %d", r.Sent, r.Received)
	}
	if r.Seconds > 0 {
		add("in %s", lasted(time.Duration(r.Seconds*float64(time.Second))))
	}
	if len(r.Secrets) > 0 {
		add("secrets %s", strings.Join(r.Secrets, ","))
	}
	if r.Rule != "" {
		add("rule %q", r.Rule)
	}
	if r.Verdict != audit.Allow && r.Reason != "" {
		add("(%s)", r.Reason)
	}
	for i, word := range words {
		words[i] = harmless(word)
	}
	_, err := fmt.Fprintln(w, strings.Join(words, "  "))
	return err
}

// harmless is a text without what steers a terminal.
func harmless(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}
