package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/vfs"
)

// hostDir serves a directory of the test's own.
func hostDir(t testing.TB) (string, *vfs.HostDirRoot) {
	t.Helper()
	dir := t.TempDir()
	root, err := vfs.HostDir(dir, vfs.HostDirOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, root.Close()) })
	return dir, root
}

func TestHostDirectoryIsSharedBothWays(t *testing.T) {
	dir, root := hostDir(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "from-host"), []byte("hello"), 0o644))
	o := small
	o.Mounts = []sandbox.Mount{{Path: "/workspace", Root: root}}
	s := newSession(t, newHost(t, sandbox.HostOptions{}), o)
	require.Equal(t, "hello", sh(t, s, "cat /workspace/from-host"))
	sh(t, s, "mkdir /workspace/d && echo from guest > /workspace/d/file && sync")
	b, err := os.ReadFile(filepath.Join(dir, "d", "file"))
	require.NoError(t, err)
	require.Equal(t, "from guest\n", string(b))
}
