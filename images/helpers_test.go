package images

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
)

func testStore(t testing.TB) *Store {
	t.Helper()
	s, err := OpenStore(filepath.Join(t.TempDir(), "store"))
	require.NoError(t, err)
	return s
}

// testKernel is a kernel with everything built in, so that builds need no distribution.
func testKernel(t testing.TB) KernelSource {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "6.0-test")
	require.NoError(t, os.Mkdir(dir, 0o755))
	var builtin strings.Builder
	for _, m := range guestModules {
		builtin.WriteString("kernel/x/" + m.name + ".ko\n")
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte(builtin.String()), 0o644))
	file := filepath.Join(t.TempDir(), "vmlinuz")
	require.NoError(t, os.WriteFile(file, []byte("a kernel that is no bzImage"), 0o644))
	return KernelSource{File: file, Modules: dir}
}

// entry is one file of a test archive.
type entry struct {
	tar.Header
	body string
}

func dirEntry(name string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}}
}
func fileEntry(name, body string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body: body}
}
func linkEntry(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}}
}
func symlinkEntry(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.Header
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(e.body))
		}
		require.NoError(t, w.WriteHeader(&h))
		_, err := w.Write([]byte(e.body))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

func testTree(t testing.TB, limits Limits) *tree {
	t.Helper()
	spool, err := os.Create(filepath.Join(t.TempDir(), "spool"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = spool.Close() })
	return newTree(spool, limits)
}

func apply(t testing.TB, tr *tree, name string, entries ...entry) error {
	t.Helper()
	return tr.applyLayer(context.Background(), "layer "+name, bytes.NewReader(archive(t, entries...)), true)
}

// ociImage makes an image of the given layers.
func ociImage(t testing.TB, layers ...[]byte) v1.Image {
	t.Helper()
	img := v1.Image(empty.Image)
	for _, l := range layers {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(l)), nil })
		require.NoError(t, err)
		img, err = mutate.AppendLayers(img, layer)
		require.NoError(t, err)
	}
	cfg, err := img.ConfigFile()
	require.NoError(t, err)
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", "amd64"
	cfg.Config.Env = []string{"PATH=/bin", "BAD=\xff"}
	cfg.Config.WorkingDir = "/work"
	img, err = mutate.ConfigFile(img, cfg)
	require.NoError(t, err)
	return img
}

func buildTar(t testing.TB, s *Store, name string, entries ...entry) (*Image, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "root.tar")
	require.NoError(t, os.WriteFile(file, archive(t, entries...), 0o644))
	return Build(context.Background(), s, Spec{Name: name, Arch: "amd64", Kernel: testKernel(t),
		Source: Source{Kind: KindTar, Ref: file}}, Quiet)
}

// debugfs asks e2fsprogs, which shares no code with the writer, about a root disk.
func debugfs(t testing.TB, img *Image, request string) string {
	t.Helper()
	path, err := lookTool("debugfs")
	if err != nil {
		t.Skip("e2fsprogs is not installed (make test installs it)")
	}
	out, err := exec.Command(path, "-R", request, img.Path(RootFile)).Output()
	require.NoError(t, err)
	return string(out)
}

func fsck(t testing.TB, img *Image) {
	t.Helper()
	path, err := lookTool("e2fsck")
	if err != nil {
		t.Skip("e2fsprogs is not installed (make test installs it)")
	}
	out, err := exec.Command(path, "-fn", img.Path(RootFile)).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// tinyELF is the smallest 64-bit ELF with one named section, or with a PT_NOTE segment.
func tinyELF(section string, data, note []byte) []byte {
	le := binary.LittleEndian
	names := append([]byte("\x00"+section+"\x00"), []byte(".shstrtab\x00")...)
	const ehdr, phdr, shdr = 64, 56, 64
	dataOff := ehdr + phdr
	noteOff := dataOff + len(data)
	nameOff := noteOff + len(note)
	shOff := nameOff + len(names)
	b := make([]byte, shOff+3*shdr)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)
	le.PutUint16(b[18:], 62)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[32:], ehdr)
	le.PutUint64(b[40:], uint64(shOff))
	le.PutUint16(b[52:], ehdr)
	le.PutUint16(b[54:], phdr)
	le.PutUint16(b[56:], 1)
	le.PutUint16(b[58:], shdr)
	le.PutUint16(b[60:], 3)
	le.PutUint16(b[62:], 2)
	le.PutUint32(b[ehdr:], 4) // PT_NOTE
	le.PutUint64(b[ehdr+8:], uint64(noteOff))
	le.PutUint64(b[ehdr+32:], uint64(len(note)))
	copy(b[dataOff:], data)
	copy(b[noteOff:], note)
	copy(b[nameOff:], names)
	sec := func(i int, name, typ uint32, off, size int) {
		h := b[shOff+i*shdr:]
		le.PutUint32(h, name)
		le.PutUint32(h[4:], typ)
		le.PutUint64(h[24:], uint64(off))
		le.PutUint64(h[32:], uint64(size))
	}
	sec(1, 1, 1, dataOff, len(data))
	sec(2, uint32(len(section)+2), 3, nameOff, len(names))
	return b
}
