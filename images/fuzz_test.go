package images

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzLayer holds that any bytes either give a tree that can be written as ext4, or an error.
func FuzzLayer(f *testing.F) {
	f.Add(archive(f, dirEntry("d"), fileEntry("d/x", "body"), linkEntry("d/y", "d/x"), symlinkEntry("l", "/d"), fileEntry("l/z", "")))
	f.Add(archive(f, fileEntry("a/.wh.b", ""), fileEntry("a/.wh..wh..opq", ""), fileEntry("../x", "")))
	f.Add([]byte{})
	dir := f.TempDir() // of one worker, whose inputs come one after the other
	f.Fuzz(func(t *testing.T, layer []byte) {
		spool, err := os.Create(filepath.Join(dir, "spool"))
		require.NoError(t, err)
		defer spool.Close()
		tr := newTree(spool, Limits{Entries: 1000, Bytes: 1 << 20})
		for range 2 { // twice, so that whiteouts meet a lower layer
			if err := tr.applyLayer(context.Background(), "fuzz", bytes.NewReader(layer), true); err != nil {
				return
			}
		}
		if err := tr.finish(); err != nil {
			return
		}
		var merged bytes.Buffer
		require.NoError(t, tr.writeTar(context.Background(), &merged, quiet{}), "an accepted tree can be written")
		disk, err := os.Create(filepath.Join(dir, RootFile))
		require.NoError(t, err)
		defer disk.Close()
		if err := convert(&merged, disk, 1<<20); err != nil {
			require.NotContains(t, err.Error(), "gave up", "no panic in the writer")
			return
		}
		require.NoError(t, padInodeBitmaps(disk))
	})
}

func FuzzAptSources(f *testing.F) {
	f.Add("deb [signed-by=/x] http://u:p@h/debian bookworm main\nTypes: deb\nURIs: http://u:p@h/d\nSuites: bookworm\nComponents: main\n")
	f.Fuzz(func(t *testing.T, text string) {
		all := append(parseList(strings.NewReader(text)), parseDeb822(strings.NewReader(text))...)
		list, err := distributionSources(all, "bookworm")
		if err != nil {
			return
		}
		for line := range strings.Lines(guestSources(list)) {
			require.Len(t, strings.Split(line, "\n"), 2)
			require.NotContains(t, strings.SplitN(line, "//", 2)[1], "@h/")
		}
	})
}

func FuzzManifest(f *testing.F) {
	sum := strings.Repeat("a", 64)
	m := Manifest{Format: FormatVersion, Arch: "amd64", Kernel: KernelInfo{Modules: []string{}}, Root: RootInfo{Type: "ext4", SHA256: sum},
		Files: []FileInfo{{Name: KernelFile, SHA256: sum}, {Name: ModulesFile, SHA256: sum}, {Name: RootFile, SHA256: sum}}}
	m.ID = m.computeID()
	good, err := json.Marshal(m)
	require.NoError(f, err)
	_, err = ParseManifest(good)
	require.NoError(f, err)
	f.Add(good)
	f.Add([]byte(`{"format":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseManifest(b)
		if err == nil {
			require.Equal(t, m.ID, m.computeID())
		}
	})
}

func FuzzKernel(f *testing.F) {
	f.Add(bzImage([]byte("????????")))
	f.Add(tinyELF(".text", []byte("x"), pvhNote))
	f.Fuzz(func(t *testing.T, b []byte) {
		if bytes.Contains(b, xzMagic) {
			return // would start a program each time
		}
		kernel, format, _ := kernelForBoot(context.Background(), b)
		require.True(t, format == "vmlinux" || bytes.Equal(kernel, b))
	})
}
