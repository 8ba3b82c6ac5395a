package vfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestHostDirHardLinksAreOneNode(t *testing.T) {
	root, dir := openHost(t, HostDirOptions{})
	put(t, filepath.Join(dir, "a"), "x")
	a := at(t, root, "a")
	b, err := root.Link(t.Context(), "b", a)
	require.NoError(t, err)
	defer b.Release()
	assert.Same(t, a, b)
	attr, err := b.Attr(t.Context())
	require.NoError(t, err)
	assert.EqualValues(t, 2, attr.Nlink)
	_, err = root.Link(t.Context(), "c", NewMemory(MemoryOptions{}))
	assert.Equal(t, syscall.EXDEV, Errno(err))
	assert.Equal(t, syscall.EXDEV, Errno(root.Rename(t.Context(), "a", NewMemory(MemoryOptions{}), "c", 0)))
}

func TestHostDirNodesOutliveTheirDescriptors(t *testing.T) {
	root, dir := openHost(t, HostDirOptions{MaxHandles: 4})
	var nodes []Node
	for i := range 50 {
		path := fmt.Sprintf("d%d/e/f", i)
		put(t, filepath.Join(dir, path), path)
		nodes = append(nodes, at(t, root, fmt.Sprintf("d%d", i)), at(t, root, fmt.Sprintf("d%d/e", i)), at(t, root, path))
	}
	assert.LessOrEqual(t, root.fs.lru.Len(), 4)
	for i := range 50 {
		assert.Equal(t, fmt.Sprintf("d%d/e/f", i), content(t, nodes[3*i+2]))
	}
	// Names of the guest's renames are known, another file under an old name is not taken for the node.
	require.NoError(t, root.Rename(t.Context(), "d0", root, "moved", 0))
	require.NoError(t, os.Rename(filepath.Join(dir, "d1/e/f"), filepath.Join(dir, "d1/e/g")))
	put(t, filepath.Join(dir, "d1/e/f"), "another")
	for i := 10; i < 20; i++ {
		content(t, nodes[3*i+2])
	}
	assert.Equal(t, "d0/e/f", content(t, nodes[2]))
	_, err := nodes[5].Attr(t.Context())
	assert.Equal(t, syscall.ESTALE, Errno(err))
	assert.LessOrEqual(t, root.fs.lru.Len(), 4)
}

func TestHostDirAnUnlinkedFileWorksWhileItIsOpen(t *testing.T) {
	root, dir := openHost(t, HostDirOptions{MaxHandles: 2})
	ctx := t.Context()
	n, f, err := root.Create(ctx, "f", os.O_RDWR, 0o600)
	require.NoError(t, err)
	defer n.Release()
	require.NoError(t, root.Unlink(ctx, "f"))
	for i := range 5 {
		put(t, filepath.Join(dir, fmt.Sprint(i)), "")
		at(t, root, fmt.Sprint(i))
	}
	_, err = f.WriteAt(ctx, []byte("still"), 0)
	require.NoError(t, err)
	a, err := n.Attr(ctx)
	require.NoError(t, err)
	assert.EqualValues(t, 0, a.Nlink)
	assert.EqualValues(t, 5, a.Size)
	require.NoError(t, f.Close())
}

func TestHostDirAUsedInodeNumberIsNotTakenForTheOldFile(t *testing.T) {
	root, _ := openHost(t, HostDirOptions{})
	f := root.fs
	st := unix.Statx_t{Ino: 7, Mode: unix.S_IFREG, Mask: unix.STATX_BTIME, Dev_major: 9}
	open := func() int {
		fd, err := unix.Open(root.Path(), unix.O_PATH|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		return fd
	}
	st.Btime.Sec = 1
	a, err := f.intern(root.hostNode, "a", open(), &st)
	require.NoError(t, err)
	b, err := f.intern(root.hostNode, "b", open(), &st)
	require.NoError(t, err)
	assert.Same(t, a, b)
	f.mu.Lock()
	a.dropFD()
	f.mu.Unlock()
	st.Btime.Sec = 2
	c, err := f.intern(root.hostNode, "a", open(), &st)
	require.NoError(t, err)
	assert.NotSame(t, a, c)
	assert.NotEqual(t, a.num, c.num, "the server tells nodes apart by their numbers")
	for range 2 {
		a.Release()
	}
	c.Release()
	assert.Len(t, f.nodes, 1)
	assert.Len(t, f.numbers, 1)
}

func TestHostDirReleaseAndCloseLeaveNoDescriptor(t *testing.T) {
	before := descriptors(t)
	dir := t.TempDir()
	root, err := HostDir(dir, HostDirOptions{})
	require.NoError(t, err)
	ctx := t.Context()
	for i := range 100 {
		n, f, err := root.Create(ctx, fmt.Sprint(i), os.O_RDWR, 0o600)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		n.Release()
	}
	assert.Len(t, root.fs.nodes, 1, "the root alone")
	kept, err := root.Lookup(ctx, "1")
	require.NoError(t, err)
	require.NoError(t, root.Close())
	_, err = kept.Attr(ctx)
	assert.Equal(t, syscall.ESTALE, Errno(err))
	kept.Release()
	assert.Equal(t, before, descriptors(t))
}

func descriptors(t *testing.T) int {
	list, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(list)
}

func TestHostDirALargeDirectoryIsListedOnceWhileItChanges(t *testing.T) {
	root, dir := openHost(t, HostDirOptions{})
	const files = 5_000
	for i := range files {
		fd, err := unix.Open(filepath.Join(dir, fmt.Sprintf("stays-%d", i)), unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		require.NoError(t, err)
		require.NoError(t, unix.Close(fd))
	}
	d, err := root.OpenDir(t.Context())
	require.NoError(t, err)
	defer d.Close()
	seen := map[string]int{}
	for pos, round := uint64(0), 0; ; round++ {
		es, err := d.Entries(t.Context(), pos, 100)
		require.NoError(t, err)
		if len(es) == 0 {
			break
		}
		for _, e := range es {
			seen[e.Name]++
			pos = e.Next
			assert.NotZero(t, e.Next)
		}
		if round%5 == 0 {
			put(t, filepath.Join(dir, fmt.Sprintf("new-%d", round)), "")
		}
	}
	for i := range files {
		require.Equal(t, 1, seen[fmt.Sprintf("stays-%d", i)])
	}
	_, err = d.Entries(t.Context(), 1<<63, 10)
	assert.Equal(t, syscall.EINVAL, Errno(err), "a position that was never given out")
}

func TestHostDirNamesNeedNotBeText(t *testing.T) {
	root, dir := openHost(t, HostDirOptions{})
	for _, name := range []string{"\xff\xfe\n", strings.Repeat("\xc3", 255), " ", "-", "*"} {
		n, f, err := root.Create(t.Context(), name, os.O_WRONLY, 0o644)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		n.Release()
		_, err = os.Lstat(filepath.Join(dir, name))
		require.NoError(t, err)
	}
	assert.Len(t, names(t, root), 5)
}

func TestHostDirSparseFilesBeyond4GiB(t *testing.T) {
	root, _ := openHost(t, HostDirOptions{})
	ctx := t.Context()
	n, f, err := root.Create(ctx, "big", os.O_RDWR, 0o644)
	require.NoError(t, err)
	defer n.Release()
	defer f.Close()
	const off = 5 << 30
	_, err = f.WriteAt(ctx, []byte("x"), off)
	require.NoError(t, err)
	a, err := n.Attr(ctx)
	require.NoError(t, err)
	assert.EqualValues(t, off+1, a.Size)
	assert.Less(t, a.Blocks*512, int64(1<<20))
	data, err := f.Seek(ctx, 0, SeekData)
	require.NoError(t, err)
	assert.Greater(t, data, int64(4<<30))
	hole, err := f.Seek(ctx, off, SeekHole)
	require.NoError(t, err)
	assert.EqualValues(t, off+1, hole)
	_, err = f.Seek(ctx, 0, 0)
	assert.Equal(t, syscall.EINVAL, Errno(err))
	require.NoError(t, f.Allocate(ctx, FallocPunchHole|FallocKeepSize, 4<<30, 2<<30))
	buf := []byte("?")
	_, err = f.ReadAt(ctx, buf, off)
	require.NoError(t, err)
	assert.Equal(t, "\x00", string(buf))
}

func TestHostDirRenameFlags(t *testing.T) {
	root, dir := openHost(t, HostDirOptions{})
	put(t, filepath.Join(dir, "a"), "a")
	put(t, filepath.Join(dir, "d/b"), "b")
	ctx := t.Context()
	d := at(t, root, "d")
	assert.Equal(t, syscall.EEXIST, Errno(root.Rename(ctx, "a", d, "b", RenameNoReplace)))
	assert.Equal(t, syscall.EINVAL, Errno(root.Rename(ctx, "a", d, "c", 4)), "no whiteouts")
	require.NoError(t, root.Rename(ctx, "a", d, "b", RenameExchange))
	assert.Equal(t, "b", content(t, at(t, root, "a")))
	assert.Equal(t, "a", content(t, at(t, root, "d/b")))
	require.NoError(t, d.Rename(ctx, "b", root, "a", 0))
	assert.Equal(t, []string{"a", "d"}, names(t, root))
}

func TestHostDirRefusesKernelFileSystemsBelow(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	root, dir := openHost(t, HostDirOptions{})
	for _, name := range []string{"proc", "tmp"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o755))
		require.NoError(t, unix.Mount(name+"x", filepath.Join(dir, name), name+map[string]string{"tmp": "fs"}[name], 0, ""))
		defer unix.Unmount(filepath.Join(dir, name), unix.MNT_DETACH)
	}
	_, err := root.Lookup(t.Context(), "proc")
	assert.Equal(t, syscall.EACCES, Errno(err))
	put(t, filepath.Join(dir, "tmp/f"), "other file system")
	f := at(t, root, "tmp/f")
	assert.Equal(t, "other file system", content(t, f))
	a, err := f.Attr(t.Context())
	require.NoError(t, err)
	assert.NotZero(t, a.Ino>>63, "numbers of another file system are kept apart")

	strict, err := HostDir(dir, HostDirOptions{OneFileSystem: true})
	require.NoError(t, err)
	defer strict.Close()
	_, err = strict.Lookup(t.Context(), "tmp")
	assert.Equal(t, syscall.EXDEV, Errno(err))
}
