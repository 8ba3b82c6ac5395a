package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func runImages(t *testing.T, store string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := newImagesCommand(func() (string, error) { return store, nil })
	var out, errOut bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&errOut)
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err = cmd.ExecuteContext(t.Context())
	return out.String(), errOut.String(), err
}

// rootAndKernel are the arguments of a build that needs neither network nor distribution.
func rootAndKernel(t *testing.T) []string {
	t.Helper()
	dir := t.TempDir()
	root, modules, kernel := filepath.Join(dir, "root"), filepath.Join(dir, "6.0-test"), filepath.Join(dir, "vmlinuz")
	require.NoError(t, os.MkdirAll(filepath.Join(root, "bin"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "bin/sh"), []byte("sh"), 0o755))
	require.NoError(t, os.Mkdir(modules, 0o755))
	var builtin strings.Builder
	for _, m := range []string{"virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "virtio_balloon", "ext4", "overlay", "fuse"} {
		builtin.WriteString("kernel/" + m + ".ko\n")
	}
	require.NoError(t, os.WriteFile(filepath.Join(modules, "modules.builtin"), []byte(builtin.String()), 0o644))
	require.NoError(t, os.WriteFile(kernel, []byte("kernel"), 0o644))
	return []string{"--from", "dir:" + root, "--kernel", kernel, "--modules", modules}
}

func TestImagesCommands(t *testing.T) {
	store := filepath.Join(t.TempDir(), "store")
	out, errOut, err := runImages(t, store, append([]string{"build", "--name", "mine"}, rootAndKernel(t)...)...)
	require.NoError(t, err)
	id := strings.TrimSpace(out)
	require.Len(t, id, 64, "stdout holds the id and nothing else")
	require.Contains(t, errOut, "is ready after")

	out, _, err = runImages(t, store, "list")
	require.NoError(t, err)
	require.Regexp(t, `(?m)^NAME +ID +SIZE`, out)
	require.Regexp(t, `(?m)^mine +`+id[:12], out)
	out, _, err = runImages(t, store, "list", "--json")
	require.NoError(t, err)
	var rows []listed
	require.NoError(t, json.Unmarshal([]byte(out), &rows))
	require.Equal(t, []string{"mine"}, rows[0].Names)

	out, _, err = runImages(t, store, "inspect", "mine")
	require.NoError(t, err)
	require.Contains(t, out, "6.0-test")
	_, _, err = runImages(t, store, "inspect")
	require.ErrorContains(t, err, `no image "default"`)

	out, _, err = runImages(t, store, "verify")
	require.NoError(t, err)
	require.Equal(t, id+"\tok\n", out)
	root := filepath.Join(store, id, "root.ext4")
	require.NoError(t, os.Chmod(root, 0o644))
	require.NoError(t, os.Truncate(root, 4096))
	_, _, err = runImages(t, store, "verify", "mine")
	require.ErrorContains(t, err, "root.ext4: 4096 bytes instead of")

	require.NoError(t, os.Mkdir(filepath.Join(store, "tmp", "build-killed"), 0o700))
	out, _, err = runImages(t, store, "gc", "--dry-run")
	require.NoError(t, err)
	require.Contains(t, out, "would remove abandoned build build-killed")
	out, _, err = runImages(t, store, "remove", "mine")
	require.NoError(t, err)
	require.Contains(t, out, "removed image "+id)
	out, _, err = runImages(t, store, "gc")
	require.NoError(t, err)
	require.Contains(t, out, "removed abandoned build build-killed")
}

func TestImagesUsageErrors(t *testing.T) {
	for _, args := range [][]string{{"build", "x"}, {"build", "--from", "floppy:a"}, {"build", "--nope"}, {"remove"}, {"gc", "--keep-days", "-1"},
		{"build", "--from", "dir:/", "--packages", "a"}, {"nonsense"}} {
		_, _, err := runImages(t, t.TempDir(), args...)
		var usage usageError
		require.True(t, errors.As(err, &usage), "%v: %v", args, err)
	}
}
