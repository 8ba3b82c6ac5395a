package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

// stateOfOwn is a state directory without snapshots.
func stateOfOwn(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(cacheOfOwn(t), "state")
	require.NoError(t, os.Mkdir(dir, 0o755))
	return dir
}

func restorable(t *testing.T) sandbox.Options {
	return sandbox.Options{Image: bootable(defaultImage(t))}
}

// Another host is what another process has, after a restart of the machine too: nothing but the
// directory is shared.
func TestSnapshotGoesOnInAnotherHostAnyNumberOfTimes(t *testing.T) {
	state := stateOfOwn(t)
	h := templated(t, sandbox.HostOptions{StateDir: state}, small)
	s := newSession(t, h, small)
	job, count := counter(t, s)
	sh(t, s, "echo on disk > /root/file; echo in memory > /dev/shm/file")
	taken, err := s.Snapshot(t.Context(), "one", sandbox.SnapshotOptions{})
	require.NoError(t, err)
	t.Logf("the session stood still for %v, the snapshot has %d MiB", taken.Pause, taken.Bytes>>20)
	at, was := count(s), sh(t, s, "cat /etc/machine-id")
	require.Greater(t, at, 0, "the session goes on")
	_, err = s.Snapshot(t.Context(), "one", sandbox.SnapshotOptions{})
	require.ErrorContains(t, err, `snapshot "one" exists`)
	require.NoError(t, h.Close())

	other := newHost(t, sandbox.HostOptions{StateDir: state})
	seen := map[string]bool{was: true}
	for range 2 {
		r, err := other.Restore(t.Context(), "one", restorable(t))
		require.NoError(t, err)
		require.Equal(t, sandbox.OriginRestored, r.Info().Origin)
		require.Equal(t, 256, r.Info().Limits.MemoryMiB)
		before := count(r)
		eventually(t, 30*time.Second, "it counts on", func() bool { return count(r) > before+3 })
		require.Equal(t, "on disk\nin memory", sh(t, r, "cat /root/file /dev/shm/file"))
		require.Equal(t, "1", sh(t, r, "grep -c 'gondolin session begins' /etc/ssl/certs/ca-certificates.crt"), "only its own authority")
		chunk, err := r.Output(t.Context(), job, 0, 1<<10, 0)
		require.NoError(t, err)
		require.Contains(t, string(chunk.Data), "1\n2\n3\n")
		id := sh(t, r, "cat /etc/machine-id")
		require.False(t, seen[id], "a machine-id of its own")
		seen[id] = true
		require.NoError(t, r.Close())
	}
}

func TestDiskSnapshotBootsWithTheFiles(t *testing.T) {
	state := stateOfOwn(t)
	h := newHost(t, sandbox.HostOptions{StateDir: state})
	s := newSession(t, h, small)
	sh(t, s, "echo kept > /root/file; echo gone > /dev/shm/file")
	taken, err := s.Snapshot(t.Context(), "disk", sandbox.SnapshotOptions{Disk: true})
	require.NoError(t, err)
	require.False(t, taken.Memory)
	t.Logf("the session stood still for %v, the snapshot has %d MiB", taken.Pause, taken.Bytes>>20)
	require.Equal(t, "kept", sh(t, s, "cat /root/file"))
	r, err := h.Restore(t.Context(), "disk", restorable(t))
	require.NoError(t, err)
	defer r.Close()
	require.Equal(t, "kept", sh(t, r, "cat /root/file; cat /dev/shm/file 2>/dev/null || true"))
	require.Equal(t, "1", sh(t, r, "grep -c 'gondolin session begins' /etc/ssl/certs/ca-certificates.crt"), "only its own authority")
}

func TestDamagedSnapshotIsNoticedAndNamed(t *testing.T) {
	state := stateOfOwn(t)
	h := templated(t, sandbox.HostOptions{StateDir: state}, small)
	s := newSession(t, h, small)
	for _, name := range []string{"a", "b"} {
		_, err := s.Snapshot(t.Context(), name, sandbox.SnapshotOptions{})
		require.NoError(t, err)
		sh(t, s, "head -c 1M /dev/urandom > /dev/shm/"+name)
	}
	dir := func(name string) string { return filepath.Join(state, "snapshots", name) }
	for what, damage := range map[string]func(path string){
		"flipped": func(p string) {
			b, err := os.ReadFile(p)
			require.NoError(t, err)
			b[len(b)/2] ^= 0x20
			require.NoError(t, os.WriteFile(p, b, 0o600))
		},
		"cut": func(p string) {
			st, err := os.Stat(p)
			require.NoError(t, err)
			require.NoError(t, os.Truncate(p, st.Size()/2))
		},
		"swapped": func(p string) {
			require.NoError(t, os.Rename(filepath.Join(dir("b"), filepath.Base(p)), p))
		},
		"gone": func(p string) { require.NoError(t, os.Remove(p)) },
	} {
		for _, file := range []string{"snapshot.json", "state", "memory"} {
			if what == "flipped" && file == "memory" {
				continue // as TestDamagedTemplate has it: what is flipped may lie in a hole
			}
			keep := filepath.Join(state, "keep")
			path := filepath.Join(dir("a"), file)
			other := filepath.Join(dir("b"), file)
			require.NoError(t, os.Link(path, keep))
			require.NoError(t, os.Link(other, keep+"-b"))
			if what != "swapped" && what != "gone" { // a copy of its own
				b, err := os.ReadFile(path)
				require.NoError(t, err)
				require.NoError(t, os.Remove(path))
				require.NoError(t, os.WriteFile(path, b, 0o600))
			}
			damage(path)
			_, err := h.Restore(t.Context(), "a", restorable(t))
			require.ErrorContains(t, err, "snapshot a is damaged", "%s %s", what, file)
			require.NoError(t, os.Rename(keep, path))
			if _, err := os.Stat(other); err != nil {
				require.NoError(t, os.Rename(keep+"-b", other))
			} else {
				require.NoError(t, os.Remove(keep+"-b"))
			}
		}
	}
	r, err := h.Restore(t.Context(), "a", restorable(t))
	require.NoError(t, err, "undamaged again")
	require.NoError(t, r.Close())
}

func TestSnapshotIsRefusedWhereItCannotGoOn(t *testing.T) {
	state := stateOfOwn(t)
	h := templated(t, sandbox.HostOptions{StateDir: state}, small)
	s := newSession(t, h, small)
	_, err := s.Snapshot(t.Context(), "one", sandbox.SnapshotOptions{})
	require.NoError(t, err)
	o := restorable(t)
	o.Image.Key = "another"
	_, err = h.Restore(t.Context(), "one", o)
	require.ErrorContains(t, err, "(another)")
	require.ErrorContains(t, err, "it was made with the image")
	_, err = h.Restore(t.Context(), "none", restorable(t))
	require.ErrorIs(t, err, sandbox.ErrNoSnapshot)
	_, err = h.Restore(t.Context(), "../one", restorable(t))
	require.ErrorIs(t, err, sandbox.ErrInvalid)

	wrapper := filepath.Join(t.TempDir(), "qemu")
	require.NoError(t, os.WriteFile(wrapper, []byte("#!/bin/sh\n[ \"$1\" = --version ] && echo QEMU emulator version 99.9 && exit\nexec qemu-system-x86_64 \"$@\"\n"), 0o755))
	version, err := exec.Command("qemu-system-x86_64", "--version").Output()
	require.NoError(t, err)
	other := newHost(t, sandbox.HostOptions{StateDir: state, QEMU: wrapper, Accelerator: "tcg"})
	_, err = other.Restore(t.Context(), "one", restorable(t))
	require.ErrorContains(t, err, "QEMU emulator version 99.9")
	require.ErrorContains(t, err, "it was made with "+strings.SplitN(string(version), "\n", 2)[0]+", and here is")
	kvm := newHost(t, sandbox.HostOptions{StateDir: state, Accelerator: "kvm"})
	_, err = kvm.Restore(t.Context(), "one", restorable(t))
	require.ErrorContains(t, err, "with the accelerator "+s.Info().Accelerator+", and here is kvm")
	require.NotContains(t, strings.ToLower(err.Error()), "damaged")
}
