package sandbox

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Each version of the agent makes one of some megabytes.
func TestOldInitramfsMakeRoomAndTheNewestStay(t *testing.T) {
	dir := t.TempDir()
	for i := range 20 {
		path := filepath.Join(dir, strconv.Itoa(i))
		require.NoError(t, os.WriteFile(path, nil, 0o644))
		when := time.Now().Add(time.Duration(i-60) * time.Minute)
		require.NoError(t, os.Chtimes(path, when, when))
	}
	pruneInitramfs(dir, filepath.Join(dir, "0")) // the one that was just made stays, however old its time
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, keptInitramfs)
	require.FileExists(t, filepath.Join(dir, "0"))
	require.FileExists(t, filepath.Join(dir, "19"))
	require.NoFileExists(t, filepath.Join(dir, "1"))
}
