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
func newSnapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "snapshot", Short: "Look after snapshots of sessions",
		Long: `Look after snapshots of sessions. An agent makes them with the tool session, action snapshot, and
goes on from one with the action restore. Each is a directory of its own.`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SetFlagErrorFunc(flagError)
	cmd.AddCommand(snapshotList(), snapshotInspect(), snapshotRemove())
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
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func holds(m *sandbox.Snapshot) string {
	if m.Memory {
		return "processes and files"
	}
	return "files"
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
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
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
	return &cobra.Command{
		Use: "remove NAME...", Aliases: []string{"rm"}, Short: "Remove snapshots; sessions that were restored from them go on",
		Args: arguments(1, anyNumber),
		RunE: func(cmd *cobra.Command, args []string) error {
			store := sandbox.OpenSnapshots("")
			var errs []error
			for _, name := range args {
				freed, err := store.Remove(name)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintf(cmd.OutOrStdout(), "removed snapshot %s (%s)\n", name, images.FormatBytes(freed))
			}
			return errors.Join(errs...)
		},
	}
}
