package sandbox

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/gondolin-go/gondolin/sandbox/template"
)

// Leftover is something that no session needs any more.
type Leftover struct {
	Kind  string `json:"kind"` // "session" or unfinished "snapshot" of a dead process, or "template"
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

// CollectOptions say what Collect removes.
type CollectOptions struct {
	CacheDir, RuntimeDir string        // as in HostOptions
	StateDir             string        // as in HostOptions; its snapshots stay, but for unfinished ones
	Keep                 time.Duration // templates used within this time stay
	DryRun               bool          // only report
	Logger               *slog.Logger  // default: discard
}

// Collect removes what dead processes left in the runtime directory and among the snapshots, and
// templates that were not used lately. A template that is missed is built again by the next session.
func Collect(o CollectOptions) ([]Leftover, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	gone, err := collectSessions(o)
	unfinished, serr := OpenSnapshots(o.StateDir).collect(o.DryRun, o.Logger)
	templates, terr := collectTemplates(o)
	return slices.Concat(gone, unfinished, templates), errors.Join(err, serr, terr)
}

func collectSessions(o CollectOptions) ([]Leftover, error) {
	if err := checkPrivate(o.RuntimeDir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	entries, err := os.ReadDir(o.RuntimeDir)
	if err != nil {
		return nil, err
	}
	var gone []Leftover
	var errs []error
	for _, e := range entries {
		dead, err := collectOne(filepath.Join(o.RuntimeDir, e.Name()), o.DryRun, o.Logger)
		errs = append(errs, err)
		if dead {
			gone = append(gone, Leftover{Kind: "session", Name: e.Name()})
		}
	}
	return gone, errors.Join(errs...)
}

func collectTemplates(o CollectOptions) ([]Leftover, error) {
	dir := filepath.Join(o.CacheDir, templatesName)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	store, err := template.New(dir, keptTemplates, o.Logger)
	if errors.Is(err, template.ErrUnsupported) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	old := func(i template.Info) bool { return time.Since(i.Used) > o.Keep }
	list, err := store.List()
	if err != nil {
		return nil, err
	}
	var gone []Leftover
	for _, i := range list {
		if old(i) {
			gone = append(gone, Leftover{Kind: "template", Name: i.Key[:min(len(i.Key), 12)], Bytes: i.Bytes})
		}
	}
	if !o.DryRun {
		_, err = store.Remove(old)
	}
	return gone, err
}
