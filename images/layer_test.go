package images

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHostileLayersAreRefusedByName(t *testing.T) {
	node := func(typ byte, name string, major, minor int64) entry {
		return entry{Header: tar.Header{Typeflag: typ, Name: name, Devmajor: major, Devminor: minor, Mode: 0o600}}
	}
	long := strings.Repeat("n", 256)
	cases := []struct {
		name    string
		entries []entry
		bad     string // the entry that the error names
		why     string
	}{
		{"path traversal", []entry{fileEntry("a/../../etc/shadow", "x")}, "a/../../etc/shadow", "path traversal"},
		{"path traversal behind a slash", []entry{fileEntry("/../x", "x")}, "/../x", "path traversal"},
		{"whiteout traversal", []entry{fileEntry("a/.wh...", "")}, "a/.wh...", "path traversal"},
		{"hard link outside", []entry{linkEntry("x", "../../etc/shadow")}, "x", "path traversal"},
		{"hard link absolute to a host file", []entry{linkEntry("x", "/etc/shadow")}, "x", "no such file|does not exist"},
		{"hard link to missing", []entry{linkEntry("x", "nothing")}, "x", "no such file"},
		{"hard link to directory", []entry{dirEntry("d"), linkEntry("x", "d")}, "x", "directory cannot be hard linked"},
		{"hard link through an escaping symlink", []entry{symlinkEntry("out", "../../../../etc"), linkEntry("x", "out/shadow")}, "x", "does not exist"},
		{"symlink loop", []entry{symlinkEntry("a", "b"), symlinkEntry("b", "a"), fileEntry("a/x", "")}, "a/x", "symlink loop"},
		{"block device", []entry{node(tar.TypeBlock, "dev/sda", 8, 0)}, "dev/sda", "block device"},
		{"block device elsewhere", []entry{node(tar.TypeBlock, "home/x", 8, 0)}, "home/x", "block device"},
		{"memory device", []entry{node(tar.TypeChar, "dev/mem", 1, 1)}, "dev/mem", "device node 1:1"},
		{"memory device called null", []entry{node(tar.TypeChar, "dev/null", 1, 1)}, "dev/null", "device node 1:1"},
		{"null device elsewhere", []entry{node(tar.TypeChar, "tmp/null", 1, 3)}, "tmp/null", "device node 1:3"},
		{"long component", []entry{fileEntry(long, "")}, long[:200] + "...", "longer than 255"},
		{"long path", []entry{fileEntry(strings.Repeat("d/", 3000)+"x", "")}, strings.Repeat("d/", 100) + "...", "longer than 4096"},
		{"directory under a file", []entry{fileEntry("f", "x"), fileEntry("f/g", "x")}, "f/g", "not a directory"},
		{"root that is a link", []entry{symlinkEntry(".", "/etc")}, ".", "root"},
		{"too many attributes", []entry{{Header: tar.Header{Typeflag: tar.TypeReg, Name: "x", Mode: 0o644,
			PAXRecords: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("v", 5000)}}}}, "x", "more than 4000 bytes"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := apply(t, testTree(t, Limits{}), "sha256:evil", c.entries...)
			require.Error(t, err)
			require.Contains(t, err.Error(), "layer sha256:evil")
			require.Contains(t, err.Error(), fmt.Sprintf("%q", c.bad))
			require.Regexp(t, c.why, err.Error())
		})
	}
}

func TestLimits(t *testing.T) {
	t.Run("entries", func(t *testing.T) {
		var many []entry
		for i := range 11 {
			many = append(many, fileEntry(fmt.Sprint("f", i), ""))
		}
		require.ErrorContains(t, apply(t, testTree(t, Limits{Entries: 10}), "l", many...), "too many entries: more than 10")
	})
	t.Run("implied directories count", func(t *testing.T) {
		require.ErrorContains(t, apply(t, testTree(t, Limits{Entries: 10}), "l", fileEntry(strings.Repeat("d/", 20)+"x", "")), "too many entries")
	})
	t.Run("bytes", func(t *testing.T) {
		err := apply(t, testTree(t, Limits{Bytes: 10_000}), "l", fileEntry("big", strings.Repeat("x", 20_000)))
		require.ErrorContains(t, err, `"big" refused: too big`)
	})
	t.Run("bytes over several layers", func(t *testing.T) {
		tr := testTree(t, Limits{Bytes: 30_000})
		require.NoError(t, apply(t, tr, "1", fileEntry("a", strings.Repeat("x", 20_000))))
		require.ErrorContains(t, apply(t, tr, "2", fileEntry("a", strings.Repeat("x", 20_000))), "layer 2")
	})
	t.Run("endless padding", func(t *testing.T) {
		r := &endless{head: archive(t, fileEntry("a", "x"))}
		err := testTree(t, Limits{Bytes: 1 << 20}).applyLayer(context.Background(), "layer bomb", r, true)
		require.ErrorContains(t, err, "layer bomb")
	})
	t.Run("sparse claim", func(t *testing.T) {
		// A PAX sparse file: a map of no data fragments and a logical size of 1 TiB.
		raw := sparseArchive(t, 1<<40)
		err := testTree(t, Limits{}).applyLayer(context.Background(), "sparse", bytes.NewReader(raw), true)
		require.ErrorContains(t, err, "too big")
		tr := testTree(t, Limits{Bytes: 1 << 20})
		err = tr.applyLayer(context.Background(), "sparse", bytes.NewReader(sparseArchive(t, 1<<20)), true)
		require.ErrorContains(t, err, "too big", "holes count as what they unpack to")
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		require.ErrorIs(t, testTree(t, Limits{}).applyLayer(ctx, "l", &endless{}, true), context.Canceled)
	})
}

// sparseArchive holds one file in GNU's PAX 1.0 sparse format that is all hole.
func sparseArchive(t *testing.T, size int64) []byte {
	t.Helper()
	var buf bytes.Buffer
	pax := ""
	for _, kv := range [][2]string{{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.name", "hole"},
		{"GNU.sparse.realsize", fmt.Sprint(size)}} {
		body := fmt.Sprintf(" %s=%s\n", kv[0], kv[1])
		n := len(body) + 2
		pax += fmt.Sprintf("%d%s", n, body)
	}
	block := func(name string, typ byte, body string) {
		w := tar.NewWriter(&buf)
		require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(body)), Mode: 0o644, Format: tar.FormatUSTAR}))
		_, err := w.Write([]byte(body))
		require.NoError(t, err)
		require.NoError(t, w.Flush())
		if typ != tar.TypeReg { // patch type and checksum: the writer refuses to make such headers
			h := buf.Bytes()[buf.Len()-512-(len(body)+511)/512*512:]
			h[156] = typ
			copy(h[148:156], "        ")
			sum := 0
			for _, c := range h[:512] {
				sum += int(c)
			}
			copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
		}
	}
	block("pax", tar.TypeXHeader, pax)
	data := make([]byte, 512)
	copy(data, fmt.Sprintf("1\n%d\n0\n", size))
	block("hole", tar.TypeReg, string(data))
	buf.Write(make([]byte, 1024))
	return buf.Bytes()
}

type endless struct{ head []byte }

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.head)
	e.head = e.head[n:]
	if n == 0 {
		clear(p)
		return len(p), nil
	}
	return n, nil
}

func names(n *inode, prefix string, out map[string]string) map[string]string {
	for name, c := range n.children {
		out[prefix+name] = string(c.typ)
		names(c.inode, prefix+name+"/", out)
	}
	return out
}

func TestWhiteouts(t *testing.T) {
	tr := testTree(t, Limits{})
	require.NoError(t, apply(t, tr, "1", fileEntry("etc/a", "1"), fileEntry("etc/b", "1"), fileEntry("opt/old/x", "1"),
		fileEntry("opt/old/y", "1"), fileEntry("gone/x", "1"), fileEntry("dir", "a file"), symlinkEntry("lib", "usr/lib")))
	require.NoError(t, apply(t, tr, "2",
		fileEntry("etc/.wh.a", ""), fileEntry("etc/a.new", ""),
		fileEntry("opt/old/z", "2"), fileEntry("opt/old/.wh..wh..opq", ""), // the mark counts wherever it stands
		fileEntry(".wh.gone", ""), fileEntry("gone/new", "2"), // its own layer's files stay
		fileEntry(".wh..wh.plnk/1", ""), fileEntry("none/.wh.x", ""),
		dirEntry("dir"), fileEntry("lib/libc.so", "2")))
	got := names(tr.root, "", map[string]string{})
	require.Equal(t, map[string]string{"etc": "5", "etc/b": "0", "etc/a.new": "0", "opt": "5", "opt/old": "5", "opt/old/z": "0",
		"gone": "5", "gone/new": "0", "dir": "5", "lib": "2", "usr": "5", "usr/lib": "5", "usr/lib/libc.so": "0",
		".wh..wh.plnk": "5", ".wh..wh.plnk/1": "0"}, got)

	plain := testTree(t, Limits{})
	require.NoError(t, plain.applyLayer(context.Background(), "tar", bytes.NewReader(archive(t, fileEntry(".wh.x", "kept"))), false))
	require.NotNil(t, plain.lookup(".wh.x"), "in a plain archive it is a file like any other")
}

func TestSymlinksStayInside(t *testing.T) {
	tr := testTree(t, Limits{})
	require.NoError(t, apply(t, tr, "1", symlinkEntry("abs", "/srv"), symlinkEntry("up", "../../../.."), fileEntry("abs/one", ""),
		fileEntry("up/two", ""), symlinkEntry("host", "/etc/passwd"), fileEntry("host", "replaces the link, not its target")))
	require.NotNil(t, tr.lookup("srv/one"))
	require.NotNil(t, tr.lookup("two"))
	require.EqualValues(t, tar.TypeReg, tr.lookup("host").typ)
}

func TestStandardDevicesAreDropped(t *testing.T) {
	tr := testTree(t, Limits{})
	require.NoError(t, apply(t, tr, "1", entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "./dev/null", Devmajor: 1, Devminor: 3}}))
	require.Nil(t, tr.lookup("dev/null"))
}
