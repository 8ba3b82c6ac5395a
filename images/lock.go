package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"
)

// lockPoll is how often a waiter looks again; flock offers no wait that a context can end.
const lockPoll = 50 * time.Millisecond

// lock takes one of the store's named locks. Lock files stay where they are: removing one would let two
// processes hold "the same" lock on different inodes.
func (s *Store) lock(ctx context.Context, name string, exclusive bool) (unlock func(), err error) {
	f := flock.New(filepath.Join(s.dir, "locks", name+".lock"))
	try := f.TryRLockContext
	if exclusive {
		try = f.TryLockContext
	}
	ok, err := try(ctx, lockPoll)
	if err != nil || !ok {
		return nil, fmt.Errorf("waiting for lock %q of image store %s: %w", name, s.dir, err)
	}
	return func() { _ = f.Close() }, nil
}

// tryLock is lock for those who have something else to do when it is taken.
func (s *Store) tryLock(name string) (unlock func(), ok bool) {
	f := flock.New(filepath.Join(s.dir, "locks", name+".lock"))
	if ok, err := f.TryLock(); err != nil || !ok {
		return nil, false
	}
	return func() { _ = f.Close() }, true
}

// staging is a directory that a build fills. Its owner holds a flock on the directory itself; the kernel
// drops it with the process, which is how a dead build's remains are told from a live one's.
type staging struct {
	dir  string
	held *os.File
}

func (s *Store) newStaging(ctx context.Context, prefix string) (*staging, error) {
	// Between making and locking the directory it would look abandoned; the store lock covers the gap.
	unlock, err := s.lock(ctx, "store", true)
	if err != nil {
		return nil, err
	}
	defer unlock()
	dir, err := os.MkdirTemp(filepath.Join(s.dir, "tmp"), prefix+"-")
	if err != nil {
		return nil, fmt.Errorf("making a work directory: %w", err)
	}
	held, err := flockPath(dir, unix.LOCK_EX)
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, fmt.Errorf("locking work directory %s: %w", dir, err)
	}
	return &staging{dir: dir, held: held}, nil
}

func (st *staging) path(name string) string { return filepath.Join(st.dir, name) }

// close removes what is left and gives up the lock, in this order. What cannot be removed now is found
// by the next build or gc.
func (st *staging) close() {
	_ = removeTree(st.dir)
	_ = st.held.Close()
}

// removeTree deletes a work directory, unless something is mounted in it: a program that was killed
// there may have left the machine's own /dev behind, and deleting would go right through.
func removeTree(dir string) error {
	if err := checkUnmounted(dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

var errLocked = errors.New("locked by another process")

// flockPath opens a file or directory read-only and locks it without waiting.
func flockPath(path string, how int) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errLocked
		}
		return nil, err
	}
	return f, nil
}

// collectStale removes what killed builds and half-done removals left behind. The caller holds the store
// lock.
func (s *Store) collectStale(dryRun bool) (gone []Removed, err error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "tmp"))
	if err != nil {
		return nil, fmt.Errorf("looking for abandoned builds: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path := filepath.Join(s.dir, "tmp", e.Name())
		held, lerr := flockPath(path, unix.LOCK_EX)
		if lerr != nil {
			continue // its owner lives, or just finished
		}
		var bytes int64
		if lerr = checkUnmounted(path); lerr == nil {
			bytes = diskUsage(path)
			if !dryRun {
				lerr = removeTree(path)
			}
		}
		_ = held.Close()
		if lerr != nil {
			err = errors.Join(err, fmt.Errorf("removing abandoned build %s: %w", path, lerr))
			continue
		}
		gone = append(gone, Removed{Kind: "abandoned build", Name: e.Name(), Bytes: bytes})
	}
	return gone, err
}

func diskUsage(path string) int64 {
	var total int64
	_ = filepath.WalkDir(path, func(_ string, d os.DirEntry, err error) error {
		if err != nil {
			return nil // what vanished meanwhile takes no space
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			total += info.Size()
		}
		return nil
	})
	return total
}
