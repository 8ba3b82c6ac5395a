package vfs

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// paused serves dir such that a rename of path, already judged by the wrappers above, waits until
// other has run or cannot yet.
func paused(t *testing.T, path string, other func()) (Node, string) {
	host, dir := openHost(t, HostDirOptions{})
	done := make(chan struct{})
	var once atomic.Bool
	return Hooks(host, HookFuncs{Kinds: []OpKind{OpRename, OpCreate}, Before: func(_ context.Context, op Op) error {
		if op.Path != path || once.Swap(true) {
			return nil
		}
		go func() {
			defer close(done)
			other()
		}()
		select {
		case <-done:
		case <-time.After(100 * time.Millisecond):
			t.Cleanup(func() { <-done })
		}
		return nil
	}}), dir
}

// What a rename was judged for is what it moves, whatever a guest does meanwhile on another thread.
func TestShadowARenameMovesWhatItWasJudgedFor(t *testing.T) {
	var root Node
	host, dir := paused(t, "t/.docker", func() {
		_ = at(t, root, "p").Rename(context.Background(), ".docker", at(t, root, "t"), ".docker", RenameExchange)
	})
	root = Shadow(host, mustRules(t, patterns(".docker/config.json")...), ShadowOptions{})
	put(t, filepath.Join(dir, "p/.docker/config.json"), "secret")
	put(t, filepath.Join(dir, "t/.docker"), "the guest's")
	err := at(t, root, "t").Rename(t.Context(), ".docker", at(t, root, "t"), "plain", 0)
	require.NoError(t, err)
	_, err = os.Stat(filepath.Join(dir, "t/plain/config.json"))
	assert.ErrorIs(t, err, syscall.ENOTDIR, "the directory came to light")
}

func TestProtectARenameMovesWhatItWasJudgedFor(t *testing.T) {
	var root Node
	host, dir := paused(t, "foo/x", func() {
		_ = at(t, root, "foo").Rename(context.Background(), "x", at(t, root, "foo"), "d", RenameExchange)
	})
	root = Protect(host, mustRules(t, patterns("/modules/**/hooks")...), ProtectOptions{})
	put(t, filepath.Join(dir, "modules/m/config"), "")
	put(t, filepath.Join(dir, "foo/d/hooks"), "planted")
	put(t, filepath.Join(dir, "foo/x"), "a file")
	err := at(t, root, "foo").Rename(t.Context(), "x", at(t, root, "modules/m"), "x", 0)
	require.NoError(t, err)
	_, err = os.Stat(filepath.Join(dir, "modules/m/x/hooks"))
	assert.ErrorIs(t, err, syscall.ENOTDIR, "it was planted")
}

func TestProtectCreatingOpensWhatItWasJudgedFor(t *testing.T) {
	var root Node
	host, dir := paused(t, "free", func() {
		_ = root.Rename(context.Background(), "twin", root, "free", 0)
	})
	root = Protect(host, mustRules(t, patterns(".envrc")...), ProtectOptions{})
	put(t, filepath.Join(dir, ".envrc"), "the user's")
	put(t, filepath.Join(dir, "free"), "the guest's")
	require.NoError(t, os.Link(filepath.Join(dir, ".envrc"), filepath.Join(dir, "twin")))
	require.NoError(t, drop2(root.Create(t.Context(), "free", os.O_RDWR|os.O_TRUNC, 0o644)))
	got, err := os.ReadFile(filepath.Join(dir, ".envrc"))
	require.NoError(t, err)
	assert.Equal(t, "the user's", string(got), "it was written through its twin")
}
