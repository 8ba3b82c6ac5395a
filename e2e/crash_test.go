package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

func qemuPID(t *testing.T, runtimeDir string, s *sandbox.Session) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(runtimeDir, s.ID(), "qemu.pid"))
	require.NoError(t, err)
	pid, err := strconv.Atoi(string(b))
	require.NoError(t, err)
	return pid
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	names := []string{}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestDeathOfQEMUIsToldAndLeavesNothing(t *testing.T) {
	dir := runtimeDir(t)
	s := newSession(t, newHost(t, sandbox.HostOptions{RuntimeDir: dir, NoTemplates: true}), sandbox.Options{})
	p, err := s.Start(t.Context(), sandbox.Command{Argv: []string{"sleep", "1000"}})
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(qemuPID(t, dir, s), syscall.SIGKILL))
	_, err = p.Wait()
	require.ErrorIs(t, err, sandbox.ErrClosed, "a call under way is answered")
	require.ErrorContains(t, err, "signal: killed")
	<-s.Done()
	require.Empty(t, entries(t, dir))
}

func TestPowerOffByTheGuestIsToldWithTheConsole(t *testing.T) {
	s := newSession(t, newHost(t, sandbox.HostOptions{}), sandbox.Options{})
	_, err := s.Run(t.Context(), sandbox.Command{Shell: "echo last words > /dev/console; kill -9 1; pkill -9 -x sandboxd; sleep 100"})
	require.ErrorIs(t, err, sandbox.ErrClosed)
	require.ErrorContains(t, err, "the machine powered off")
	require.ErrorContains(t, err, "last words")
	require.ErrorContains(t, err, "sandboxd was ended by killed")
}

func TestBootThatCannotFinishIsToldWithTheConsoleAndLeavesNothing(t *testing.T) {
	dir := runtimeDir(t)
	h := newHost(t, sandbox.HostOptions{RuntimeDir: dir, BootTimeout: 20 * time.Second, NoTemplates: true})
	image := bootable(defaultImage(t))
	image.RootDisk = filepath.Join(t.TempDir(), "no-filesystem")
	require.NoError(t, os.WriteFile(image.RootDisk, make([]byte, 1<<20), 0o644))
	_, err := h.Create(t.Context(), sandbox.Options{Image: image})
	require.ErrorContains(t, err, "mounting the root disk", "the guest's own words")
	require.ErrorContains(t, err, "last lines of the console")
	require.Empty(t, entries(t, dir))

	image = bootable(defaultImage(t))
	image.Kernel = filepath.Join(t.TempDir(), "no-kernel")
	require.NoError(t, os.WriteFile(image.Kernel, []byte("not a kernel"), 0o644))
	_, err = h.Create(t.Context(), sandbox.Options{Image: image})
	require.ErrorContains(t, err, "QEMU did not start")
	require.Empty(t, entries(t, dir))
}

func TestBootThatHangsIsGivenUp(t *testing.T) {
	dir := runtimeDir(t)
	h := newHost(t, sandbox.HostOptions{RuntimeDir: dir, BootTimeout: 300 * time.Millisecond, Accelerator: "tcg", NoTemplates: true})
	_, err := h.Create(t.Context(), sandbox.Options{Image: bootable(defaultImage(t))})
	require.ErrorContains(t, err, "did not announce itself within 300ms")
	require.Empty(t, entries(t, dir))
}

func TestCancelledStartLeavesNothing(t *testing.T) {
	dir := runtimeDir(t)
	h := newHost(t, sandbox.HostOptions{RuntimeDir: dir, NoTemplates: true})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := h.Create(ctx, sandbox.Options{Image: bootable(defaultImage(t))})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Empty(t, entries(t, dir))
	require.Empty(t, h.Sessions())
}

func TestMissingImageFileIsToldWithTheRemedy(t *testing.T) {
	image := bootable(defaultImage(t))
	image.RootDisk = "/no/such/disk"
	_, err := newHost(t, sandbox.HostOptions{}).Create(t.Context(), sandbox.Options{Image: image})
	require.ErrorContains(t, err, "/no/such/disk")
	require.ErrorContains(t, err, "images build")
}

// The scratch disk is on a file system of 330 MiB, the root of a session bigger.
func TestFullHostDiskIsTold(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "small")
	require.NoError(t, os.Mkdir(cache, 0o700))
	if err := syscall.Mount("tmpfs", cache, "tmpfs", 0, "size=330m"); err != nil {
		t.Skipf("needs root to mount a small file system: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(cache, syscall.MNT_DETACH) })
	h := newHost(t, sandbox.HostOptions{CacheDir: cache})
	s := newSession(t, h, sandbox.Options{})
	_, exit := try(t, s, sandbox.Command{Shell: "dd if=/dev/zero of=/root/big bs=1M count=600 conv=fsync 2>&1"})
	require.NotZero(t, exit.Code)
	require.Contains(t, exit.Note, "the host's disk under "+cache+" is full")
	require.NoError(t, s.Close())
	require.NoError(t, os.WriteFile(filepath.Join(cache, "fill"), make([]byte, 200<<20), 0o600), "what the session took is given back")
	_, err := h.Create(t.Context(), sandbox.Options{Image: bootable(defaultImage(t))})
	require.Error(t, err)
	require.Contains(t, err.Error(), "free in "+cache)
	require.Contains(t, err.Error(), "make room")
}

func TestLimitsOfSessionsAreToldInWords(t *testing.T) {
	h := newHost(t, sandbox.HostOptions{MaxSessions: 1})
	s := newSession(t, h, sandbox.Options{Limits: sandbox.Limits{Wall: 6 * time.Second}})
	_, err := h.Create(t.Context(), sandbox.Options{Image: bootable(defaultImage(t))})
	require.ErrorIs(t, err, sandbox.ErrLimit)
	require.ErrorContains(t, err, "sessions.max")
	<-s.Done()
	_, err = s.Run(t.Context(), sandbox.Command{Argv: []string{"true"}})
	require.ErrorContains(t, err, "limits.wall")

	idle := newSession(t, h, sandbox.Options{Limits: sandbox.Limits{Idle: 2 * time.Second}})
	sh(t, idle, "sleep 3") // a call under way is no idleness
	<-idle.Done()
	require.Contains(t, idle.Info().Reason, "limits.idle")

	_, err = h.Create(t.Context(), sandbox.Options{Image: bootable(defaultImage(t)), Root: "sideways", Hostname: "-", Limits: sandbox.Limits{CPUs: 1000}})
	for _, want := range []string{"sideways", "host name", "limits.cpus", "64"} {
		require.ErrorContains(t, err, want, "all mistakes at once")
	}
	require.False(t, strings.Contains(err.Error(), "QEMU"))
}

// QEMU stands still here; its processors do so where one waits for another for ever.
func TestBootThatDoesNotGetOnIsStartedAgain(t *testing.T) {
	t.Parallel()
	dir := runtimeDir(t)
	h := newHost(t, sandbox.HostOptions{RuntimeDir: dir, NoTemplates: true, Accelerator: "tcg"})
	started := make(chan *sandbox.Session, 1)
	go func() {
		defer close(started)
		if s, err := h.Create(t.Context(), sandbox.Options{Image: bootable(defaultImage(t))}); assert.NoError(t, err) {
			started <- s
		}
	}()
	var first int
	eventually(t, time.Minute, "the machine", func() bool {
		files, _ := filepath.Glob(filepath.Join(dir, "*", "qemu.pid"))
		if len(files) == 0 {
			return false
		}
		b, err := os.ReadFile(files[0])
		if err == nil {
			first, err = strconv.Atoi(string(b))
		}
		return err == nil
	})
	require.NoError(t, syscall.Kill(first, syscall.SIGSTOP))
	s := <-started
	require.NotNil(t, s)
	require.NotEqual(t, first, qemuPID(t, dir, s))
	require.Equal(t, "again", sh(t, s, "echo again"))
	require.ErrorIs(t, syscall.Kill(first, 0), syscall.ESRCH, "nothing of the first is left")
}
