package images

import (
	"archive/tar"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestRootDiskKeepsMetadata(t *testing.T) {
	s := testStore(t)
	img, err := buildTar(t, s, "meta",
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "bin/su", Mode: 0o4755, Uid: 0, Gid: 42, ModTime: time.Unix(1_000_000_000, 0)}, body: "su!"},
		linkEntry("bin/other", "bin/su"),
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "bin/ping", Mode: 0o755, Uid: 4_000_000_000, Gid: 70_000,
			PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00", "SCHILY.xattr.user.note": "hello",
				"SCHILY.xattr.trusted.overlay.redirect": "/x"}}, body: "ping"},
		entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "var/tmp", Mode: 0o1777}},
		symlinkEntry("long", "/"+strings.Repeat("t", 200)),
		entry{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "pipe", Mode: 0o600}},
		fileEntry("tmp", "a file where a mount point must be"),
		symlinkEntry("etc/resolv.conf", "../run/resolved/stub"),
		fileEntry("big", strings.Repeat("0123456789abcdef", 1<<16)),
	)
	require.NoError(t, err)
	fsck(t, img)
	su := debugfs(t, img, "stat /bin/su")
	require.Regexp(t, `Type: regular\s+Mode:\s+04755`, su)
	require.Regexp(t, `Group:\s+42`, su)
	require.Contains(t, su, "Links: 2")
	require.Contains(t, su, "Sep  9 01:46:40 2001")
	require.Equal(t, strings.Fields(su)[1], strings.Fields(debugfs(t, img, "stat /bin/other"))[1], "same inode")
	// debugfs prints the owner 4,000,000,000 as a signed number.
	ping := debugfs(t, img, "stat /bin/ping")
	require.Regexp(t, `User: -294967296\s+Group: 70000`, ping)
	require.Contains(t, ping, "security.capability (8)")
	require.Contains(t, ping, `user.note (5) = "hello"`)
	require.NotContains(t, ping, "overlay")
	require.Regexp(t, `Mode:\s+01777`, debugfs(t, img, "stat /var/tmp"))
	require.Contains(t, debugfs(t, img, "stat /long"), "Type: symlink")
	require.Contains(t, debugfs(t, img, "stat /pipe"), "Type: FIFO")
	require.Equal(t, strings.Repeat("0123456789abcdef", 1<<16), debugfs(t, img, "cat /big"))
	for dir, mode := range mountPoints {
		if dir != "etc" {
			require.Contains(t, debugfs(t, img, "stat /"+dir), "Type: directory", dir)
			require.NotZero(t, mode)
		}
	}
	require.Contains(t, debugfs(t, img, "stat /etc/resolv.conf"), "Type: regular")
}

func TestSameContentsSameImage(t *testing.T) {
	s := testStore(t)
	one, err := buildTar(t, s, "one", fileEntry("a", "1"), fileEntry("b/c", "2"))
	require.NoError(t, err)
	two, err := buildTar(t, s, "two", dirEntry("b"), fileEntry("b/c", "2"), fileEntry("a", "1"))
	require.NoError(t, err)
	require.Equal(t, one.ID(), two.ID())
	require.Equal(t, []string{"one", "two"}, one.Names())
	list, err := s.List()
	require.NoError(t, err)
	require.Len(t, list, 1)
}

func TestDirSource(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "usr/bin"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "usr/bin/a"), []byte("a"), 0o755))
	require.NoError(t, os.Link(filepath.Join(dir, "usr/bin/a"), filepath.Join(dir, "usr/bin/b")))
	require.NoError(t, os.Symlink("usr/bin", filepath.Join(dir, "bin")))
	require.NoError(t, unix.Setxattr(filepath.Join(dir, "usr/bin/a"), "user.note", []byte("x"), 0))
	s := testStore(t)
	spec := Spec{Arch: "amd64", Kernel: testKernel(t), Source: Source{Kind: KindDir, Ref: dir}}
	img, err := Build(context.Background(), s, spec, nil)
	require.NoError(t, err)
	fsck(t, img)
	require.Contains(t, debugfs(t, img, "stat /usr/bin/b"), "Links: 2")
	require.Contains(t, debugfs(t, img, "stat /usr/bin/b"), "user.note")
	require.Contains(t, debugfs(t, img, "stat /bin"), "usr/bin")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o644))
	again, err := Build(context.Background(), s, spec, nil)
	require.NoError(t, err)
	require.NotEqual(t, img.ID(), again.ID(), "a directory is looked at every time")
}

// counting counts how often a root disk was written.
type counting struct {
	quiet
	built atomic.Int32
}

func (c *counting) Start(what string, _ int64) Task {
	if what == "writing root disk" {
		c.built.Add(1)
	}
	return quiet{}
}

func TestConcurrentBuildsOfOneSpecBuildOnce(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "root.tar")
	require.NoError(t, os.WriteFile(file, archive(t, fileEntry("a", strings.Repeat("x", 4<<20))), 0o644))
	store, kernel := filepath.Join(dir, "store"), testKernel(t)
	for _, force := range []bool{false, true} {
		var c counting
		var wg sync.WaitGroup
		start := make(chan struct{})
		ids := make([]string, 4)
		errs := make([]error, 4)
		for i := range ids {
			wg.Go(func() {
				s, err := OpenStore(store)
				if err != nil {
					errs[i] = err
					return
				}
				<-start
				img, err := Build(context.Background(), s, Spec{Name: "x", Arch: "amd64", Kernel: kernel, Force: force, Source: Source{Kind: KindTar, Ref: file}}, &c)
				if errs[i] = err; err == nil {
					ids[i] = img.ID()
				}
			})
		}
		close(start)
		wg.Wait()
		for i := range ids {
			require.NoError(t, errs[i])
			require.Equal(t, ids[0], ids[i])
		}
		require.EqualValues(t, 1, c.built.Load(), "force=%v", force)
	}
}

func TestKilledBuildIsCollected(t *testing.T) {
	s := testStore(t)
	dead := filepath.Join(s.Dir(), "tmp", "build-dead")
	require.NoError(t, os.Mkdir(dead, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dead, "spool"), make([]byte, 1000), 0o600))
	alive, err := s.newStaging(context.Background(), "build")
	require.NoError(t, err)
	defer alive.close()
	dry, err := s.GC(context.Background(), GCPolicy{DryRun: true})
	require.NoError(t, err)
	require.Equal(t, []Removed{{Kind: "abandoned build", Name: "build-dead", Bytes: 1000}}, dry.Removed)
	require.DirExists(t, dead)
	_, err = buildTar(t, s, "x", fileEntry("a", ""))
	require.NoError(t, err)
	require.NoDirExists(t, dead)
	require.DirExists(t, alive.dir, "a live build's directory stays")
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	s := testStore(t)
	_, err := buildTar(t, s, "x", fileEntry("../x", ""))
	require.ErrorContains(t, err, "path traversal")
	entries, err := os.ReadDir(filepath.Join(s.Dir(), "tmp"))
	require.NoError(t, err)
	require.Empty(t, entries)
	_, err = s.Get("x")
	require.ErrorContains(t, err, "gondolin-mcp images build --name x")
}
