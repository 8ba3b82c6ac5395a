package vfs

import (
	"archive/zip"
	"bytes"
	"context"
	"io/fs"
	"os"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func readAll(t *testing.T, n Node) string {
	t.Helper()
	f, err := n.Open(context.Background(), syscall.O_RDONLY)
	require.NoError(t, err)
	defer func() { assert.NoError(t, f.Close()) }()
	b := make([]byte, 1<<20)
	// From behind first: a file that can only be read in order must do too.
	k, err := f.ReadAt(context.Background(), b, 2)
	require.NoError(t, err)
	tail := string(b[:k])
	k, err = f.ReadAt(context.Background(), b[:2], 0)
	require.NoError(t, err)
	return string(b[:k]) + tail
}

func walk(t *testing.T, n Node, names ...string) Node {
	t.Helper()
	for _, name := range names {
		var err error
		n, err = n.Lookup(context.Background(), name)
		require.NoError(t, err, name)
	}
	return n
}

func zipFS(t *testing.T) fs.FS {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, err := w.Create("dir/file")
	require.NoError(t, err)
	_, err = f.Write([]byte("content"))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	r, err := zip.NewReader(bytes.NewReader(b.Bytes()), int64(b.Len()))
	require.NoError(t, err)
	return r
}

func TestFromFSReadsAnyKindOfFile(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(dir+"/dir", 0o755))
	require.NoError(t, os.WriteFile(dir+"/dir/file", []byte("content"), 0o644))
	for name, f := range map[string]fs.FS{
		"read at":  fstest.MapFS{"dir/file": {Data: []byte("content")}},
		"in order": zipFS(t),
		"os":       os.DirFS(dir),
	} {
		t.Run(name, func(t *testing.T) {
			root := FromFS(f, FromFSOptions{UID: 7})
			n := walk(t, root, "dir", "file")
			assert.Equal(t, "content", readAll(t, n))
			a, err := n.Attr(context.Background())
			require.NoError(t, err)
			assert.Equal(t, uint32(7), a.UID)
			again, err := walk(t, root, "dir", "file").Attr(context.Background())
			require.NoError(t, err)
			assert.Equal(t, a.Ino, again.Ino)
			_, err = n.Open(context.Background(), syscall.O_RDWR)
			require.ErrorIs(t, err, syscall.EROFS)
			_, err = root.Lookup(context.Background(), "none")
			require.Equal(t, syscall.ENOENT, Errno(err))
		})
	}
}

func TestFromFSShowsLinksWhereTheFileSystemHasThem(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Symlink("/etc/passwd", dir+"/link"))
	n := walk(t, FromFS(os.DirFS(dir), FromFSOptions{}), "link")
	a, err := n.Attr(context.Background())
	require.NoError(t, err)
	assert.Equal(t, fs.ModeSymlink, a.Mode.Type())
	target, err := n.Readlink(context.Background())
	require.NoError(t, err)
	assert.Equal(t, "/etc/passwd", target)
	_, err = n.Open(context.Background(), syscall.O_RDONLY)
	require.Equal(t, syscall.ELOOP, Errno(err), "the host's file behind a link was opened")
}

func TestFromFSBoundsWhatItBuffers(t *testing.T) {
	root := FromFS(zipFS(t), FromFSOptions{MaxBuffered: 10})
	n := walk(t, root, "dir", "file")
	f, err := n.Open(context.Background(), 0)
	require.NoError(t, err)
	_, err = n.Open(context.Background(), 0)
	require.ErrorIs(t, err, syscall.ENOMEM)
	require.NoError(t, f.Close())
	assert.Equal(t, "content", readAll(t, n))
}
