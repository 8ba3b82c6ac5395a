package vfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What the guest itself did, it need not ask for again, although the host's kernel
// reports it as a change like any other.
func TestGuestIsNotMadeToAskForWhatItDidItself(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	root, _ := openHost(t, HostDirOptions{})
	var asked atomic.Int64
	counting := Hooks(root, HookFuncs{Kinds: []OpKind{OpLookup}, Before: func(context.Context, Op) error {
		asked.Add(1)
		return nil
	}})
	s := newServer(t, Options{}, Mount{Name: "m", Root: counting})
	g := startGuest(t, s)
	settlePoll(t, filepath.Join(g.dir, "m"))
	require.Eventually(t, s.mounts[0].complete.Load, 5*time.Second, time.Millisecond)
	name := func(i int) string { return filepath.Join(g.dir, "m", fmt.Sprintf("file%d", i)) }
	const n = 200
	for i := range n {
		require.NoError(t, os.WriteFile(name(i), []byte("content"), 0o644))
	}
	time.Sleep(1500 * time.Millisecond) // beyond the timeout of what is not watched, and all events were told
	before := asked.Load()
	for i := range n {
		st, err := os.Stat(name(i))
		require.NoError(t, err)
		require.EqualValues(t, 7, st.Size())
	}
	require.Less(t, asked.Load()-before, int64(n/10))
}

// Also in the very moment in which the guest changes it too.
func TestHostEditsShowWithinASecondWhateverTheGuestDoes(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	root, dir := openHost(t, HostDirOptions{})
	s := newServer(t, Options{}, Mount{Name: "m", Root: root})
	g := startGuest(t, s)
	settlePoll(t, filepath.Join(g.dir, "m"))
	require.Eventually(t, s.mounts[0].complete.Load, 5*time.Second, time.Millisecond)
	inside := func(name string) string { return filepath.Join(g.dir, "m", name) }
	shows := func(name, want string) {
		t.Helper()
		var got []byte
		began := time.Now()
		for time.Since(began) < time.Second {
			if got, _ = os.ReadFile(inside(name)); string(got) == want {
				return
			}
		}
		t.Fatalf("%s holds %q, not %q, after a second", name, got, want)
	}
	for i := range 20 {
		host := fmt.Sprintf("by the host, time %d", i)
		require.NoError(t, os.WriteFile(inside("both"), []byte("by the guest"), 0o644))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "both"), []byte(host), 0o644))
		shows("both", host)
		fresh := fmt.Sprintf("new%d", i)
		_, err := os.Stat(inside(fresh))
		require.ErrorIs(t, err, os.ErrNotExist)
		require.NoError(t, os.WriteFile(filepath.Join(dir, fresh), []byte("x"), 0o644))
		shows(fresh, "x")
		require.NoError(t, os.Remove(inside(fresh)))
		require.NoError(t, os.WriteFile(filepath.Join(dir, fresh), []byte("again"), 0o644))
		shows(fresh, "again")
		require.NoError(t, os.Remove(filepath.Join(dir, fresh)))
		require.Eventually(t, func() bool { _, err := os.Stat(inside(fresh)); return os.IsNotExist(err) }, time.Second, time.Millisecond)
		// Replaced by another file, as editors do.
		require.NoError(t, os.WriteFile(filepath.Join(dir, "swap"), []byte(host), 0o644))
		require.NoError(t, os.Rename(filepath.Join(dir, "swap"), filepath.Join(dir, "replaced")))
		shows("replaced", host)
	}
}

// notForUs are tests of go-fuse that want what no file system owes.
var notForUs = map[string]string{
	"FcntlFlockLocksFile": "wants a process to conflict with its own lock, which POSIX does not",
	"OpenSymlinkRace":     "takes a link that the kernel itself follows for one that the server followed",
}
