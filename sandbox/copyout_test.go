package sandbox

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// The guest writes the archive and need not use our packer.
func TestCraftedArchiveMakesNothingThatLeavesTheDirectory(t *testing.T) {
	link := func(name, target string) *tar.Header {
		return &tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink}
	}
	for name, entries := range map[string][]*tar.Header{
		"link through a link":    {link("a/b/c/up", "../../.."), link("a/b/c/up/evil", "../../..")},
		"climbing behind a name": {link("a/b/up", "../.."), link("a/q", "b/up/../../../etc/passwd")},
		"hard link to a link":    {link("a/b/c/l", "../../../zz"), {Name: "a/evil", Linkname: "a/b/c/l", Typeflag: tar.TypeLink}},
		"another name":           {{Name: ".ssh/authorized_keys", Typeflag: tar.TypeReg}},
		"parent":                 {{Name: "a/../../evil", Typeflag: tar.TypeReg}},
		"absolute link":          {link("a/l", "/etc/passwd")},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, h := range entries {
				require.NoError(t, w.WriteHeader(h))
			}
			require.NoError(t, w.Close())
			outer := t.TempDir()
			dir := filepath.Join(outer, "1/2/3")
			require.NoError(t, os.MkdirAll(dir, 0o755))
			root, err := os.OpenRoot(dir)
			require.NoError(t, err)
			defer root.Close()
			u := unpacker{root: root, base: "a", left: 1 << 20}
			_ = u.run(tar.NewReader(&b))
			require.NoError(t, filepath.WalkDir(outer, func(p string, d os.DirEntry, err error) error {
				if d.Type()&os.ModeSymlink != 0 {
					to, err := os.Readlink(p)
					require.NoError(t, err)
					rel, err := filepath.Rel(dir, filepath.Join(filepath.Dir(p), to))
					require.NoError(t, err)
					require.True(t, filepath.IsLocal(rel), "%s -> %s", p, to)
					require.False(t, filepath.IsAbs(to))
				}
				require.NotEqual(t, "evil", d.Name())
				require.NotEqual(t, "q", d.Name())
				require.NotEqual(t, ".ssh", d.Name())
				return err
			}))
		})
	}
}

// tarBlock is one raw header; archive/tar writes none with holes.
func tarBlock(name string, kind byte, size int64) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x0000000000000\x00", size))
	copy(b[148:], "        ")
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// A few hundred bytes of a guest must not fill the host's disk.
func TestCraftedArchiveDoesNotFillTheDisk(t *testing.T) {
	records := ""
	for _, r := range []string{"GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.name=a", "GNU.sparse.size=1048576", "GNU.sparse.numblocks=1", "GNU.sparse.map=1048576,0"} {
		n := len(r) + 4 // length, space, newline
		for len(fmt.Sprint(n))+len(r)+2 != n {
			n--
		}
		records += fmt.Sprintf("%d %s\n", n, r)
	}
	pad := func(s string) []byte { return append([]byte(s), make([]byte, (512-len(s)%512)%512)...) }
	sparse := slices.Concat(tarBlock("x", 'x', int64(len(records))), pad(records), tarBlock("a", '0', 0))
	huge := tarBlock("a", '0', 1<<30)
	for name, tt := range map[string]struct {
		archive []byte
		want    error
	}{"holes": {sparse, ErrInvalid}, "more than there is room for": {huge, ErrLimit}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			root, err := os.OpenRoot(dir)
			require.NoError(t, err)
			defer root.Close()
			u := unpacker{root: root, base: "a", left: 8 << 20}
			require.ErrorIs(t, u.run(tar.NewReader(bytes.NewReader(tt.archive))), tt.want)
			left, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

func TestFileThatDoesNotArriveWholeIsRemoved(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	require.NoError(t, err)
	defer root.Close()
	u := unpacker{root: root, base: "a", left: 1 << 20}
	require.Error(t, u.run(tar.NewReader(bytes.NewReader(append(tarBlock("a", '0', 4096), "half"...)))))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}
