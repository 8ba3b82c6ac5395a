package sandbox

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
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
			u := unpacker{root: root, base: "a"}
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
