package vfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// openHost serves a new directory and returns its path.
func openHost(t *testing.T, o HostDirOptions) (*HostDirRoot, string) {
	t.Helper()
	dir := t.TempDir()
	root, err := HostDir(dir, o)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, root.Close()) })
	return root, dir
}

// at looks a path up. The nodes are released with the test, as a kernel keeps the directories of a file.
func at(t *testing.T, root Node, path string) Node {
	t.Helper()
	way, err := find(t.Context(), root, path)
	t.Cleanup(func() { releaseAll(way) })
	require.NoError(t, err, path)
	return way[len(way)-1]
}

// find looks a path up and returns the nodes on the way.
func find(ctx context.Context, root Node, path string) (way []Node, err error) {
	n := root
	for name := range strings.SplitSeq(path, "/") {
		if n, err = n.Lookup(ctx, name); err != nil {
			return way, err
		}
		way = append(way, n)
	}
	return way, nil
}

// names returns the names in a directory, sorted, read three at a time.
func names(t *testing.T, n Node) []string {
	t.Helper()
	dir, err := n.OpenDir(t.Context())
	require.NoError(t, err)
	defer dir.Close()
	out := []string{}
	for pos := uint64(0); ; {
		es, err := dir.Entries(t.Context(), pos, 3)
		require.NoError(t, err)
		if len(es) == 0 {
			break
		}
		require.LessOrEqual(t, len(es), 3)
		for _, e := range es {
			out, pos = append(out, e.Name), e.Next
		}
	}
	sort.Strings(out)
	return out
}

func put(t *testing.T, path, content string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
}

func content(t *testing.T, n Node) string {
	t.Helper()
	f, err := n.Open(t.Context(), os.O_RDONLY)
	require.NoError(t, err)
	defer f.Close()
	buf := make([]byte, 1<<16)
	size, _ := f.ReadAt(t.Context(), buf, 0)
	return string(buf[:size])
}

func TestHostDirASymlinkAtTheMountsRootIsResolvedOnceByTheOperator(t *testing.T) {
	base := t.TempDir()
	put(t, filepath.Join(base, "real/in"), "inside")
	put(t, filepath.Join(base, "other/in"), "outside")
	link := filepath.Join(base, "link")
	require.NoError(t, os.Symlink(filepath.Join(base, "real"), link))
	root, err := HostDir(link, HostDirOptions{})
	require.NoError(t, err)
	defer root.Close()
	assert.Equal(t, filepath.Join(base, "real"), root.Path(), "an operator can see where it led")
	require.NoError(t, os.Remove(link))
	require.NoError(t, os.Symlink(filepath.Join(base, "other"), link))
	assert.Equal(t, "inside", content(t, at(t, root, "in")))
}

func TestHostDirASymlinkIsNeverFollowed(t *testing.T) {
	root, dir := openHost(t, HostDirOptions{})
	secret := filepath.Join(t.TempDir(), "secret")
	put(t, secret, "secret")
	require.NoError(t, os.Symlink(secret, filepath.Join(dir, "l")))
	require.NoError(t, os.Symlink(filepath.Dir(secret), filepath.Join(dir, "d")))
	ctx := t.Context()
	l := at(t, root, "l")
	target, err := l.Readlink(ctx)
	require.NoError(t, err)
	assert.Equal(t, secret, target)
	_, err = l.Open(ctx, os.O_RDWR)
	assert.Equal(t, syscall.ELOOP, Errno(err))
	_, _, err = root.Create(ctx, "l", os.O_WRONLY|os.O_TRUNC, 0o644)
	assert.Equal(t, syscall.ELOOP, Errno(err))
	size := int64(0)
	_, err = l.SetAttr(ctx, Change{Size: &size})
	assert.Equal(t, syscall.ELOOP, Errno(err))
	mode := fs.FileMode(0o777)
	_, err = l.SetAttr(ctx, Change{Mode: &mode})
	assert.Error(t, err)
	stamp := time.Unix(1, 2)
	a, err := l.SetAttr(ctx, Change{Mtime: &stamp})
	require.NoError(t, err)
	assert.Equal(t, stamp, a.Mtime, "the link's own time")
	_, err = root.Link(ctx, "hard", l)
	require.NoError(t, err)
	a, err = at(t, root, "hard").Attr(ctx)
	require.NoError(t, err)
	assert.Equal(t, fs.ModeSymlink, a.Mode.Type(), "a hard link of the link itself")
	_, err = at(t, root, "d").Lookup(ctx, "secret")
	assert.Equal(t, syscall.ENOTDIR, Errno(err))
	st, err := os.Stat(secret)
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o644), st.Mode())
	assert.NotEqual(t, stamp, st.ModTime())
	got, err := os.ReadFile(secret)
	require.NoError(t, err)
	assert.Equal(t, "secret", string(got))
}

func TestHostDirMagicLinksOfProcSelfFdLeadNowhere(t *testing.T) {
	_, err := HostDir("/proc/self/fd", HostDirOptions{})
	assert.ErrorIs(t, err, syscall.EACCES)
	// The links of procfs, as a node would meet them.
	fd, err := unix.Open("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	f := &hostFS{maxFDs: 8}
	handle, st, err := f.openPath(fd, fmt.Sprint(fd))
	require.NoError(t, err)
	assert.EqualValues(t, unix.S_IFLNK, st.Mode&unix.S_IFMT)
	require.NoError(t, unix.Close(handle))
	require.NoError(t, unix.Close(fd))
}

func TestHostDirNamesThatAreNoNamesAreRefused(t *testing.T) {
	root, dir := openHost(t, HostDirOptions{})
	put(t, filepath.Join(dir, "a/b"), "")
	for _, name := range []string{"", ".", "..", "a/b", "/etc", "a\x00"} {
		_, err := root.Lookup(t.Context(), name)
		assert.Equal(t, syscall.EINVAL, Errno(err), "%q", name)
		_, _, err = root.Create(t.Context(), name, os.O_RDWR, 0o600)
		assert.Equal(t, syscall.EINVAL, Errno(err), "%q", name)
		assert.Equal(t, syscall.EINVAL, Errno(root.Rename(t.Context(), "a", root, name, 0)), "%q", name)
	}
	_, err := root.Lookup(t.Context(), strings.Repeat("x", 256))
	assert.Equal(t, syscall.ENAMETOOLONG, Errno(err))
}

func TestHostDirSpecialFilesAreNeverOpened(t *testing.T) {
	root, dir := openHost(t, HostDirOptions{})
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o666))
	require.NoError(t, unix.Mknod(filepath.Join(dir, "sock"), unix.S_IFSOCK|0o666, 0))
	want := map[string]syscall.Errno{"fifo": syscall.EACCES, "sock": syscall.ENXIO}
	if unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) == nil {
		want["null"] = syscall.EACCES
	}
	for name, errno := range want {
		for _, flags := range []int{os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC} {
			_, err := at(t, root, name).Open(t.Context(), flags)
			assert.Equal(t, errno, Errno(err), name)
			_, _, err = root.Create(t.Context(), name, flags, 0o600)
			assert.Equal(t, errno, Errno(err), name)
		}
	}
	_, err := root.Mknod(t.Context(), "f2", fs.ModeNamedPipe|0o600)
	assert.Equal(t, syscall.EPERM, Errno(err))
	_, err = root.Mknod(t.Context(), "d2", fs.ModeDevice|0o600)
	assert.Equal(t, syscall.EPERM, Errno(err))
	s, err := root.Mknod(t.Context(), "s2", fs.ModeSocket|0o600)
	require.NoError(t, err)
	s.Release()
}

func TestHostDirNeverSetsSetuidOrSetgidOnTheHost(t *testing.T) {
	root, dir := openHost(t, HostDirOptions{})
	ctx := t.Context()
	n, f, err := root.Create(ctx, "x", os.O_RDWR, 0o755|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)
	require.NoError(t, err)
	defer n.Release()
	mode := 0o755 | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky
	_, err = n.SetAttr(ctx, Change{Mode: &mode})
	require.NoError(t, err)
	_, err = f.SetAttr(ctx, Change{Mode: &mode})
	require.NoError(t, err)
	require.NoError(t, f.Close())
	st, err := os.Stat(filepath.Join(dir, "x"))
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o755), st.Mode())

	// What the host made loses the bits before a byte is written, also when the server is root.
	require.NoError(t, os.Chmod(filepath.Join(dir, "x"), 0o755|fs.ModeSetuid))
	f, err = n.Open(ctx, os.O_WRONLY)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	st, err = os.Stat(filepath.Join(dir, "x"))
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o755), st.Mode())
}

func TestHostDirFilesBelongToTheDirectorysOwnerAndShowTheGuests(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	require.NoError(t, os.Chown(dir, 4711, 4712))
	root, err := HostDir(dir, HostDirOptions{UID: 1000, GID: 1001})
	require.NoError(t, err)
	defer root.Close()
	ctx := t.Context()
	n, f, err := root.Create(ctx, "f", os.O_RDWR, 0o666)
	require.NoError(t, err)
	defer n.Release()
	require.NoError(t, f.Close())
	d, err := root.Mkdir(ctx, "d", 0o777)
	require.NoError(t, err)
	defer d.Release()
	l, err := root.Symlink(ctx, "l", "x")
	require.NoError(t, err)
	defer l.Release()
	for name, mode := range map[string]fs.FileMode{"f": 0o666, "d": 0o777 | fs.ModeDir, "l": 0o777 | fs.ModeSymlink} {
		st, err := os.Lstat(filepath.Join(dir, name))
		require.NoError(t, err)
		assert.EqualValues(t, 4711, st.Sys().(*syscall.Stat_t).Uid, name)
		assert.EqualValues(t, 4712, st.Sys().(*syscall.Stat_t).Gid, name)
		assert.Equal(t, mode, st.Mode(), "%s: the host's umask is not the guest's", name)
	}
	uid := uint32(33)
	a, err := n.SetAttr(ctx, Change{UID: &uid})
	require.NoError(t, err)
	assert.EqualValues(t, []uint32{33, 1001}, []uint32{a.UID, a.GID}, "chown is remembered")
	st, err := os.Lstat(filepath.Join(dir, "f"))
	require.NoError(t, err)
	assert.EqualValues(t, 4711, st.Sys().(*syscall.Stat_t).Uid, "and is the guest's alone")
	require.NoError(t, root.Unlink(ctx, "f"))
	assert.Empty(t, root.fs.owners)
}

func TestHostDirOnlyUserAttributesPass(t *testing.T) {
	root, dir := openHost(t, HostDirOptions{})
	put(t, filepath.Join(dir, "f"), "")
	ctx := t.Context()
	n := at(t, root, "f")
	if err := n.SetXattr(ctx, "user.a", []byte("1"), 0); errors.Is(err, syscall.ENOTSUP) {
		t.Skip("no attributes here")
	}
	v, err := n.GetXattr(ctx, "user.a")
	require.NoError(t, err)
	assert.Equal(t, "1", string(v))
	assert.Equal(t, syscall.EEXIST, Errno(n.SetXattr(ctx, "user.a", nil, XattrCreate)))
	for _, name := range []string{"security.capability", "security.selinux", "trusted.overlay.opaque", "system.posix_acl_access", "user.", "user.a\x00"} {
		assert.Equal(t, syscall.ENOTSUP, Errno(n.SetXattr(ctx, name, []byte{1}, 0)), name)
		_, err := n.GetXattr(ctx, name)
		assert.Equal(t, syscall.ENOTSUP, Errno(err), name)
		assert.Equal(t, syscall.ENOTSUP, Errno(n.RemoveXattr(ctx, name)), name)
	}
	if os.Getuid() == 0 {
		require.NoError(t, unix.Setxattr(filepath.Join(dir, "f"), "trusted.x", []byte("1"), 0))
	}
	names, err := n.ListXattr(ctx)
	require.NoError(t, err)
	assert.Equal(t, []string{"user.a"}, names)
	require.NoError(t, n.RemoveXattr(ctx, "user.a"))
	_, err = n.GetXattr(ctx, "user.a")
	assert.Equal(t, syscall.ENODATA, Errno(err))
}
