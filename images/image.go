package images

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Image is one complete image of a store. It never changes.
type Image struct {
	Manifest *Manifest
	dir      string
	store    *Store
}

// ID is the image's digest.
func (i *Image) ID() string { return i.Manifest.ID }

// Dir is the image's directory.
func (i *Image) Dir() string { return i.dir }

// Path is where one of the image's files (KernelFile, ModulesFile, RootFile) lies.
func (i *Image) Path(name string) string { return filepath.Join(i.dir, name) }

// Names are the names that point to the image now.
func (i *Image) Names() []string {
	tags, err := i.store.tags()
	if err != nil {
		return nil
	}
	var names []string
	for name, id := range tags {
		if id == i.ID() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// LastUsed is when the image was last put to use, as far as the store could note it.
func (i *Image) LastUsed() time.Time {
	if info, err := os.Stat(i.Path(stampFile)); err == nil {
		return info.ModTime()
	}
	return i.Manifest.Created
}

// Use keeps the image from being removed until release is called or the process ends, however it ends.
// The lock lies on the manifest itself, so that a store which can only be read works too.
func (i *Image) Use() (release func(), err error) {
	manifest := i.Path(ManifestFile)
	held, err := flockPath(manifest, unix.LOCK_SH)
	switch {
	case errors.Is(err, errLocked), errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("image %.12s is being or was removed; `gondolin-mcp images build` makes it again", i.ID())
	case err != nil:
		return nil, fmt.Errorf("using image %.12s: %w", i.ID(), err)
	}
	// A removal between opening and locking leaves us with a lock on a file that no one can find.
	if !sameFile(held, manifest) {
		_ = held.Close()
		return nil, fmt.Errorf("image %.12s was removed meanwhile; `gondolin-mcp images build` makes it again", i.ID())
	}
	now := time.Now()
	_ = os.Chtimes(i.Path(stampFile), now, now) // best effort: only gc's idea of idleness depends on it
	return func() { _ = held.Close() }, nil
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}
