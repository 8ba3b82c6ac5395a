package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gondolin-go/gondolin/images"
	"github.com/gondolin-go/gondolin/sandbox"
)

// newSnapshotCommand is `gondolin-mcp snapshot`.
func (a *app) newSnapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "snapshot", Short: "Make snapshots of sessions and look after them",
		Long: `Make snapshots of sessions and look after them. run, shell and ssh go on from one with --snapshot NAME.
An agent has the actions snapshot and restore of the tool session. Each snapshot is a directory of its own.`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SetFlagErrorFunc(flagError)
	cmd.AddCommand(a.snapshotCreate(), snapshotList(), snapshotInspect(), snapshotRemove())
	return cmd
}

// takenView is `snapshot create --json`.
type takenView struct {
	*sandbox.Snapshot
	PauseMS int64 `json:"pause_ms"`
}

func (a *app) snapshotCreate() *cobra.Command {
	var disk, asJSON bool
	cmd := a.registryFlags(&cobra.Command{
		Use: "create SESSION NAME", Short: "Keep a session's memory, processes and disk under a name",
		Long: `Keep a session's machine as it is now: memory, processes and disk. The session stands still for a
moment and goes on. It is refused, with the process and the path, while a process uses a mount. With
--disk-only no process is kept, none is in the way, and what goes on from that boots.`,
		Example: `  gondolin-mcp snapshot create 4uuv deps-installed
  gondolin-mcp shell --snapshot deps-installed`,
		Args: arguments(2, 2), ValidArgsFunction: a.completeSessions(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, args[0], func(s *sandbox.Attached) error {
				t, err := s.Snapshot(cmd.Context(), args[1], sandbox.SnapshotOptions{Disk: disk})
				if errors.Is(err, sandbox.ErrBusy) {
					err = fmt.Errorf("%w: end them or have them leave it, or keep files alone with --disk-only", err)
				}
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), takenView{t.Snapshot, t.Pause.Milliseconds()})
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "kept session %s as snapshot %s (%s, %s); it stood still for %s\n",
					s.ID(), t.Name, holds(t.Snapshot), images.FormatBytes(t.Bytes), t.Pause.Round(time.Millisecond))
				return err
			})
		},
	})
	cmd.Flags().BoolVar(&disk, "disk-only", false, "keep files and no processes")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func snapshotList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the snapshots, newest first",
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, lerr := sandbox.OpenSnapshots("").List() // with what is damaged beside the rest
			if asJSON {
				if list == nil {
					list = []*sandbox.Snapshot{}
				}
				return errors.Join(printJSON(cmd.OutOrStdout(), list), lerr)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tSIZE\tHOLDS\tMEMORY\tCREATED\tIMAGE")
			for _, m := range list {
				fmt.Fprintf(w, "%s\t%s\t%s\t%d MiB\t%s\t%s\n", m.Name, images.FormatBytes(m.Bytes), holds(m), m.MemoryMiB,
					m.Created.Local().Format("2006-01-02 15:04"), m.Image)
			}
			return errors.Join(w.Flush(), lerr)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func holds(m *sandbox.Snapshot) string {
	if m.Memory {
		return "processes and files"
	}
	return "files"
}

// completeSnapshots completes one name of a snapshot.
func completeSnapshots(_ *cobra.Command, _ []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	list, _ := sandbox.OpenSnapshots("").List() // those that are whole
	var words []cobra.Completion
	for _, m := range list {
		if strings.HasPrefix(m.Name, toComplete) {
			words = append(words, cobra.CompletionWithDesc(m.Name, holds(m)))
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

func snapshotInspect() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "inspect NAME", Short: "Show what a snapshot was made of and where it can go on",
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store := sandbox.OpenSnapshots("")
			m, err := store.Get(args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), m)
			}
			return printSnapshot(cmd.OutOrStdout(), store.Dir(m.Name), m)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func printSnapshot(out io.Writer, dir string, m *sandbox.Snapshot) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(key, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", key, fmt.Sprintf(format, args...)) }
	line("name", "%s", m.Name)
	line("directory", "%s", dir)
	line("created", "%s", m.Created.Local().Format(time.RFC3339))
	line("holds", "%s", holds(m))
	line("size", "%s", images.FormatBytes(m.Bytes))
	line("image", "%s", m.Image)
	line("machine", "%s, %d MiB memory, %d MiB disk, root %s", counted(m.CPUs, "CPU"), m.MemoryMiB, m.DiskMiB, m.Root)
	if m.Memory {
		line("qemu", "%s", m.QEMU)
		line("accelerator", "%s", m.Accelerator)
		line("processor", "%s", m.CPU)
	}
	if len(m.Mounts) > 0 {
		line("had mounts at", "%s", strings.Join(m.Mounts, " "))
	}
	return w.Flush()
}

func snapshotRemove() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "remove NAME...", Aliases: []string{"rm"}, Short: "Remove snapshots; sessions that were restored from them go on",
		Args: arguments(1, anyNumber),
		RunE: func(cmd *cobra.Command, args []string) error {
			store := sandbox.OpenSnapshots("")
			rows, errs := []images.Removed{}, []error(nil)
			for _, name := range args {
				freed, err := store.Remove(name)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				rows = append(rows, images.Removed{Kind: "snapshot", Name: name, Bytes: freed})
			}
			return errors.Join(append(errs, printRemoved(cmd.OutOrStdout(), rows, asJSON))...)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}
