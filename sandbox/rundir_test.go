package sandbox

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The runtime directory may be a home directory, by mistake: nothing of the user's goes.
func TestWhatIsCollectedIsOurs(t *testing.T) {
	base := t.TempDir()
	require.NoError(t, os.Chmod(base, 0o700))
	kept := []string{"documents", "workspaces", ".config", ".new-project"}
	for _, name := range kept {
		require.NoError(t, os.MkdirAll(filepath.Join(base, name, "sub"), 0o700))
	}
	require.NoError(t, os.WriteFile(filepath.Join(base, "documents", lockName), nil, 0o600))
	require.NoError(t, os.Symlink(filepath.Join(base, "documents"), filepath.Join(base, "abcdefghij")))
	dead, err := newRunDir(base, newID())
	require.NoError(t, err)
	require.NoError(t, dead.lock.Close())
	lives, err := newRunDir(base, newID())
	require.NoError(t, err)
	defer lives.remove()
	young := filepath.Join(base, youngPrefix+newID())
	require.NoError(t, os.Mkdir(young, 0o700))
	old := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(young, old, old))
	for _, name := range kept {
		require.NoError(t, os.Chtimes(filepath.Join(base, name), old, old))
	}

	gone, err := Collect(CollectOptions{CacheDir: t.TempDir(), StateDir: t.TempDir(), RuntimeDir: base, DryRun: true})
	require.NoError(t, err)
	require.Len(t, gone, 2)
	collectStale(base, slog.New(slog.DiscardHandler))
	for _, name := range kept {
		entries, err := os.ReadDir(filepath.Join(base, name))
		require.NoError(t, err)
		want := 1
		if name == "documents" {
			want = 2
		}
		require.Len(t, entries, want, "%s keeps what is in it and gets nothing", name)
	}
	require.DirExists(t, lives.path)
	require.NoDirExists(t, dead.path)
	require.NoDirExists(t, young)
}
