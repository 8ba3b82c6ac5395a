//go:build linux

package inguest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// mount returns a new directory on the mount under test.
func mount(t *testing.T) string {
	t.Helper()
	base := os.Getenv("GONDOLIN_DIR")
	if base == "" {
		t.Skip("runs inside a guest")
	}
	dir, err := os.MkdirTemp(base, "t")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func TestPosix(t *testing.T) {
	mount(t)
	for name, test := range posixtest.All {
		t.Run(name, func(t *testing.T) {
			switch name {
			case "OpenSymlinkRace":
				t.Skip("takes a link that the guest's own kernel follows for one that the server followed")
			case "FcntlFlockLocksFile":
				t.Skip("wants a process to conflict with its own lock, which POSIX does not")
			}
			test(t, mount(t))
		})
	}
}

func TestNamesOf255BytesAndNoText(t *testing.T) {
	dir := mount(t)
	for _, name := range []string{strings.Repeat("n", 255), "\xff\xfe\x80", "new\nline", "-rf *", "ünïcödé"} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(name), 0o644), "%q", name)
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, name, string(b))
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Len(t, entries, 1)
		require.Equal(t, name, entries[0].Name())
		require.NoError(t, os.Remove(path))
	}
	require.ErrorIs(t, os.WriteFile(filepath.Join(dir, strings.Repeat("n", 256)), nil, 0o644), unix.ENAMETOOLONG)
}

func TestErrorsAreThoseOfALocalFileSystem(t *testing.T) {
	dir := mount(t)
	f, d := filepath.Join(dir, "f"), filepath.Join(dir, "d")
	require.NoError(t, os.WriteFile(f, []byte("x"), 0o644))
	require.NoError(t, os.Mkdir(d, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(d, "x"), nil, 0o644))
	require.NoError(t, os.Symlink("loop", filepath.Join(dir, "loop")))
	for what, c := range map[string]struct {
		err  error
		want unix.Errno
	}{
		"mkdir over a file":           {unix.Mkdir(f, 0o755), unix.EEXIST},
		"exclusive create":            {second(unix.Open(f, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o644)), unix.EEXIST},
		"open of nothing":             {second(unix.Open(filepath.Join(dir, "none"), unix.O_RDONLY, 0)), unix.ENOENT},
		"open of a directory":         {second(unix.Open(d, unix.O_WRONLY, 0)), unix.EISDIR},
		"a file as a directory":       {second(unix.Open(f+"/x", unix.O_RDONLY, 0)), unix.ENOTDIR},
		"a loop":                      {second(unix.Open(filepath.Join(dir, "loop"), unix.O_RDONLY, 0)), unix.ELOOP},
		"no follow":                   {second(unix.Open(filepath.Join(dir, "loop"), unix.O_RDONLY|unix.O_NOFOLLOW, 0)), unix.ELOOP},
		"rmdir of a full directory":   {unix.Rmdir(d), unix.ENOTEMPTY},
		"rmdir of a file":             {unix.Rmdir(f), unix.ENOTDIR},
		"unlink of a directory":       {unix.Unlink(d), unix.EISDIR},
		"rename into itself":          {unix.Rename(d, filepath.Join(d, "y")), unix.EINVAL},
		"rename of a file over a dir": {unix.Rename(f, d), unix.EISDIR},
		"rename of a dir over a file": {unix.Rename(d, f), unix.ENOTDIR},
		"rename, no replace":          {unix.Renameat2(unix.AT_FDCWD, f, unix.AT_FDCWD, d, unix.RENAME_NOREPLACE), unix.EEXIST},
		"hard link of a directory":    {unix.Link(d, filepath.Join(dir, "l")), unix.EPERM},
		"hard link over a file":       {unix.Link(f, d), unix.EEXIST},
		"device node":                 {unix.Mknod(filepath.Join(dir, "dev"), unix.S_IFBLK|0o600, int(unix.Mkdev(254, 0))), unix.EPERM},
		"readlink of a file":          {second(unix.Readlink(f, make([]byte, 10))), unix.EINVAL},
		"no such attribute":           {second(unix.Getxattr(f, "user.none", make([]byte, 10))), unix.ENODATA},
		"truncate of a directory":     {unix.Truncate(d, 0), unix.EISDIR},
		"negative truncate":           {unix.Truncate(f, -1), unix.EINVAL},
	} {
		assert.ErrorIs(t, c.err, c.want, what)
	}
}

func second[T any](_ T, err error) error { return err }

func TestRenameExchangesAndMovesAcrossDirectories(t *testing.T) {
	dir := mount(t)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	require.NoError(t, os.Mkdir(a, 0o755))
	require.NoError(t, os.WriteFile(b, []byte("b"), 0o644))
	require.NoError(t, unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE))
	st, err := os.Stat(b)
	require.NoError(t, err)
	require.True(t, st.IsDir())
	require.NoError(t, os.Rename(a, filepath.Join(b, "inside")))
	got, err := os.ReadFile(filepath.Join(b, "inside"))
	require.NoError(t, err)
	require.Equal(t, "b", string(got))
}

func TestTimesHaveNanosecondsAndChangeAsTheyShould(t *testing.T) {
	dir := mount(t)
	f := filepath.Join(dir, "f")
	require.NoError(t, os.WriteFile(f, nil, 0o644))
	want := time.Unix(1234567890, 123456789)
	require.NoError(t, os.Chtimes(f, want, want))
	st, err := os.Stat(f)
	require.NoError(t, err)
	require.True(t, st.ModTime().Equal(want), st.ModTime())
	require.NoError(t, os.WriteFile(f, []byte("x"), 0o644))
	st, err = os.Stat(f)
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), st.ModTime(), 5*time.Second, "a write sets it")
	require.NoError(t, os.Chmod(f, 0o640))
	st, err = os.Stat(f)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o640), st.Mode())
}

func TestFilesBeyond4GiBAreSparse(t *testing.T) {
	dir := mount(t)
	f, err := os.Create(filepath.Join(dir, "f"))
	require.NoError(t, err)
	defer f.Close()
	const far = 5 << 30
	if _, err = f.WriteAt([]byte("far"), far); err != nil {
		require.ErrorIs(t, err, unix.EFBIG)
		t.Skip("the provider is smaller than that")
	}
	data, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	require.NoError(t, err)
	require.LessOrEqual(t, data, int64(far))
	b := make([]byte, 3)
	_, err = f.ReadAt(b, far)
	require.NoError(t, err)
	require.Equal(t, "far", string(b))
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(int(f.Fd()), &st))
	require.Less(t, st.Blocks*512, int64(64<<20))
}

// Locks are the guest's own: every process of it sees them.
func TestLocksConflictBetweenProcessesAndOpenFiles(t *testing.T) {
	dir := mount(t)
	path := filepath.Join(dir, "f")
	require.NoError(t, os.WriteFile(path, nil, 0o644))
	a, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer a.Close()
	b, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer b.Close()
	require.NoError(t, unix.Flock(int(a.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	require.ErrorIs(t, unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
	require.NoError(t, unix.Flock(int(a.Fd()), unix.LOCK_UN))
	// Open file description locks, F_OFD_SETLK.
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	require.NoError(t, unix.FcntlFlock(a.Fd(), unix.F_OFD_SETLK, &lock))
	again := unix.Flock_t{Type: unix.F_WRLCK}
	require.ErrorIs(t, unix.FcntlFlock(b.Fd(), unix.F_OFD_SETLK, &again), unix.EAGAIN)
}

func TestSharedMappingsReachTheFile(t *testing.T) {
	dir := mount(t)
	f, err := os.Create(filepath.Join(dir, "f"))
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Truncate(1<<20))
	m, err := unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	copy(m[4090:], "across a page")
	require.NoError(t, unix.Msync(m, unix.MS_SYNC))
	require.NoError(t, unix.Munmap(m))
	b := make([]byte, 13)
	_, err = f.ReadAt(b, 4090)
	require.NoError(t, err)
	require.Equal(t, "across a page", string(b))
}

func TestDirectoryOf2000Entries(t *testing.T) {
	dir := mount(t)
	const n = 2000
	for i := range n {
		require.NoError(t, os.Symlink("x", filepath.Join(dir, "entry-with-a-longer-name-"+string(rune('a'+i%26))+"-"+time.Duration(i).String())))
	}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, n)
}
