package sandbox

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// It is compared each time a server starts: what the last one wrote is taken, and what was damaged since is not.
func TestADamagedInitramfsIsMadeAgain(t *testing.T) {
	modules := filepath.Join(t.TempDir(), "modules")
	require.NoError(t, os.WriteFile(modules, []byte("070701 some"), 0o644))
	dir := t.TempDir()
	path, err := initramfs(dir, modules)
	require.NoError(t, err)
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	before, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o644), before.Mode())
	_, err = initramfs(dir, modules)
	require.NoError(t, err)
	after, err := os.Stat(path)
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after), "it was not written again")

	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	for what, damaged := range map[string][]byte{"cut": good[:len(good)-4], "longer": append(bytes.Clone(good), 0), "flipped": flipped, "empty": nil} {
		require.NoError(t, os.WriteFile(path, damaged, 0o644))
		_, err := initramfs(dir, modules)
		require.NoError(t, err, what)
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		require.True(t, bytes.Equal(good, b), what)
	}
}

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
