package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/tools"
)

// status is how a check came out.
type status string

const (
	passed  status = "ok"
	warned  status = "warn" // sessions start, but something is slower or smaller than it could be
	failing status = "fail" // no session can start
)

// check is one line of the doctor's report.
type check struct {
	Name   string `json:"name"`
	Status status `json:"status"`
	Detail string `json:"detail"`
	Do     string `json:"do,omitempty"` // the remedy
}

// report is what `doctor --json` prints.
type report struct {
	OK      bool    `json:"ok"` // nothing failed
	Version string  `json:"version"`
	Config  string  `json:"config"` // file, empty when there is none
	Checks  []check `json:"checks"`
}

// doctor looks at one machine. Checks may use what earlier ones found.
type doctor struct {
	config  *configs.Config
	here    error // what keeps the configuration from being used on this machine
	probe   bool
	qemu    string // path; empty when there is none that can be used
	version string // what QEMU says of itself
	slowTLS bool   // it translates AES to plain arithmetic
	image   bool   // it is there and whole
}

func (a *app) newDoctorCommand() *cobra.Command {
	var asJSON, probe bool
	cmd := a.withFlags(&cobra.Command{
		Use: "doctor", Short: "Check this machine and say what to do",
		Long: `Check what sessions need: QEMU, an accelerator, the image, limits that this
machine can bear. Each line is ok, warn or fail, with what to do about it; the
exit code is 1 if one failed. --probe starts a machine to find out for sure.`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load()
			if err != nil {
				return err
			}
			_, here := a.loadHere()
			d := &doctor{config: c, here: here, probe: probe}
			r := report{OK: true, Version: programVersion(), Config: c.File()}
			failed := 0
			for _, look := range d.checks() {
				found := look(cmd.Context())
				for _, f := range found {
					if f.Status == failing {
						failed++
						r.OK = false
					}
				}
				r.Checks = append(r.Checks, found...)
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), r)
			} else {
				err = r.print(cmd.OutOrStdout())
			}
			if err == nil && failed > 0 {
				err = fmt.Errorf("%d of %d checks failed", failed, len(r.Checks))
			}
			return err
		},
	})
	jsonFlag(cmd, &asJSON)
	cmd.Flags().BoolVar(&probe, "probe", false, "start a machine, which also finds out whether the accelerator works")
	return cmd
}

func (r report) print(w io.Writer) error {
	for _, c := range r.Checks {
		detail := strings.ReplaceAll(c.Detail, "\n", "\n"+strings.Repeat(" ", 18))
		if _, err := fmt.Fprintf(w, "%-4s  %-11s %s\n", c.Status, c.Name, detail); err != nil {
			return err
		}
		if c.Do != "" {
			fmt.Fprintf(w, "%18s-> %s\n", "", c.Do)
		}
	}
	return nil
}

// checks are in the order in which a person would mend things.
func (d *doctor) checks() []func(context.Context) []check {
	return []func(context.Context) []check{
		d.checkQEMU, d.checkScratch, d.checkImage, d.checkBuild, d.checkRuntimeDir, d.checkLeftovers,
		d.checkLimits, d.checkFiles, d.checkMounts, d.checkNetwork, d.checkProbe, d.checkAccelerator,
	}
}

func one(name string, s status, do, format string, args ...any) []check {
	return []check{{Name: name, Status: s, Detail: fmt.Sprintf(format, args...), Do: do}}
}

// checkMounts reports directories that are to be mounted and cannot be.
func (d *doctor) checkMounts(context.Context) []check {
	const name = "mounts"
	var wrong *configs.Error
	if !errors.As(d.here, &wrong) {
		return one(name, passed, "", "workspace is %s, and there are %s", d.config.Workspace, counted(len(d.config.Mounts), "other mount"))
	}
	var found []check
	for _, p := range wrong.Problems {
		found = append(found, one(name, failing, "", "%s", p)...)
	}
	return found
}

func (d *doctor) checkNetwork(context.Context) []check {
	const name = "network"
	if problem := proxyWarning(d.config); problem != "" {
		return one(name, warned, "unset HTTPS_PROXY and HTTP_PROXY, except hosts with NO_PROXY, or set network.proxy to none", "%s", problem)
	}
	return one(name, passed, "", "%s, and connections leave directly", counted(len(d.config.Network.Rules)+len(d.config.Network.Profiles), "rule"))
}

// checkProbe starts a machine exactly as a call would.
func (d *doctor) checkProbe(ctx context.Context) []check {
	const name = "probe"
	switch {
	case !d.probe:
		return nil
	case d.qemu == "" || !d.image:
		return one(name, failing, "mend what failed above first", "a machine needs QEMU and an image")
	}
	boxes := newSandboxes(ctx, d.config, slog.New(slog.DiscardHandler))
	defer boxes.close()
	began := time.Now()
	s, err := boxes.Create(ctx, tools.SessionOptions{Label: "doctor"})
	if err != nil {
		return one(name, failing, "see the reason; the console's last lines often tell", "no machine started: %v", err)
	}
	info := s.Info()
	return one(name, passed, "", "a machine started with %s in %s", info.Accelerator, lasted(time.Since(began)))
}
