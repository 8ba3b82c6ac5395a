package images

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func flip(t *testing.T, path string, off int64) {
	t.Helper()
	require.NoError(t, os.Chmod(path, 0o644))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, off)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{b[0] ^ 1}, off)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

func TestDamageIsNoticedAndNamed(t *testing.T) {
	ctx := context.Background()
	s := testStore(t)
	img, err := buildTar(t, s, "default", fileEntry("a", "contents"))
	require.NoError(t, err)
	require.NoError(t, img.Check(ctx))
	require.NoError(t, s.Verify(ctx, "default", nil))

	info, err := os.Stat(img.Path(RootFile))
	require.NoError(t, err)
	flip(t, img.Path(RootFile), 5000)
	require.NoError(t, os.Chtimes(img.Path(RootFile), info.ModTime(), info.ModTime()), "also with the old time put back")
	for _, err := range []error{img.Check(ctx), s.Verify(ctx, "default", nil)} {
		var damaged *DamagedError
		require.ErrorAs(t, err, &damaged)
		require.Len(t, damaged.Damage, 1)
		require.Equal(t, RootFile, damaged.Damage[0].File)
		require.Equal(t, img.Manifest.Root.SHA256, damaged.Damage[0].Expected)
		require.NotEqual(t, damaged.Damage[0].Expected, damaged.Damage[0].Got)
		require.Contains(t, err.Error(), `"default"`)
		require.Contains(t, err.Error(), "`gondolin-mcp images build --force --name default --from tar:/", "from what it was made of")
	}
	flip(t, img.Path(RootFile), 5000)
	require.NoError(t, img.Check(ctx), "whole again")

	require.NoError(t, os.Truncate(img.Path(RootFile), 100))
	require.NoError(t, os.Remove(img.Path(KernelFile)))
	require.ErrorContains(t, img.Check(ctx), "kernel: the file is missing")
	require.ErrorContains(t, img.Check(ctx), "100 bytes instead of")
}

func TestDamagedImageIsBuiltAgain(t *testing.T) {
	s := testStore(t)
	file := filepath.Join(t.TempDir(), "r.tar")
	require.NoError(t, os.WriteFile(file, archive(t, fileEntry("a", "x")), 0o644))
	spec := Spec{Name: "x", Arch: "amd64", Kernel: testKernel(t), Source: Source{Kind: KindTar, Ref: file}}
	img, err := Build(context.Background(), s, spec, nil)
	require.NoError(t, err)
	flip(t, img.Path(ModulesFile), 3)
	again, err := Build(context.Background(), s, spec, nil)
	require.NoError(t, err)
	require.Equal(t, img.ID(), again.ID())
	require.NoError(t, s.Verify(context.Background(), "x", nil))
}

func TestManifestIsStrict(t *testing.T) {
	s := testStore(t)
	img, err := buildTar(t, s, "x", fileEntry("a", ""))
	require.NoError(t, err)
	good, err := os.ReadFile(img.Path(ManifestFile))
	require.NoError(t, err)
	_, err = ParseManifest(good)
	require.NoError(t, err)
	for why, edit := range map[string]func(string) string{
		"unknown field":      func(m string) string { return replaceOnce(m, `"format"`, `"extra": 1, "format"`) },
		"was altered":        func(m string) string { return replaceOnce(m, `"amd64"`, `"arm64"`) },
		"after top-level":    func(m string) string { return m + "{}" },
		"reads 1":            func(m string) string { return replaceOnce(m, `"format": 1`, `"format": 2`) },
		"unknown file":       func(m string) string { return replaceOnce(m, `"name": "kernel"`, `"name": "../kernel"`) },
		"not a manifest":     func(string) string { return "[" },
		"is not a sha256":    func(m string) string { return replaceOnce(m, `"id": "`, `"id": "zz`) },
		"contradicts itself": func(m string) string { return replaceOnce(m, `"type": "ext4"`, `"type": "xfs"`) },
	} {
		_, err := ParseManifest([]byte(edit(string(good))))
		require.ErrorContains(t, err, why)
	}
}

func replaceOnce(s, old, with string) string {
	for i := 0; i+len(old) <= len(s); i++ {
		if s[i:i+len(old)] == old {
			return s[:i] + with + s[i+len(old):]
		}
	}
	return s
}

func TestGet(t *testing.T) {
	s := testStore(t)
	_, err := s.Get("")
	var missing *NotFoundError
	require.ErrorAs(t, err, &missing)
	require.ErrorContains(t, err, "`gondolin-mcp images build` makes it")
	img, err := buildTar(t, s, "base", fileEntry("a", ""))
	require.NoError(t, err)
	for _, ref := range []string{"base", img.ID(), img.ID()[:6]} {
		got, err := s.Get(ref)
		require.NoError(t, err)
		require.Equal(t, img.ID(), got.ID())
	}
	_, err = s.Get(img.ID()[:5])
	require.ErrorContains(t, err, "is too short: give at least 6 digits of it, such as "+img.ID()[:12])
	for _, ref := range []string{"../tags/base", "ffffffffffff", "nope"} {
		_, err = s.Get(ref)
		require.ErrorAs(t, err, &missing)
		require.ErrorContains(t, err, "base ("+img.ID()[:12]+")")
	}
	for _, name := range []string{"../x", "a/b", ".hidden", img.ID()} {
		require.Error(t, s.Tag(name, img.ID()))
	}
}

func TestUseProtectsFromRemoval(t *testing.T) {
	ctx := context.Background()
	s := testStore(t)
	img, err := buildTar(t, s, "", fileEntry("a", ""))
	require.NoError(t, err)
	release, err := img.Use()
	require.NoError(t, err)
	var busy *InUseError
	_, err = s.Remove(ctx, img.ID())
	require.ErrorAs(t, err, &busy)
	report, err := s.GC(ctx, GCPolicy{})
	require.NoError(t, err)
	require.Equal(t, []string{"image " + img.ID()}, report.Busy)
	release()
	keep, err := s.GC(ctx, GCPolicy{Keep: time.Hour})
	require.NoError(t, err)
	require.Empty(t, keep.Removed)
	report, err = s.GC(ctx, GCPolicy{})
	require.NoError(t, err)
	require.Equal(t, "image", report.Removed[0].Kind)
	require.Positive(t, report.Bytes())
	require.NoDirExists(t, img.Dir())
	_, err = img.Use()
	require.ErrorContains(t, err, "was removed")
}

func TestRemove(t *testing.T) {
	ctx := context.Background()
	s := testStore(t)
	img, err := buildTar(t, s, "one", fileEntry("a", ""))
	require.NoError(t, err)
	require.NoError(t, s.Tag("two", img.ID()))
	gone, err := s.Remove(ctx, "one")
	require.NoError(t, err)
	require.Equal(t, "name", gone.Kind, "the other name still stands for it")
	// An image whose manifest is unreadable can be removed: that is the remedy the errors give.
	require.NoError(t, os.Chmod(img.Path(ManifestFile), 0o644))
	require.NoError(t, os.WriteFile(img.Path(ManifestFile), []byte("{"), 0o644))
	_, err = s.Get("two")
	require.ErrorContains(t, err, "images remove")
	gone, err = s.Remove(ctx, img.ID()[:12])
	require.NoError(t, err)
	require.Equal(t, "image", gone.Kind)
	_, err = s.Get("two")
	var missing *NotFoundError
	require.ErrorAs(t, err, &missing)
}
