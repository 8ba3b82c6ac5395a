package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/netguard/policy"
)

// reloadEvery is how often the configuration file is looked at. A file that changed is read
// when it has stood still until the next look, so that none is read half written.
const reloadEvery = time.Second

// reloader takes up changes of the network policy while sessions run.
type reloader struct {
	load     func() (*configs.Config, error)
	locate   func() string // where the file is or would be
	policies *policies
	log      *slog.Logger
	rest     []byte // the configuration without what can change
}

func (a *app) newReloader(c *configs.Config, p *policies, log *slog.Logger) *reloader {
	return &reloader{
		load: a.load, policies: p, log: log, rest: withoutPolicy(c),
		locate: func() string {
			path, _ := configs.Locate(a.sources())
			return path
		},
	}
}

// run reloads when the file changes and when hangup says so, until ctx ends.
func (r *reloader) run(ctx context.Context, hangup <-chan os.Signal, tick <-chan time.Time) {
	loaded, seen := r.stamp(), r.stamp()
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			loaded = r.stamp()
			seen = loaded
			r.reload("a signal")
		case <-tick:
			now := r.stamp()
			settled := now == seen
			seen = now
			switch {
			case now == loaded || !settled:
			case now == "":
				loaded = now
				r.log.Warn("the configuration file is gone; the network policy stays as it is", "file", r.locate())
			default:
				loaded = now
				r.reload("the file changed")
			}
		}
	}
}

// stamp tells versions of the file apart; it is empty while there is none.
func (r *reloader) stamp() string {
	st, err := os.Stat(r.locate())
	if err != nil {
		return ""
	}
	return fmt.Sprint(st.ModTime().UnixNano(), st.Size())
}

// reload puts the policy of the configuration in force. One with a mistake changes nothing.
func (r *reloader) reload(why string) {
	c, err := r.load()
	var p *policy.Policy
	if err == nil {
		p, err = policy.Compile(c.Network.Policy())
	}
	if err != nil {
		r.log.Error("the configuration is not taken up; the network policy stays as it is", "reason", why, "error", err)
		return
	}
	r.policies.set(p)
	r.log.Info("the network policy was read again", "reason", why, "rules", len(p.Rules()))
	for _, w := range c.Warnings() {
		r.log.Warn("probably not meant", "problem", w)
	}
	if !bytes.Equal(r.rest, withoutPolicy(c)) {
		r.log.Warn("other settings changed as well; they count from the next start on")
	}
}

// withoutPolicy is the configuration without what reload takes up.
func withoutPolicy(c *configs.Config) []byte {
	rest := *c
	rest.Network.Rules, rest.Network.Profiles = nil, nil
	text, err := rest.YAML(false)
	if err != nil {
		return nil // cannot happen: it is plain data
	}
	return text
}
