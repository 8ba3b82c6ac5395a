package images

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNothingIsDeletedThroughAMount(t *testing.T) {
	require.NoError(t, checkUnmounted(t.TempDir()))
	require.Equal(t, "/a b", unescapeMount(`/a\040b`))
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	s := testStore(t)
	victim, dead := t.TempDir(), filepath.Join(s.Dir(), "tmp", "build-dead")
	require.NoError(t, os.WriteFile(filepath.Join(victim, "precious"), nil, 0o644))
	require.NoError(t, os.MkdirAll(filepath.Join(dead, "root/dev"), 0o755))
	if err := syscall.Mount(victim, filepath.Join(dead, "root/dev"), "", syscall.MS_BIND, ""); err != nil {
		t.Skipf("mounting is not allowed here: %v", err)
	}
	unmounted := false
	t.Cleanup(func() {
		if !unmounted {
			_ = syscall.Unmount(filepath.Join(dead, "root/dev"), 0)
		}
	})
	_, err := s.GC(context.Background(), GCPolicy{})
	require.ErrorContains(t, err, "still mounted on")
	require.FileExists(t, filepath.Join(victim, "precious"))
	_, err = buildTar(t, s, "x", fileEntry("a", ""))
	require.NoError(t, err, "and it is in no build's way")
	require.FileExists(t, filepath.Join(victim, "precious"))
	require.NoError(t, syscall.Unmount(filepath.Join(dead, "root/dev"), 0))
	unmounted = true
	report, err := s.GC(context.Background(), GCPolicy{})
	require.NoError(t, err)
	require.Equal(t, "build-dead", report.Removed[0].Name)
}
