package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/images"
	"github.com/gondolin-go/gondolin/tools"
)

// serve speaks MCP until the input ends or the context does.
func (a *app) serve(cmd *cobra.Command) error {
	ctx := cmd.Context()
	out, err := takeStdout(cmd.OutOrStdout())
	if err != nil {
		return err
	}
	in, err := wakeable(cmd.InOrStdin())
	if err != nil {
		return err
	}
	config, err := a.loadHere()
	if err != nil {
		return err
	}
	log, closeLog, err := newLogger(config, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer closeLog()
	// A client that went away breaks our standard error too. The signal for that would
	// end the program before its sessions; noticed, it is only a failed write.
	// Not ignored: children would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	boxes := newSandboxes(ctx, config, log)
	defer boxes.close()
	boxes.pruneRecords()
	if at := config.Metrics.Listen; at != "" {
		stop, err := boxes.metrics.serve(ctx, at, func(err error) { log.Error("serving metrics", "error", err) })
		if err != nil {
			return err
		}
		defer stop()
		log.Info("serving metrics", "url", "http://"+at+"/metrics")
	}
	server := tools.New(tools.Options{
		Sandboxes:  boxes,
		Logger:     log,
		Version:    programVersion(),
		Image:      boxes.images.describe(),
		Policy:     policyView{boxes},
		Mounts:     boxes.everyMount(),
		Roots:      boxes.wantsRoots(),
		Expose:     config.Ingress.Expose,
		User:       config.Session.User,
		Limits:     atMost(config),
		MaxTimeout: time.Duration(config.Exec.TimeoutMax),
	})
	boxes.ask = server.Ask
	stop := a.watch(ctx, boxes)
	defer stop()
	log.Info("serving MCP on standard input and output", "version", programVersion(), "config", config.File(), "image", config.Image.Name)
	// What is missing here is said in the log now and in the result of the first
	// call. Ending instead would show in clients as a server that just died.
	for _, problem := range impossible(config) {
		log.Warn("no session can start with this setting here", "problem", problem)
	}
	if problem := ownerProblem(config); problem != "" {
		log.Warn("some commands may not be able to write in mounts", "problem", problem)
	}
	for _, problem := range config.Warnings() {
		log.Warn("probably not meant", "problem", problem)
	}
	if problem := proxyWarning(config); problem != "" {
		log.Warn("addresses are not judged", "problem", problem)
	}
	boxes.prepare()
	err = server.Serve(ctx, in, out)
	switch {
	case ctx.Err() != nil:
		log.Info("ending", "reason", context.Cause(ctx))
		return nil
	case err != nil:
		return fmt.Errorf("serving MCP: %w", err)
	}
	log.Info("ending", "reason", "the client closed the connection")
	return nil
}

// watch takes up changes of the network policy until stop.
func (a *app) watch(ctx context.Context, boxes *sandboxes) (stop func()) {
	// For every other command, and until now, a hangup is the end.
	signal.Reset(syscall.SIGHUP)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	tick := time.NewTicker(reloadEvery)
	ctx, cancel := context.WithCancel(ctx)
	r := a.newReloader(boxes.config, boxes.policies, boxes.log)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.run(ctx, hangup, tick.C)
	}()
	return func() {
		cancel()
		<-done
		tick.Stop()
		signal.Stop(hangup)
	}
}

// newLogger makes the logger that the configuration asks for.
func newLogger(c *configs.Config, stderr io.Writer) (*slog.Logger, func(), error) {
	out, done := stderr, func() {}
	if c.Log.File != "" {
		f, err := os.OpenFile(c.Log.File, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, nil, fmt.Errorf("opening the log (log.file): %w", err)
		}
		out, done = f, func() { _ = f.Close() }
	}
	opts := &slog.HandlerOptions{Level: c.LogLevel()}
	if c.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(out, opts)), done, nil
	}
	return slog.New(slog.NewTextHandler(out, opts)), done, nil
}

// describe tells a model what the machine has, as far as is known before it exists.
// A path of the host would mean nothing to it, and is none of its business.
func (k *keeper) describe() string {
	packages, from := images.DefaultPackages, "Debian or Ubuntu"
	if store, err := images.OpenStore(k.dir); err == nil {
		if img, err := store.Get(k.name); err == nil {
			switch src := img.Manifest.Source; src.Kind {
			case images.KindPackages:
				packages, from = src.Packages, release(src.Suite)
			case images.KindOCI:
				return shortened("made from the container image "+src.Ref, 160)
			case images.KindDir, images.KindTar:
				return fmt.Sprintf("the user's own image %q", shortened(k.name, 64))
			default:
				return fmt.Sprintf("the container image that the user calls %q", shortened(k.name, 64))
			}
		}
	}
	return shortened(from+" with "+strings.Join(packages, ", "), 400)
}

// releases are the names that models and people know better than a suite's.
var releases = map[string]string{
	"bullseye": "Debian 11", "bookworm": "Debian 12", "trixie": "Debian 13", "forky": "Debian 14", "sid": "Debian unstable",
	"focal": "Ubuntu 20.04", "jammy": "Ubuntu 22.04", "noble": "Ubuntu 24.04", "resolute": "Ubuntu 26.04",
}

func release(suite string) string {
	if name := releases[suite]; name != "" {
		return name
	}
	return "Debian or Ubuntu (" + suite + ")"
}

func shortened(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
