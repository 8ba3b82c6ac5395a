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
	out, _, err = runImages(t, store, append([]string{"build", "--name", "mine", "--json"}, rootAndKernel(t)...)...)
	require.NoError(t, err)
	var built listed
	require.NoError(t, json.Unmarshal([]byte(out), &built))
	require.Equal(t, []string{"mine"}, built.Names)
	out, _, err = runImages(t, store, "verify", "mine", "--json")
	require.NoError(t, err)
	require.JSONEq(t, `[{"ref": "mine", "ok": true}]`, out)
	root := filepath.Join(store, built.ID, "root.ext4")
	require.NoError(t, os.Chmod(root, 0o644))
	require.NoError(t, os.Truncate(root, 4096))
	_, _, err = runImages(t, store, "verify", "mine")
	require.ErrorContains(t, err, "root.ext4: 4096 bytes instead of")
	out, _, err = runImages(t, store, "verify", "mine", "--json")
	require.Error(t, err)
	require.Contains(t, out, `"ok": false`)

	require.NoError(t, os.Mkdir(filepath.Join(store, "tmp", "build-killed"), 0o700))
	out, _, err = runImages(t, store, "gc", "--dry-run")
	require.NoError(t, err)
	require.Contains(t, out, "would remove abandoned build build-killed")
	out, _, err = runImages(t, store, "remove", "mine")
	require.NoError(t, err)
	require.Contains(t, out, "removed image "+built.ID)
	out, _, err = runImages(t, store, "gc")
	require.NoError(t, err)
	require.Contains(t, out, "removed abandoned build build-killed")
}

func TestImagesUsageErrors(t *testing.T) {
	kernel := rootAndKernel(t)[2:]
	for _, args := range [][]string{{"build", "x"}, {"build", "--max-bytes", "-5"}, {"build", "--max-bytes", "many"}, append([]string{"build"}, kernel...), {"build", "--from", "floppy:a"}, {"build", "--nope"}, {"remove"}, {"gc", "--keep-days", "-1"},
		{"build", "--from", "dir:/", "--packages", "a"}, {"nonsense"}} {
		_, _, err := runImages(t, t.TempDir(), args...)
		var usage usageError
		require.True(t, errors.As(err, &usage), "%v: %v", args, err)
	}
}

func TestOnlyTheDefaultBuildTakesTheNameOfTheDefaultImageUnasked(t *testing.T) {
	store := t.TempDir()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--from", "oci:node:22"}, "build: the image needs a name: write `gondolin-mcp images build --name NAME --from oci:node:22`; --name default makes it the one that sessions use"},
		{[]string{"--packages", "golang,nodejs", "--suite", "trixie"}, "--name NAME --packages golang,nodejs --suite trixie`"},
		{[]string{"--kernel-from", "default"}, "--name NAME --kernel-from default`"},
		{[]string{"--from", ""}, "build: --from is empty"},
		{[]string{"--name", "x", "--from="}, "build: --from is empty"},
		{[]string{"--name", "x", "--packages", ""}, "build: --packages is empty"},
		{[]string{"--name", "x", "--suite", ""}, "build: --suite is empty"},
		{[]string{"--name", ""}, "build: --name is empty"},
	} {
		_, _, err := runImages(t, store, append([]string{"build"}, tt.args...)...)
		var usage usageError
		require.ErrorAs(t, err, &usage, "%v", tt.args)
		require.ErrorContains(t, err, tt.want)
	}
	// What was asked for by name may replace it.
	_, _, err := runImages(t, store, append([]string{"build", "--name", "default"}, rootAndKernel(t)...)...)
	require.NoError(t, err)
	out, _, err := runImages(t, store, "list")
	require.NoError(t, err)
	require.Regexp(t, `(?m)^default `, out)
}

func TestTheBeginningOfAnIdIsToldToBeTooShortAndAnUnknownOneNotToBeBuilt(t *testing.T) {
	store := t.TempDir()
	out, _, err := runImages(t, store, append([]string{"build", "--name", "mine"}, rootAndKernel(t)...)...)
	require.NoError(t, err)
	id := strings.TrimSpace(out)
	for _, command := range []string{"inspect", "remove", "verify"} {
		_, _, err = runImages(t, store, command, id[:4])
		require.ErrorContains(t, err, "image id \""+id[:4]+"\" is too short: give at least 6 digits of it, such as "+id[:12])
		_, _, err = runImages(t, store, command, "0123456789ab")
		require.ErrorContains(t, err, "`gondolin-mcp images list` shows what there is")
	}
	out, _, err = runImages(t, store, "inspect", id[:6])
	require.NoError(t, err)
	require.Contains(t, out, id)
}

func TestTheErrorsOfABuildSayWhatIsWrongWithItsSource(t *testing.T) {
	dir, kernel := t.TempDir(), rootAndKernel(t)[2:]
	write := func(name, data string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(data), 0o600))
		return path
	}
	text, empty := write("text.tar", "hello"), write("empty.tar", "")
	require.NoError(t, os.Mkdir(filepath.Join(dir, "root"), 0o700))
	write("root/file", strings.Repeat("x", 5000))
	for from, want := range map[string]string{
		"oci:UPPER/Case::":       `"UPPER/Case::" is no image reference: write NAME`,
		"oci:https://host/x":     "is an address and no image reference",
		"tar:" + text:            "archive " + text + " is no tar archive",
		"tar:" + empty:           "archive " + empty + " is empty",
		"docker-archive:" + text: text + " is no image archive as `docker save` writes it",
		"oci-layout:" + dir:      dir + " is no OCI layout directory: it has no index.json",
		"dir:" + dir + "/none":   "there is no such directory",
		"tar:" + dir + "/none":   "there is no such file",
		"dir:" + dir + "/root":   "directory " + dir + "/root: entry \"file\" refused: too big",
	} {
		_, _, err := runImages(t, t.TempDir(), append([]string{"build", "--name", "x", "--max-bytes", "3KiB", "--from", from}, kernel...)...)
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "hostile", "nothing of this is")
	}
}
