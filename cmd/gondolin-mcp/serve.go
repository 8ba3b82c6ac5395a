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
	config, err := a.load()
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
	server := tools.New(tools.Options{
		Sandboxes:  boxes,
		Logger:     log,
		Version:    programVersion(),
		Image:      boxes.images.describe(),
		User:       config.Session.User,
		Limits:     atMost(config),
		MaxTimeout: time.Duration(config.Exec.TimeoutMax),
	})
	log.Info("serving MCP on standard input and output", "version", programVersion(), "config", config.File(), "image", config.Image.Name)
	// What is missing here is said in the log now and in the result of the first
	// call. Ending instead would show in clients as a server that just died.
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
func (k *keeper) describe() string {
	packages, from := images.DefaultPackages, "Debian or Ubuntu"
	if store, err := images.OpenStore(k.dir); err == nil {
		if img, err := store.Get(k.name); err == nil {
			src := img.Manifest.Source
			if src.Kind != images.KindPackages {
				return "made from " + src.Kind + " " + shortened(src.Ref, 120)
			}
			packages, from = src.Packages, src.Suite
		}
	}
	return shortened(from+" with "+strings.Join(packages, ", "), 400)
}

func shortened(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
