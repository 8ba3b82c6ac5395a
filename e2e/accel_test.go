package e2e

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/sandbox/qemu"
)

// deafQEMU is a QEMU whose guest never runs a single instruction when it is
// asked for KVM, as on hosts where /dev/kvm opens and does not work.
const deafQEMU = `#!/bin/bash
args=() deaf=
for a in "$@"; do
  case "$a" in *accel=kvm*) a=${a/accel=kvm/accel=tcg}; deaf=-S ;; esac
  args+=("$a")
done
exec REAL "${args[@]}" $deaf
`

func TestAcceleratorThatHangsIsLeftWithinSecondsAndRemembered(t *testing.T) {
	real, err := qemu.FindBinary("")
	require.NoError(t, err)
	wrapper := filepath.Join(t.TempDir(), "qemu")
	require.NoError(t, os.WriteFile(wrapper, []byte(strings.ReplaceAll(deafQEMU, "REAL", real)), 0o755))
	// QEMU runs as a user of its own and must be able to run the script.
	for dir := filepath.Dir(wrapper); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
	log := &syncBuffer{}
	h, err := sandbox.NewHost(t.Context(), sandbox.HostOptions{
		RuntimeDir: runtimeDir(t), CacheDir: t.TempDir(), QEMU: wrapper, Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	require.NoError(t, err)
	defer h.Close()
	timed := func() (time.Duration, time.Duration) {
		began := time.Now()
		s := newSession(t, h, sandbox.Options{})
		took := time.Since(began)
		require.Equal(t, "tcg", s.Info().Accelerator)
		return took, s.Info().Boot
	}
	first, _ := timed()
	second, _ := timed()
	if _, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err == nil {
		require.Contains(t, log.String(), "falling back")
		require.Equal(t, 1, strings.Count(log.String(), "falling back"), "the second start does not try again")
		require.Less(t, first, second+5*time.Second)
	}
}
