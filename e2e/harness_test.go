package e2e

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/adrg/xdg"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/images"
	"github.com/gondolin-go/gondolin/sandbox"
)

// cacheDir is where the default image is.
func cacheDir() string { return filepath.Join(xdg.CacheHome, "gondolin") }

// defaultImage returns the image that all tests share.
func defaultImage(t testing.TB) *images.Image {
	t.Helper()
	store, err := images.OpenStore(filepath.Join(cacheDir(), "images"))
	require.NoError(t, err)
	img, err := store.Get("default")
	require.NoError(t, err, "build it with `make image`")
	return img
}

func bootable(img *images.Image) sandbox.Image {
	return sandbox.Image{
		ID: img.Manifest.ID, Kernel: img.Path("kernel"), Modules: img.Path("modules.cpio"), RootDisk: img.Path("root.ext4"),
	}
}

// newHost returns a host of the test's own.
func newHost(t testing.TB, o sandbox.HostOptions) *sandbox.Host {
	t.Helper()
	if o.RuntimeDir == "" {
		o.RuntimeDir = runtimeDir(t)
	}
	o.Logger = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	h, err := sandbox.NewHost(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	return h
}

// amount is how much a test does: the usual, or the whole of what was promised, for which a
// usual run has no time (make test-whole).
func amount(usual, whole int) int {
	if wholeRun {
		return whole
	}
	return usual
}

// wholeRun is set by the environment, which the tests' programs would not take it in.
var wholeRun = os.Getenv(wholeEnv) == "whole"

const wholeEnv = "GONDOLIN_E2E"

// runtimeDir is a private directory on a short path; those of t.TempDir are too
// long for sockets.
func runtimeDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gnd")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// testWriter logs to a test while it runs.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func newSession(t testing.TB, h *sandbox.Host, o sandbox.Options) *sandbox.Session {
	t.Helper()
	if o.Image.Kernel == "" {
		o.Image = bootable(defaultImage(t))
	}
	s, err := h.Create(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// shared is one session for all tests that do it no harm.
var shared struct {
	once sync.Once
	host *sandbox.Host
	s    *sandbox.Session
	err  error
}

func sharedSession(t *testing.T) *sandbox.Session {
	t.Helper()
	shared.once.Do(func() {
		ctx := context.WithoutCancel(t.Context())
		dir, err := os.MkdirTemp("", "gnd")
		if err != nil {
			shared.err = err
			return
		}
		sharedDir = dir
		if shared.host, shared.err = sandbox.NewHost(ctx, sandbox.HostOptions{RuntimeDir: dir, Register: "e2e"}); shared.err != nil {
			return
		}
		shared.s, shared.err = shared.host.Create(ctx, sandbox.Options{Image: bootable(defaultImage(t))})
	})
	require.NoError(t, shared.err)
	return shared.s
}

var sharedDir string

// afterAll is done when all tests have run.
var afterAll []func()

func TestMain(m *testing.M) {
	os.Unsetenv(wholeEnv)
	// The records of servers belong to no user here.
	state, err := os.MkdirTemp("", "gndstate")
	if err != nil {
		panic(err)
	}
	os.Setenv("XDG_STATE_HOME", state)
	afterAll = append(afterAll, func() { os.RemoveAll(state) })
	code := m.Run()
	for _, f := range afterAll {
		f()
	}
	if shared.host != nil {
		shared.host.Close()
	}
	if sharedDir != "" {
		os.RemoveAll(sharedDir)
	}
	os.Exit(code)
}

// sh runs a shell command and returns its output; it must succeed.
func sh(t testing.TB, s *sandbox.Session, command string) string {
	t.Helper()
	out, exit := try(t, s, sandbox.Command{Shell: command})
	require.Zero(t, exit.Code, "%s: %s", command, out)
	return strings.TrimRight(out, "\n")
}

// try runs a command and returns its output, both streams together.
func try(t testing.TB, s *sandbox.Session, cmd sandbox.Command) (string, sandbox.Exit) {
	t.Helper()
	var out bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout, cmd.Stderr = &out, &out
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	exit, err := s.Run(ctx, cmd)
	require.NoError(t, err)
	return out.String(), exit
}

// eventually waits for a condition that another process or machine brings about.
func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			require.FailNow(t, "did not happen within "+limit.String(), what)
		}
	}
}
