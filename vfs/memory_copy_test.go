package vfs

import (
	"runtime/debug"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCopiedMemoryHasTheSameFilesAndSharesNone(t *testing.T) {
	ctx := t.Context()
	root := NewMemory(MemoryOptions{})
	dir, err := root.Mkdir(ctx, "dir", 0o755)
	require.NoError(t, err)
	file, open, err := dir.Create(ctx, "file", syscall.O_RDWR, 0o644)
	require.NoError(t, err)
	_, err = open.WriteAt(ctx, []byte("before"), 0)
	require.NoError(t, err)
	_, err = root.Link(ctx, "linked", file)
	require.NoError(t, err)
	require.NoError(t, file.SetXattr(ctx, "user.a", []byte("b"), 0))
	_, err = root.Symlink(ctx, "link", "dir/file")
	require.NoError(t, err)

	copied := copyOf(t, root)
	_, err = open.WriteAt(ctx, []byte("after!"), 0)
	require.NoError(t, err)
	require.NoError(t, root.Unlink(ctx, "link"))

	cdir, err := copied.Lookup(ctx, "dir")
	require.NoError(t, err)
	cfile, err := cdir.Lookup(ctx, "file")
	require.NoError(t, err)
	clink, err := copied.Lookup(ctx, "linked")
	require.NoError(t, err)
	require.Same(t, cfile, clink, "two names of one file")
	got, err := cfile.Open(ctx, syscall.O_RDONLY)
	require.NoError(t, err)
	b := make([]byte, 10)
	n, err := got.ReadAt(ctx, b, 0)
	require.NoError(t, err)
	require.Equal(t, "before", string(b[:n]))
	x, err := cfile.GetXattr(ctx, "user.a")
	require.NoError(t, err)
	require.Equal(t, "b", string(x))
	sym, err := copied.Lookup(ctx, "link")
	require.NoError(t, err)
	target, err := sym.Readlink(ctx)
	require.NoError(t, err)
	require.Equal(t, "dir/file", target)
	_, ok := CopyMemory(dir)
	require.False(t, ok, "no root")
}

// A guest that makes directories in each other without end does not take the host along.
func TestCopyOfDeepDirectoriesTakesNoStack(t *testing.T) {
	defer debug.SetMaxStack(debug.SetMaxStack(1 << 20))
	ctx := t.Context()
	root := NewMemory(MemoryOptions{})
	dir := root
	for range 20000 {
		next, err := dir.Mkdir(ctx, "d", 0o755)
		require.NoError(t, err)
		dir = next
	}
	copyOf(t, root)
}

// copyOf copies a tree, and checks that the copy counts the same.
func copyOf(t *testing.T, root Node) Node {
	t.Helper()
	copied, ok := CopyMemory(root)
	require.True(t, ok)
	was, err := root.StatFS(t.Context())
	require.NoError(t, err)
	is, err := copied.StatFS(t.Context())
	require.NoError(t, err)
	require.Equal(t, was, is)
	return copied
}
