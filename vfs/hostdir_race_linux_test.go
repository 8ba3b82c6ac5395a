package vfs

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// snapshot tells everything about a tree that an attack could change.
func snapshot(t *testing.T, dir string) map[string]string {
	out := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		require.NoError(t, err)
		info, err := e.Info()
		require.NoError(t, err)
		data := ""
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			data = string(b)
		}
		out[path] = info.Mode().String() + info.ModTime().String() + data
		return nil
	}))
	return out
}

func TestHostDirADirectorySwappedForASymlinkLeadsNowhere(t *testing.T) {
	outside := t.TempDir()
	put(t, filepath.Join(outside, "victim"), "outside")
	put(t, filepath.Join(outside, "sub/victim"), "outside")
	before := snapshot(t, outside)
	root, dir := openHost(t, HostDirOptions{MaxHandles: 3})
	put(t, filepath.Join(dir, "real/victim"), "inside")
	put(t, filepath.Join(dir, "real/sub/victim"), "inside")
	require.NoError(t, os.Symlink(outside, filepath.Join(dir, "link")))

	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	var swaps, through atomic.Int64
	wg.Go(func() { // the guest, or a program on the host, swaps them
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
		if !assert.NoError(t, err) {
			return
		}
		defer unix.Close(fd)
		for ; ctx.Err() == nil; swaps.Add(1) {
			assert.NoError(t, unix.Renameat2(fd, "real", fd, "link", unix.RENAME_EXCHANGE))
		}
	})
	for worker := range 4 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				attack(t, root, i+worker, &through)
			}
		})
	}
	wg.Wait()
	assert.Equal(t, before, snapshot(t, outside))
	assert.NotZero(t, swaps.Load())
	assert.NotZero(t, through.Load(), "some calls must have reached the real directory, or this shows nothing")
}

// attack tries to get at a victim through "real", in one of many ways.
func attack(t *testing.T, root *HostDirRoot, i int, through *atomic.Int64) {
	ctx := t.Context()
	d, err := root.Lookup(ctx, "real")
	if err != nil {
		return
	}
	defer d.Release()
	if i%2 == 0 {
		sub, err := d.Lookup(ctx, "sub")
		if err != nil {
			return
		}
		defer sub.Release()
		d = sub
	}
	mode, now := fs.FileMode(0o600), time.Unix(1, 0)
	switch i / 2 % 6 {
	case 0:
		if n, f, err := d.Create(ctx, "planted", os.O_RDWR|os.O_TRUNC, 0o666); err == nil {
			_, _ = f.WriteAt(ctx, []byte("planted"), 0)
			f.Close()
			n.Release()
		}
	case 1:
		if n, err := d.Mkdir(ctx, "dir", 0o777); err == nil {
			n.Release()
		}
		_ = d.Rmdir(ctx, "dir")
	case 2:
		_ = d.Rename(ctx, "planted", d, "renamed", 0)
		_ = d.Unlink(ctx, "renamed")
	case 3:
		if n, err := d.Symlink(ctx, "s", "x"); err == nil {
			n.Release()
		}
		_ = d.Unlink(ctx, "s")
	}
	v, err := d.Lookup(ctx, "victim")
	if err != nil {
		return
	}
	defer v.Release()
	f, err := v.Open(ctx, os.O_RDONLY)
	if err != nil {
		return
	}
	defer f.Close()
	buf := make([]byte, 16)
	n, _ := f.ReadAt(ctx, buf, 0)
	assert.Equal(t, "inside", string(buf[:n]))
	through.Add(1)
	_, _ = v.SetAttr(ctx, Change{Mode: &mode, Mtime: &now})
	_ = v.SetXattr(ctx, "user.x", []byte("x"), 0)
}

func TestHostDirAnOpenHandleStaysOnTheDirectoryThatItWasOpenedOn(t *testing.T) {
	outside := t.TempDir()
	put(t, filepath.Join(outside, "x"), "outside")
	root, dir := openHost(t, HostDirOptions{})
	put(t, filepath.Join(dir, "d/x"), "inside")
	d := at(t, root, "d")
	open, err := d.OpenDir(t.Context())
	require.NoError(t, err)
	defer open.Close()
	require.NoError(t, os.Rename(filepath.Join(dir, "d"), filepath.Join(dir, "old")))
	require.NoError(t, os.Symlink(outside, filepath.Join(dir, "d")))
	assert.Equal(t, "inside", content(t, at(t, d, "x")))
	n, f, err := d.Create(t.Context(), "new", os.O_WRONLY, 0o600)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	n.Release()
	assert.FileExists(t, filepath.Join(dir, "old/new"))
	assert.NoFileExists(t, filepath.Join(outside, "new"))

	// Without its descriptor the directory is looked for by name, and a link is not it.
	root.fs.mu.Lock()
	root.fs.shrink(0, nil)
	root.fs.mu.Unlock()
	_, err = d.Lookup(t.Context(), "x")
	assert.Equal(t, syscall.ESTALE, Errno(err))
}

// watching collects what a root reports until stop.
func watching(t *testing.T, root *HostDirRoot) (events func() []Changed) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	var mu sync.Mutex
	var seen []Changed
	go func() {
		done <- root.Watch(ctx, func(c Changed) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, c)
		})
	}()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-done)
	})
	require.Eventually(t, func() bool {
		root.fs.mu.Lock()
		defer root.fs.mu.Unlock()
		return root.fs.watch != nil
	}, 5*time.Second, time.Millisecond)
	return func() []Changed {
		mu.Lock()
		defer mu.Unlock()
		return append([]Changed(nil), seen...)
	}
}

func TestHostDirReportsWhatTheHostChanges(t *testing.T) {
	root, dir := openHost(t, HostDirOptions{})
	put(t, filepath.Join(dir, "d/f"), "1")
	events := watching(t, root)
	assert.ErrorIs(t, root.Watch(t.Context(), nil), syscall.EBUSY)
	d, f := at(t, root, "d"), at(t, root, "d/f")
	ino := func(n Node) uint64 {
		a, err := n.Attr(t.Context())
		require.NoError(t, err)
		return a.Ino
	}
	reported := func(c Changed) {
		t.Helper()
		require.Eventually(t, func() bool { return slices.Contains(events(), c) }, 5*time.Second, time.Millisecond)
	}
	put(t, filepath.Join(dir, "d/f"), "22")
	reported(Changed{Ino: ino(f)})
	put(t, filepath.Join(dir, "d/hosts"), "")
	reported(Changed{Dir: ino(d), Name: "hosts"})
	require.NoError(t, os.Remove(filepath.Join(dir, "d/f")))
	reported(Changed{Dir: ino(d), Name: "f"})
}

func TestHostDirWatchesNoMoreDirectoriesThanAllowed(t *testing.T) {
	root, dir := openHost(t, HostDirOptions{MaxWatches: 3})
	events := watching(t, root)
	for _, name := range []string{"a", "b", "c", "e", "f"} {
		put(t, filepath.Join(dir, name, "x"), "")
		at(t, at(t, root, name), "x")
	}
	w := root.fs.watch
	w.mu.Lock()
	assert.Equal(t, 3, w.recent.Len())
	assert.Len(t, w.byWD, 3)
	w.mu.Unlock()
	put(t, filepath.Join(dir, "f/new"), "")
	require.Eventually(t, func() bool { return len(events()) > 0 }, 5*time.Second, time.Millisecond, "the latest is watched")
}

func TestHostDirAnExhaustedLimitOfWatchesIsToldOnce(t *testing.T) {
	root, _ := openHost(t, HostDirOptions{})
	var log bytes.Buffer
	root.fs.log = slog.New(slog.NewTextHandler(&log, nil))
	w := &hostWatch{fs: root.fs, tell: func(Changed) {}}
	w.limitReached()
	w.limitReached()
	assert.Equal(t, 1, bytes.Count(log.Bytes(), []byte("max_user_watches")))
}

func TestHostDirReleasedDirectoriesAreNoLongerWatched(t *testing.T) {
	root, dir := openHost(t, HostDirOptions{})
	watching(t, root)
	put(t, filepath.Join(dir, "d/x"), "")
	d, err := root.Lookup(t.Context(), "d")
	require.NoError(t, err)
	x, err := d.Lookup(t.Context(), "x")
	require.NoError(t, err)
	x.Release()
	w := root.fs.watch
	w.mu.Lock()
	assert.Equal(t, 2, w.recent.Len())
	w.mu.Unlock()
	d.Release()
	w.mu.Lock()
	assert.Equal(t, 1, w.recent.Len())
	w.mu.Unlock()
}

func TestHostDirPassesPosixtestOnARealKernel(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	for name, wrap := range map[string]func(Node) Node{
		"plain": func(n Node) Node { return n },
		"wrapped": func(n Node) Node {
			protect, err := NewRules(DefaultProtect()...)
			require.NoError(t, err)
			hide, err := NewRules(DefaultHide()...)
			require.NoError(t, err)
			n = Quota(Protect(Shadow(n, hide, ShadowOptions{}), protect, ProtectOptions{}), QuotaOptions{Bytes: 1 << 40, Files: 1 << 20})
			return Hooks(n, HookFuncs{Before: func(context.Context, Op) error { return nil }})
		},
	} {
		t.Run(name, func(t *testing.T) {
			root, _ := openHost(t, HostDirOptions{})
			runPosix(t, wrap(root), false)
		})
	}
}

func TestHostDirUsersDisksRefusalsReachTheGuest(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount("small", dir, "tmpfs", 0, "size=64k,nr_inodes=6"))
	defer unix.Unmount(dir, unix.MNT_DETACH)
	root, err := HostDir(dir, HostDirOptions{})
	require.NoError(t, err)
	defer root.Close()
	n, f, err := root.Create(t.Context(), "f", os.O_RDWR, 0o600)
	require.NoError(t, err)
	defer n.Release()
	_, err = f.WriteAt(t.Context(), make([]byte, 1<<20), 0)
	assert.Equal(t, syscall.ENOSPC, Errno(err))
	require.NoError(t, f.Close())
	require.NoError(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	again, err := HostDir(dir, HostDirOptions{})
	require.NoError(t, err)
	defer again.Close()
	_, err = again.Mkdir(t.Context(), "d", 0o700)
	assert.True(t, errors.Is(err, syscall.EROFS), "%v", err)
}
