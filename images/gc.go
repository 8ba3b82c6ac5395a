package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Removed is one thing that Remove or GC deleted, or would delete.
type Removed struct {
	Kind  string `json:"kind"` // image, download, kernel, abandoned build
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

// GCPolicy says what GC keeps. Named images and images in use always stay.
type GCPolicy struct {
	Keep   time.Duration // unnamed images and downloads used within this time stay
	DryRun bool          // only report
}

// GCReport says what went, and what stayed because a session or a build holds it.
type GCReport struct {
	Removed []Removed `json:"removed"`
	Busy    []string  `json:"busy,omitempty"`
}

// Bytes is what the removed things took.
func (r GCReport) Bytes() int64 {
	var n int64
	for _, x := range r.Removed {
		n += x.Bytes
	}
	return n
}

// InUseError says that an image cannot be removed now.
type InUseError struct{ ID string }

func (e *InUseError) Error() string {
	return fmt.Sprintf("image %.12s is in use by a running session or template; close it and try again", e.ID)
}

// Remove deletes an image, or with a name that is one of several, only the name. It refuses while the
// image is in use.
func (s *Store) Remove(ctx context.Context, ref string) (Removed, error) {
	unlock, err := s.lock(ctx, "store", true)
	if err != nil {
		return Removed{}, err
	}
	defer unlock()
	id, names, err := s.findForRemoval(ref)
	if err != nil {
		return Removed{}, err
	}
	if _, named := names[ref]; named && len(names) > 1 {
		if err := os.Remove(filepath.Join(s.dir, "tags", ref)); err != nil {
			return Removed{}, fmt.Errorf("removing image name %s: %w", ref, err)
		}
		return Removed{Kind: "name", Name: ref}, nil
	}
	bytes, err := s.removeImage(id, false)
	if err != nil {
		return Removed{}, err
	}
	for name := range names {
		if err := os.Remove(filepath.Join(s.dir, "tags", name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return Removed{}, fmt.Errorf("removing image name %s: %w", name, err)
		}
	}
	return Removed{Kind: "image", Name: id, Bytes: bytes}, nil
}

// findForRemoval also finds images whose manifest cannot be read: removing them is the remedy.
func (s *Store) findForRemoval(ref string) (id string, names map[string]bool, err error) {
	tags, err := s.tags()
	if err != nil {
		return "", nil, err
	}
	ids, err := s.ids()
	if err != nil {
		return "", nil, err
	}
	if tagged, ok := tags[ref]; ok {
		id = tagged
	} else if idPrefix.MatchString(ref) {
		for _, candidate := range ids {
			if strings.HasPrefix(candidate, ref) {
				if id != "" {
					return "", nil, fmt.Errorf("image id %q is ambiguous: %.12s and %.12s begin with it; give more of it", ref, id, candidate)
				}
				id = candidate
			}
		}
	}
	if id == "" {
		if err := tooShort(ref, ids); err != nil {
			return "", nil, err
		}
		return "", nil, &NotFoundError{Ref: ref, Store: s.dir, Have: describe(ids, tags)}
	}
	names = map[string]bool{}
	for name, tagged := range tags {
		if tagged == id {
			names[name] = true
		}
	}
	return id, names, nil
}

// removeImage takes an image out of sight in one step and then deletes it. The caller holds the store
// lock.
func (s *Store) removeImage(id string, dryRun bool) (int64, error) {
	dir := filepath.Join(s.dir, id)
	held, err := flockPath(filepath.Join(dir, ManifestFile), unix.LOCK_EX)
	switch {
	case errors.Is(err, errLocked):
		return 0, &InUseError{ID: id}
	case errors.Is(err, os.ErrNotExist): // nobody can use an image without a manifest
	case err != nil:
		return 0, fmt.Errorf("removing image %.12s: %w", id, err)
	default:
		defer held.Close()
	}
	bytes := diskUsage(dir)
	if dryRun {
		return bytes, nil
	}
	trash := filepath.Join(s.dir, "tmp", fmt.Sprintf("removed-%.12s-%d", id, time.Now().UnixNano()))
	if err := os.Rename(dir, trash); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return 0, nil // only a name was left of it
		}
		return 0, fmt.Errorf("removing image %.12s: %w", id, err)
	}
	if err := removeTree(trash); err != nil {
		return 0, fmt.Errorf("removing image %.12s: %w; the next gc finishes it", id, err)
	}
	return bytes, nil
}

// sweep is the part of gc that every build does: remains of killed builds go.
func (s *Store) sweep(ctx context.Context) error {
	unlock, err := s.lock(ctx, "store", true)
	if err != nil {
		return err
	}
	defer unlock()
	// What cannot be removed is in nobody's way; gc reports it.
	_, _ = s.collectStale(false)
	return nil
}

// GC removes images without a name, downloads, all but the newest kernel, and remains of killed builds.
func (s *Store) GC(ctx context.Context, policy GCPolicy) (GCReport, error) {
	var report GCReport
	unlock, err := s.lock(ctx, "store", true)
	if err != nil {
		return report, err
	}
	defer unlock()
	stale, err := s.collectStale(policy.DryRun)
	report.Removed = append(report.Removed, stale...)
	return report, errors.Join(err, s.gcImages(&report, policy), s.gcCaches(&report, policy))
}

func (s *Store) gcImages(report *GCReport, policy GCPolicy) error {
	tags, err := s.tags()
	if err != nil {
		return err
	}
	ids, err := s.ids()
	if err != nil {
		return err
	}
	named := map[string]bool{}
	for _, id := range tags {
		named[id] = true
	}
	var errs []error
	for _, id := range ids {
		if named[id] {
			continue
		}
		if img, err := s.load(id); err == nil && time.Since(img.LastUsed()) < policy.Keep {
			continue
		}
		bytes, err := s.removeImage(id, policy.DryRun)
		var busy *InUseError
		switch {
		case errors.As(err, &busy):
			report.Busy = append(report.Busy, "image "+id)
		case err != nil:
			errs = append(errs, err)
		default:
			report.Removed = append(report.Removed, Removed{Kind: "image", Name: id, Bytes: bytes})
		}
	}
	if !policy.DryRun {
		s.forgetSpecs()
	}
	return errors.Join(errs...)
}

// forgetSpecs drops the notes on builds whose image is gone. They are a few bytes each and only save
// work, so a failure is not worth reporting.
func (s *Store) forgetSpecs() {
	dir := filepath.Join(s.dir, "specs")
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		id, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(s.dir, strings.TrimSpace(string(id)), ManifestFile)); errors.Is(err, os.ErrNotExist) {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// gcCaches empties the caches unless a build is at work with them.
func (s *Store) gcCaches(report *GCReport, policy GCPolicy) error {
	unlock, ok := s.tryLock("cache")
	if !ok {
		report.Busy = append(report.Busy, "downloads and kernels (a build is running)")
		return nil
	}
	defer unlock()
	var errs []error
	drop := func(kind, path string) {
		gone := Removed{Kind: kind, Name: filepath.Base(path), Bytes: diskUsage(path)}
		if !policy.DryRun {
			if err := os.RemoveAll(path); err != nil {
				errs = append(errs, fmt.Errorf("removing %s %s: %w", kind, path, err))
				return
			}
		}
		report.Removed = append(report.Removed, gone)
	}
	blobs, err := os.ReadDir(filepath.Join(s.dir, "blobs"))
	errs = append(errs, err)
	for _, e := range blobs {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) >= policy.Keep {
			drop("download", filepath.Join(s.dir, "blobs", e.Name()))
		}
	}
	newest := map[string]string{} // by architecture
	kernels, err := os.ReadDir(filepath.Join(s.dir, "kernels"))
	errs = append(errs, err)
	for _, arch := range []string{"amd64", "arm64"} {
		if k := s.newestKernel(arch); k != nil {
			newest[filepath.Base(k.dir)] = arch
		}
	}
	for _, e := range kernels {
		if newest[e.Name()] == "" {
			drop("kernel", filepath.Join(s.dir, "kernels", e.Name()))
		}
	}
	return errors.Join(errs...)
}

// Verify hashes every file of an image and names each one that is damaged.
func (s *Store) Verify(ctx context.Context, ref string, p Progress) error {
	if p == nil {
		p = Quiet
	}
	img, err := s.Get(ref)
	if err != nil {
		return err
	}
	return img.verify(ctx, p)
}
