package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/images"
	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/tools"
)

func TestAnAgentMayLowerLimitsAndNeverRaiseThem(t *testing.T) {
	have := sandbox.Limits{CPUs: 4, MemoryMiB: 2048, DiskMiB: 4096, Processes: 100, Wall: time.Hour, Idle: -1}
	for _, tt := range []struct {
		name       string
		want, gets sandbox.Limits
	}{
		{"nothing asked", sandbox.Limits{}, have},
		{"the same", have, have},
		{"less of all", sandbox.Limits{CPUs: 1, MemoryMiB: 512, DiskMiB: 64, Processes: 16, Wall: time.Minute, Idle: time.Minute},
			sandbox.Limits{CPUs: 1, MemoryMiB: 512, DiskMiB: 64, Processes: 16, Wall: time.Minute, Idle: time.Minute}},
		{"a limit where there was none", sandbox.Limits{Idle: 50 * time.Hour},
			sandbox.Limits{CPUs: 4, MemoryMiB: 2048, DiskMiB: 4096, Processes: 100, Wall: time.Hour, Idle: 50 * time.Hour}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := lower(have, tt.want)
			require.NoError(t, err)
			assert.Equal(t, tt.gets, got)
		})
	}
	_, err := lower(have, sandbox.Limits{CPUs: 5, MemoryMiB: 4096, DiskMiB: 5000, Processes: 101, Wall: -1})
	require.Error(t, err)
	lines := strings.Split(err.Error(), "\n")
	require.Len(t, lines, 5, "all at once")
	assert.Equal(t, "5 is more than the 4 that limits.cpus allows: ask for at most that, or ask the user to raise limits.cpus in the configuration of gondolin-mcp", lines[0])
	assert.Contains(t, lines[1], "4GiB is more than the 2GiB that limits.memory allows")
	assert.Contains(t, lines[4], "never is more than the 1h that limits.wall allows")
}

// boxes are sandboxes in directories of the test, with a QEMU that only knows its version.
func boxes(t *testing.T, log *slog.Logger, args ...string) *sandboxes {
	t.Helper()
	dir, err := os.MkdirTemp("", "g") // t.TempDir is too long for sockets
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	qemu := filepath.Join(dir, "qemu")
	require.NoError(t, os.WriteFile(qemu, []byte("#!/bin/sh\necho QEMU emulator version 10.0.2\n"), 0o700))
	flags := configs.Flags()
	require.NoError(t, flags.Parse(append([]string{"--cache-dir", dir + "/c", "--runtime-dir", dir + "/r", "--qemu", qemu}, args...)))
	c, err := configs.Load(configs.Sources{Flags: flags})
	require.NoError(t, err)
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	b := newSandboxes(t.Context(), c, log)
	t.Cleanup(b.close)
	return b
}

func TestOneBuildServesAllCallsThatWaitForTheImage(t *testing.T) {
	b := boxes(t, nil)
	started, finish := make(chan struct{}, 10), make(chan struct{})
	b.images.build = func(_ context.Context, _ *images.Store, spec images.Spec, _ images.Progress) (*images.Image, error) {
		assert.Equal(t, images.DefaultTag, spec.Name)
		started <- struct{}{}
		<-finish
		return nil, errors.New("the mirror is on fire")
	}
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			_, err := b.Create(t.Context(), tools.SessionOptions{})
			assert.ErrorContains(t, err, "the default image is missing and could not be built: the mirror is on fire")
			assert.ErrorContains(t, err, "gondolin-mcp images build")
		})
	}
	<-started
	// Who gives up neither waits nor ends the build for the others.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := b.images.take(ctx)
	assert.ErrorIs(t, err, context.Canceled)
	close(finish)
	wg.Wait()
	// Calls that came after its end would rightly try again; none of these should have.
	assert.LessOrEqual(t, len(started), 4)
}

func TestClosingEndsABuildAndWaitsForIt(t *testing.T) {
	b := boxes(t, nil)
	ended := false
	started := make(chan struct{})
	b.images.build = func(ctx context.Context, _ *images.Store, _ images.Spec, _ images.Progress) (*images.Image, error) {
		close(started)
		<-ctx.Done()
		ended = true
		return nil, ctx.Err()
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := b.Create(t.Context(), tools.SessionOptions{})
		assert.ErrorIs(t, err, context.Canceled)
	})
	<-started
	b.close()
	assert.True(t, ended)
	wg.Wait()
}

func TestOnlyTheDefaultImageIsBuiltByItself(t *testing.T) {
	for args, want := range map[string]string{
		"--image=mine":       "`gondolin-mcp images build --name mine --from SOURCE` makes it; or name another image in the key image.name",
		"--auto-build=false": "image.auto_build is false",
	} {
		b := boxes(t, nil, args)
		b.images.build = func(context.Context, *images.Store, images.Spec, images.Progress) (*images.Image, error) {
			t.Error("built")
			return nil, nil
		}
		_, err := b.Create(t.Context(), tools.SessionOptions{})
		assert.ErrorContains(t, err, want)
		var missing *images.NotFoundError
		assert.ErrorAs(t, err, &missing)
	}
}

func TestQEMUIsLookedForAgainAtEachCall(t *testing.T) {
	var said bytes.Buffer
	b := boxes(t, slog.New(slog.NewTextHandler(&said, nil)), "--auto-build=false")
	path := b.config.QEMU.Binary
	require.NoError(t, os.Rename(path, path+".away"))
	b.prepare()
	b.workers.Wait()
	assert.Contains(t, said.String(), "no session can start")
	_, err := b.Create(t.Context(), tools.SessionOptions{})
	assert.ErrorContains(t, err, "QEMU not found")
	require.NoError(t, os.Rename(path+".away", path))
	_, err = b.Create(t.Context(), tools.SessionOptions{})
	assert.ErrorContains(t, err, "no image")
}

func TestAnUnknownSessionIsAnError(t *testing.T) {
	b := boxes(t, nil)
	_, err := b.Get("nope")
	assert.ErrorContains(t, err, "no session has or had this id lately")
	assert.Empty(t, b.List())
	assert.NoError(t, b.Close(t.Context(), "nope", "x"))
}

// buildTestImage makes an image that no machine could run.
func buildTestImage(t *testing.T, b *sandboxes) *images.Image {
	t.Helper()
	_, _, err := runImages(t, b.images.dir, append([]string{"build", "--name", "default"}, rootAndKernel(t)...)...)
	require.NoError(t, err)
	store, err := images.OpenStore(b.images.dir)
	require.NoError(t, err)
	img, err := store.Get("")
	require.NoError(t, err)
	return img
}

func TestADamagedImageIsNotBooted(t *testing.T) {
	b := boxes(t, nil)
	img := buildTestImage(t, b)
	require.NoError(t, os.Chmod(img.Path(images.KernelFile), 0o600))
	require.NoError(t, os.WriteFile(img.Path(images.KernelFile), []byte("evil!!"), 0o600))
	_, err := b.Create(t.Context(), tools.SessionOptions{})
	var damaged *images.DamagedError
	require.ErrorAs(t, err, &damaged)
	assert.Equal(t, images.KernelFile, damaged.Damage[0].File)
}

func TestASessionThatDoesNotStartGivesItsImageBack(t *testing.T) {
	b := boxes(t, nil, "--root=memory", "--accelerator=tcg")
	img := buildTestImage(t, b)
	_, release, err := b.images.take(t.Context())
	require.NoError(t, err)
	store, err := images.OpenStore(b.images.dir)
	require.NoError(t, err)
	var busy *images.InUseError
	_, err = store.Remove(t.Context(), img.ID())
	require.ErrorAs(t, err, &busy, "an image in use stays")
	release()

	_, err = b.Create(t.Context(), tools.SessionOptions{}) // that QEMU only prints its version
	require.Error(t, err)
	// A program that is being started holds all descriptors, and so the lock, for a moment.
	require.Eventually(t, func() bool {
		_, err = store.Remove(t.Context(), img.ID())
		return err == nil
	}, 10*time.Second, 10*time.Millisecond, "%v", err)
}

func TestAnImagesOwnSettingsReachTheSession(t *testing.T) {
	b := boxes(t, nil)
	img := buildTestImage(t, b)
	img.Manifest.Config = &images.ImageConfig{Env: []string{"PATH=/x:/y", "E=a=b", "bad"}, WorkingDir: "/app", User: "node"}
	got := sandboxImage(img)
	assert.Equal(t, map[string]string{"PATH": "/x:/y", "E": "a=b"}, got.Env)
	assert.Equal(t, "/app", got.Dir)
	assert.Equal(t, "node", got.User)
	assert.Equal(t, "default ("+img.ID()[:12]+")", got.ID)
	for _, path := range []string{got.Kernel, got.Modules, got.RootDisk} {
		assert.FileExists(t, path)
	}
}

func TestTheModelIsToldWhatTheImageIs(t *testing.T) {
	b := boxes(t, nil)
	assert.Contains(t, b.images.describe(), "Debian or Ubuntu with bash")
	buildTestImage(t, b)
	assert.Equal(t, `the user's own image "default"`, b.images.describe(), "and not where it lay on the host")
	assert.Equal(t, "Debian 12", release("bookworm"))
	assert.Equal(t, "Debian or Ubuntu (unheard)", release("unheard"))
}
