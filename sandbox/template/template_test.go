//go:build linux

package template

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const size = 4 << 20

func newStore(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := New(dir, 2, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	return s
}

// makeOne stands in for a machine that booted.
func makeOne(text string) func(context.Context, *os.File, *os.File) (*os.File, error) {
	return func(_ context.Context, memory, state *os.File) (*os.File, error) {
		_, err := memory.WriteAt([]byte(text), 3<<20)
		if err != nil {
			return nil, err
		}
		if _, err := state.WriteAt([]byte("state of "+text), 0); err != nil {
			return nil, err
		}
		disk, err := Anonymous("disk", 1<<20)
		if err != nil {
			return nil, err
		}
		_, err = disk.WriteAt([]byte("disk of "+text), 1<<19)
		return disk, err
	}
}

func contents(t *testing.T, tmpl *Template, text string) {
	t.Helper()
	b := make([]byte, len(text))
	_, err := tmpl.Memory().ReadAt(b, 3<<20)
	require.NoError(t, err)
	require.Equal(t, text, string(b))
	b = make([]byte, len("disk of "+text))
	_, err = tmpl.Disk().ReadAt(b, 1<<19)
	require.NoError(t, err)
	require.Equal(t, "disk of "+text, string(b))
	f, err := tmpl.State()
	require.NoError(t, err)
	defer f.Close()
	state, err := io.ReadAll(f)
	require.NoError(t, err)
	require.Equal(t, "state of "+text, string(state))
}

func TestTemplateComesBackFromDiskAsItWasBuilt(t *testing.T) {
	dir := t.TempDir()
	built, err := newStore(t, dir).Build(t.Context(), "key", size, makeOne("a"))
	require.NoError(t, err)
	defer built.Close()
	contents(t, built, "a")
	loaded, err := newStore(t, dir).Load(t.Context(), "key")
	require.NoError(t, err)
	defer loaded.Close()
	contents(t, loaded, "a")
	st, err := loaded.Memory().Stat()
	require.NoError(t, err)
	require.EqualValues(t, size, st.Size())
}

// A QEMU that its guest has taken over must not change what the next session starts from.
func TestNobodyCanChangeATemplateThatIsInUse(t *testing.T) {
	dir := t.TempDir()
	built, err := newStore(t, dir).Build(t.Context(), "key", size, makeOne("a"))
	require.NoError(t, err)
	defer built.Close()
	loaded, err := newStore(t, dir).Load(t.Context(), "key")
	require.NoError(t, err)
	defer loaded.Close()
	for _, tmpl := range []*Template{built, loaded} {
		for _, f := range []*os.File{tmpl.Memory(), tmpl.Disk()} {
			_, err := f.WriteAt([]byte("x"), 0)
			require.ErrorIs(t, err, unix.EPERM)
			require.ErrorIs(t, f.Truncate(0), unix.EPERM)
			_, err = unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			require.ErrorIs(t, err, unix.EPERM)
			private, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
			require.NoError(t, err, "a clone maps it private")
			private[0] = 1
			require.NoError(t, unix.Munmap(private))
		}
	}
	contents(t, loaded, "a")
}

func TestDamagedTemplateIsNoticedRemovedAndBuiltAgain(t *testing.T) {
	flip := func(at int64) func(string) error {
		return func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			var b [1]byte
			if _, err := f.ReadAt(b[:], at); err != nil {
				return err
			}
			b[0] ^= 1
			_, err = f.WriteAt(b[:], at)
			return err
		}
	}
	cut := func(path string) error { return os.Truncate(path, 10) }
	for name, c := range map[string]struct {
		file   string
		damage func(string) error
	}{
		"memory flipped":           {memoryName, flip(3 << 20)},
		"memory flipped in a hole": {memoryName, flip(100)},
		"memory cut":               {memoryName, cut},
		"state flipped":            {stateName, flip(2)},
		"state cut":                {stateName, cut},
		"disk flipped":             {diskName, flip(1 << 19)},
		"disk gone":                {diskName, os.Remove},
		"manifest cut":             {manifestName, cut},
		"manifest gone":            {manifestName, os.Remove},
		"swapped for another": {"", func(dir string) error {
			other := filepath.Join(filepath.Dir(dir), "other")
			return errors.Join(os.RemoveAll(dir), os.Rename(other, dir))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := newStore(t, dir)
			for _, key := range []string{"other", "key"} {
				built, err := s.Build(t.Context(), key, size, makeOne(key))
				require.NoError(t, err)
				require.NoError(t, built.Close())
			}
			require.NoError(t, c.damage(filepath.Join(dir, "key", c.file)))
			_, err := s.Load(t.Context(), "key")
			require.ErrorIs(t, err, ErrDamaged)
			_, err = s.Load(t.Context(), "key")
			require.ErrorIs(t, err, ErrMissing, "it was removed")
			again, err := s.Build(t.Context(), "key", size, makeOne("key"))
			require.NoError(t, err)
			defer again.Close()
			contents(t, again, "key")
		})
	}
}

func TestOneOfManyProcessesBuildsATemplate(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	builds := 0
	var wg sync.WaitGroup
	for range 5 {
		s := newStore(t, dir)
		wg.Go(func() {
			tmpl, err := s.Build(t.Context(), "key", size, func(ctx context.Context, m, st *os.File) (*os.File, error) {
				mu.Lock()
				builds++
				mu.Unlock()
				return makeOne("a")(ctx, m, st)
			})
			if err == nil {
				err = tmpl.Close()
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.Equal(t, 1, builds)
}

func TestFailedBuildLeavesNothingAndSaysWhy(t *testing.T) {
	dir := t.TempDir()
	_, err := newStore(t, dir).Build(t.Context(), "key", size, func(context.Context, *os.File, *os.File) (*os.File, error) {
		return nil, errors.New("it did not boot")
	})
	require.ErrorContains(t, err, "it did not boot")
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1, "the lock")
}

func TestOldTemplatesMakeRoomForNewOnes(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir)
	for i, key := range []string{"a", "b", "c"} {
		built, err := s.Build(t.Context(), key, size, makeOne(key))
		require.NoError(t, err)
		require.NoError(t, built.Close())
		old := time.Now().Add(time.Duration(i-10) * time.Minute)
		require.NoError(t, os.Chtimes(filepath.Join(dir, key), old, old))
	}
	list, err := s.List()
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, "c", list[0].Key)
	freed, err := s.Remove(func(Info) bool { return true })
	require.NoError(t, err)
	require.Positive(t, freed)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.LessOrEqual(t, len(entries), 1)
}

// Builds that were broken off leave a lock; the next build of anything removes it, and none that is held.
func TestLocksOfTemplatesThatDoNotExistAreCollected(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir)
	stale, held := filepath.Join(dir, "stale"+lockSuffix), filepath.Join(dir, "held"+lockSuffix)
	require.NoError(t, os.WriteFile(stale, nil, 0o600))
	lock := flock.New(held)
	ok, err := lock.TryLock()
	require.NoError(t, err)
	require.True(t, ok)
	defer lock.Close()
	built, err := s.Build(t.Context(), "key", size, makeOne("a"))
	require.NoError(t, err)
	defer built.Close()
	require.NoFileExists(t, stale)
	require.FileExists(t, held)
	require.FileExists(t, filepath.Join(dir, "key"+lockSuffix))
}
