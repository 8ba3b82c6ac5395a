package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/sandbox/audit"
)

// followEvery is how often `audit tail --follow` looks for more.
const followEvery = 500 * time.Millisecond

func (a *app) newAuditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "audit", Short: "Look at and verify the record of what sessions did",
		Long: `Look at and verify the record of what sessions did and what their network was allowed and
refused. It lies in audit.dir of the configuration. A session is named by its id, the beginning of that, or, while
it runs, its name.`,
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

// auditSession is the session that is named, by the beginning of its id or by its name while it runs, or
// the one whose record changed last.
func (a *app) auditSession(cmd *cobra.Command, args []string) (dir, session string, err error) {
	if dir, err = a.auditDir(); err != nil {
		return "", "", err
	}
	if len(args) > 0 {
		session, err = audit.Find(dir, args[0])
		if err != nil {
			switch ids := a.named(cmd, args[0]); {
			case len(ids) == 1:
				return dir, ids[0], nil
			case len(ids) > 1:
				return "", "", fmt.Errorf("%q means several sessions: %s", args[0], strings.Join(ids, ", "))
			}
		}
		return dir, session, err
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

// named are the sessions that run under a name.
func (a *app) named(cmd *cobra.Command, name string) (ids []string) {
	c, err := a.load()
	if err != nil {
		return nil
	}
	list, _ := sandbox.List(cmd.Context(), c.Paths.Runtime, nil) // those that answer
	for _, i := range list {
		if i.Label == name && name != "" {
			ids = append(ids, i.ID)
		}
	}
	return ids
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
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (a *app) auditTail() *cobra.Command {
	var lines int
	var follow, asJSON bool
	cmd := a.withFlags(&cobra.Command{
		Use: "tail [SESSION]", Short: "Print the end of a record, by default of the latest",
		Long: `Print the last records of a session, by default of the one whose record changed last. With --follow
later ones are printed as they come, until the session ends; where no session is named, those of all
sessions, until the command is interrupted.`,
		Args: arguments(0, 1), ValidArgsFunction: a.completeSessions(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if lines < 0 {
				return usageError{named(cmd, errors.New("--lines is not negative"))}
			}
			dir, session, err := a.auditSession(cmd, args)
			if err != nil {
				return err
			}
			show := titled(printRecord, session)
			if asJSON {
				show = printLine
			}
			reader, last, err := lastRecords(dir, session, lines)
			if err != nil {
				return err
			}
			for _, r := range last {
				if err := show(cmd.OutOrStdout(), r); err != nil {
					return err
				}
			}
			if !follow {
				return nil
			}
			all := ""
			if len(args) == 0 {
				all = dir
			}
			return followRecord(cmd.Context(), cmd.OutOrStdout(), reader, show, all)
		},
	})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a record a line in JSON")
	cmd.Flags().IntVarP(&lines, "lines", "n", 20, "how many records")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is recorded later, until interrupted")
	return cmd
}

// lastRecords are the last n records of a session, and a reader of what comes after them.
func lastRecords(dir, session string, n int) (r *audit.Reader, last []audit.Record, err error) {
	r = audit.NewReader(dir, session)
	err = r.Next(func(rec audit.Record) error {
		if last = append(last, rec); len(last) > n {
			last = last[1:]
		}
		return nil
	})
	return r, last, err
}

// followRecord shows what comes later until the session or ctx ends. With a directory in all it shows what
// comes to the other records there too, and goes on.
func followRecord(ctx context.Context, out io.Writer, r *audit.Reader, show func(io.Writer, audit.Record) error, all string) error {
	readers := map[string]*audit.Reader{r.Session(): r}
	names := []string{r.Session()}
	if all != "" {
		// Of those that were there before only what is new.
		if err := eachNew(all, readers, func(old *audit.Reader) error {
			names = append(names, old.Session())
			return old.Skip()
		}); err != nil {
			return err
		}
	}
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		for _, name := range names {
			if err := readers[name].Next(func(rec audit.Record) error { return show(out, rec) }); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if all == "" && r.Ended() {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if all != "" {
			if err := eachNew(all, readers, func(r *audit.Reader) error { names = append(names, r.Session()); return nil }); err != nil {
				return err
			}
			// What has ended, or was removed, is not looked at any more; its name stays known.
			names = slices.DeleteFunc(names, func(n string) bool { return readers[n].Ended() })
		}
	}
}

// eachNew makes a reader for each record of a directory that has none.
func eachNew(dir string, readers map[string]*audit.Reader, visit func(*audit.Reader) error) error {
	found, err := audit.Sessions(dir)
	if err != nil {
		return err
	}
	for _, name := range found {
		if readers[name] == nil {
			readers[name] = audit.NewReader(dir, name)
			if err := visit(readers[name]); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// titled puts a line with the session before the records of another one than the last.
func titled(show func(io.Writer, audit.Record) error, last string) func(io.Writer, audit.Record) error {
	return func(w io.Writer, r audit.Record) error {
		if r.Session != last {
			last = r.Session
			if _, err := fmt.Fprintln(w, "session", harmless(last)); err != nil {
				return err
			}
		}
		return show(w, r)
	}
}

// printLine prints one record as a line of JSON.
func printLine(w io.Writer, r audit.Record) error { return json.NewEncoder(w).Encode(r) }

func (a *app) auditShow() *cobra.Command {
	var asJSON, refused bool
	cmd := a.withFlags(&cobra.Command{
		Use: "show [SESSION]", Short: "Print a record, by default the latest",
		Args: arguments(0, 1), ValidArgsFunction: a.completeSessions(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, session, err := a.auditSession(cmd, args)
			if err != nil {
				return err
			}
			return audit.Read(dir, session, func(r audit.Record) error {
				switch {
				case refused && (r.Verdict == "" || r.Verdict == audit.Allow):
					return nil
				case asJSON:
					return printLine(cmd.OutOrStdout(), r)
				}
				return printRecord(cmd.OutOrStdout(), r)
			})
		},
	})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a record a line in JSON")
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
			dir, session, err := a.auditSession(cmd, args)
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
	failed := r.Kind == audit.KindExec && r.Verdict == audit.Error // and has no status
	if r.Status != 0 || r.Kind == audit.KindExec && r.Done && !failed {
		add("-> %d", r.Status)
	}
	if r.Detail != "" && !failed {
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
