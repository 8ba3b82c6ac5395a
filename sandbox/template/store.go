package template

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// Errors that callers branch on.
var (
	// ErrMissing: the store holds no template of that key.
	ErrMissing = errors.New("no template")
	// ErrDamaged: the template on disk did not match its digests. It has been removed.
	ErrDamaged = errors.New("template is damaged")
	// ErrUnsupported: this system cannot share a sealed memory between machines.
	ErrUnsupported = errors.New("templates need Linux")
)

const (
	manifestName = "manifest.json"
	lockSuffix   = ".lock"
	tempPrefix   = ".tmp-"
)

// Store is a directory of templates. Several processes may use one.
type Store struct {
	dir  string
	keep int
	log  *slog.Logger
}

// New returns the store in dir, which keeps the newest keep templates.
func New(dir string, keep int, log *slog.Logger) (*Store, error) {
	if !supported {
		return nil, ErrUnsupported
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of templates: %w", err)
	}
	return &Store{dir: dir, keep: max(keep, 1), log: log}, nil
}

// manifest describes a template.
type manifest struct {
	Version int    `json:"version"`
	Key     string `json:"key"`
	Files
}

const manifestVersion = 1

// Load returns the template of a key: ErrMissing or ErrDamaged when there is no good one.
func (s *Store) Load(ctx context.Context, key string) (*Template, error) {
	dir := filepath.Join(s.dir, key)
	t, err := load(ctx, dir, key)
	switch {
	case err == nil:
		now := time.Now()
		_ = os.Chtimes(dir, now, now) // its last use; costs only its place in the order
		return t, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, fs.ErrNotExist):
		if _, serr := os.Stat(dir); errors.Is(serr, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w %s", ErrMissing, short(key))
		}
	}
	s.log.Warn("removing a damaged template", "dir", dir, "err", err)
	return nil, errors.Join(fmt.Errorf("%w: %s: %w", ErrDamaged, short(key), err), os.RemoveAll(dir))
}

// Build makes the template of a key unless another process has just made it. make gets
// an empty memory of the given size to boot a machine in, and a file that takes its state;
// it returns the machine's writable disk, if it has one, which Build closes.
func (s *Store) Build(ctx context.Context, key string, size int64, make func(ctx context.Context, memory, state *os.File) (disk *os.File, err error)) (*Template, error) {
	lock := flock.New(filepath.Join(s.dir, key+lockSuffix))
	if ok, err := lock.TryLockContext(ctx, 100*time.Millisecond); err != nil || !ok {
		return nil, fmt.Errorf("waiting for another process to build the template: %w", errors.Join(err, ctx.Err()))
	}
	defer lock.Close()
	if t, err := s.Load(ctx, key); err == nil {
		return t, nil
	} else if ctx.Err() != nil {
		return nil, err
	}
	s.collect(key)
	memory, err := Anonymous("gondolin-template", size)
	if err != nil {
		return nil, err
	}
	t := &Template{memory: memory}
	state, err := Anonymous("gondolin-state", 0)
	if err != nil {
		t.Close()
		return nil, err
	}
	defer state.Close()
	disk, err := make(ctx, memory, state)
	if disk != nil {
		defer disk.Close()
	}
	if err == nil {
		t.state, err = readState(state)
	}
	if err == nil && disk != nil {
		t.disk, err = copyOf(ctx, disk)
	}
	if err == nil {
		err = t.seal()
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	if err := s.save(ctx, key, t); err != nil {
		// It works for this process; the next one builds it again.
		s.log.Warn("saving a template", "err", err)
	}
	return t, nil
}

// save writes a template to its place.
func (s *Store) save(ctx context.Context, key string, t *Template) error {
	temp, err := os.MkdirTemp(s.dir, tempPrefix)
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	m := manifest{Version: manifestVersion, Key: key}
	if m.Files, err = t.Write(ctx, temp); err != nil {
		return err
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := writeSynced(filepath.Join(temp, manifestName), b); err != nil {
		return err
	}
	place := filepath.Join(s.dir, key)
	if err := os.RemoveAll(place); err != nil {
		return err
	}
	return os.Rename(temp, place)
}

// Info describes a template on disk.
type Info struct {
	Key   string
	Bytes int64 // on disk
	Used  time.Time
}

// List returns the templates, most recently used first.
func (s *Store) List() ([]Info, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("listing templates: %w", err)
	}
	var list []Info
	for _, e := range entries {
		st, err := e.Info()
		if err != nil || !e.IsDir() || strings.HasPrefix(e.Name(), tempPrefix) {
			continue
		}
		list = append(list, Info{Key: e.Name(), Bytes: DiskUsage(filepath.Join(s.dir, e.Name())), Used: st.ModTime()})
	}
	slices.SortFunc(list, func(a, b Info) int { return b.Used.Compare(a.Used) })
	return list, nil
}

// Remove removes the templates for which drop says so, and returns how many bytes of disk that freed.
// Machines cloned from them go on.
func (s *Store) Remove(drop func(Info) bool) (freed int64, err error) {
	list, err := s.List()
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, i := range list {
		if !drop(i) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(s.dir, i.Key)); err != nil {
			errs = append(errs, err)
			continue
		}
		_ = os.Remove(filepath.Join(s.dir, i.Key+lockSuffix))
		freed += i.Bytes
	}
	return freed, errors.Join(errs...)
}

// collect makes room for one more template and removes what dead builds left.
func (s *Store) collect(building string) {
	left := s.keep - 1
	if _, err := s.Remove(func(i Info) bool { left--; return left < 0 && i.Key != building }); err != nil {
		s.log.Warn("removing old templates", "err", err)
	}
	entries, _ := os.ReadDir(s.dir)
	s.sweep(entries, building)
}

func (s *Store) sweep(entries []fs.DirEntry, building string) {
	for _, e := range entries {
		if key, ok := strings.CutSuffix(e.Name(), lockSuffix); ok && key != building {
			s.removeLock(key)
			continue
		}
		// A build takes seconds; one that is an hour old is dead.
		if st, err := e.Info(); err == nil && strings.HasPrefix(e.Name(), tempPrefix) && time.Since(st.ModTime()) > time.Hour {
			_ = os.RemoveAll(filepath.Join(s.dir, e.Name()))
		}
	}
}

// Collect removes what dead builds left.
func (s *Store) Collect() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("listing templates: %w", err)
	}
	s.sweep(entries, "")
	return nil
}

// removeLock removes the lock of a template that does not exist and that nobody builds. Who
// opened it just before builds once too often, and harms nobody.
func (s *Store) removeLock(key string) {
	if _, err := os.Stat(filepath.Join(s.dir, key)); err == nil {
		return
	}
	path := filepath.Join(s.dir, key+lockSuffix)
	lock := flock.New(path)
	if ok, err := lock.TryLock(); err != nil || !ok {
		return
	}
	_ = os.Remove(path)
	_ = lock.Close()
}

func short(key string) string { return key[:min(len(key), 12)] }
