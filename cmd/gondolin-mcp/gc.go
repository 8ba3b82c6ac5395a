package main

import (
	"errors"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/gondolin-go/gondolin/images"
	"github.com/gondolin-go/gondolin/sandbox"
)

func (a *app) newGCCommand() *cobra.Command {
	var days int
	var dry, asJSON bool
	cmd := a.registryFlags(&cobra.Command{
		Use: "gc", Short: "Remove what nobody needs any more: remains of killed sessions, old templates, unused images",
		Long: `Remove what killed processes left of their sessions, templates that were not used for --keep-days,
and of the images what gondolin-mcp images gc removes. Nothing that a running session uses is touched,
and what is missed is made again.`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if days < 0 {
				return usageError{named(cmd, errors.New("--keep-days must not be negative"))}
			}
			r, err := a.openRegistry(cmd)
			if err != nil {
				return err
			}
			defer r.close()
			keep := time.Duration(days) * 24 * time.Hour
			left, errs := sandbox.Collect(sandbox.CollectOptions{
				CacheDir: r.config.Paths.Cache, RuntimeDir: r.config.Paths.Runtime, Keep: keep, DryRun: dry, Logger: r.log,
			})
			report := images.GCReport{Removed: []images.Removed{}}
			for _, l := range left {
				report.Removed = append(report.Removed, images.Removed(l))
			}
			// Opening a store makes it, which looking should not.
			if _, err := os.Stat(r.config.ImageDir()); err == nil {
				store, err := images.OpenStore(r.config.ImageDir())
				if err == nil {
					var more images.GCReport
					more, err = store.GC(cmd.Context(), images.GCPolicy{Keep: keep, DryRun: dry})
					report.Removed, report.Busy = append(report.Removed, more.Removed...), more.Busy
				}
				errs = errors.Join(errs, err)
			}
			return errors.Join(printGC(cmd.OutOrStdout(), report, dry, asJSON), errs)
		},
	})
	cmd.Flags().IntVar(&days, "keep-days", 7, "keep templates, unnamed images and downloads that were used within so many days")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would be removed")
	jsonFlag(cmd, &asJSON)
	return cmd
}
