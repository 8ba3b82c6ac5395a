package vfs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestHostDirDoesWhatTheHostWould runs random operations through a HostDir that keeps hardly any
// descriptor, with and without wrappers, and on a second directory with plain system calls: results,
// errors, listings and contents must be the same.
func TestHostDirDoesWhatTheHostWould(t *testing.T) {
	none, err := NewRules(Rule{Pattern: "/never/here"})
	require.NoError(t, err)
	for name, wrap := range map[string]func(Node) Node{
		"plain": func(n Node) Node { return n },
		"wrapped": func(n Node) Node {
			n = Protect(Shadow(n, none, ShadowOptions{Upper: NewMemory(MemoryOptions{})}), none, ProtectOptions{})
			return Hooks(Quota(n, QuotaOptions{Bytes: 1 << 40, Files: 1 << 20}), HookFuncs{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				base, err := os.MkdirTemp("", "hostdir-model")
				require.NoError(t, err)
				defer os.RemoveAll(base)
				m := &model{real: filepath.Join(base, "real"), plain: filepath.Join(base, "plain")}
				require.NoError(t, os.Mkdir(m.real, 0o755))
				require.NoError(t, os.Mkdir(m.plain, 0o755))
				host, err := HostDir(m.real, HostDirOptions{MaxHandles: 2})
				require.NoError(t, err)
				defer host.Close()
				m.root = wrap(host)
				defer func() { releaseAll(m.held) }()
				t.Repeat(map[string]func(*rapid.T){
					"create": m.create, "write": m.write, "truncate": m.truncate, "mkdir": m.mkdir,
					"remove": m.remove, "rename": m.rename, "link": m.link, "symlink": m.symlink, "": m.check,
				})
			})
		})
	}
}

type model struct {
	real, plain string
	root        Node
	held        []Node // directories on the way, as a kernel keeps them
}

// draw picks a directory among few and a name among few, so that they meet.
func (m *model) draw(t *rapid.T, label string) (dir, name string) {
	dir = rapid.SampledFrom([]string{"", "a", "b", "a/b"}).Draw(t, label+"Dir")
	return dir, rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, label)
}

// in returns the node of a directory, nil when there is none.
func (m *model) in(t *rapid.T, dir string) Node {
	if dir == "" {
		return m.root
	}
	way, err := find(t.Context(), m.root, dir)
	m.held = append(m.held, way...)
	if err != nil {
		return nil
	}
	n := way[len(way)-1]
	if a, err := n.Attr(t.Context()); err != nil || !a.Mode.IsDir() {
		return nil
	}
	return n
}

func same(t *rapid.T, what string, ours, hosts error) {
	require.Equal(t, Errno(hosts), Errno(ours), "%s: host %v, ours %v", what, hosts, ours)
}

func (m *model) create(t *rapid.T) {
	dir, name := m.draw(t, "name")
	flags := rapid.SampledFrom([]int{0, syscall.O_EXCL, syscall.O_TRUNC}).Draw(t, "flags") | syscall.O_RDWR
	d := m.in(t, dir)
	if d == nil {
		return
	}
	fd, hosts := syscall.Open(filepath.Join(m.plain, dir, name), flags|syscall.O_CREAT|syscall.O_NOFOLLOW, 0o640)
	if hosts == nil {
		syscall.Close(fd)
	}
	n, f, ours := d.Create(t.Context(), name, flags, 0o640)
	same(t, "create", ours, hosts)
	if ours == nil {
		require.NoError(t, f.Close())
		n.Release()
	}
}

func (m *model) file(t *rapid.T) (Node, string) {
	dir, name := m.draw(t, "file")
	d := m.in(t, dir)
	if d == nil {
		return nil, ""
	}
	n, err := d.Lookup(t.Context(), name)
	if err != nil {
		return nil, ""
	}
	a, err := n.Attr(t.Context())
	require.NoError(t, err)
	if !a.Mode.IsRegular() {
		n.Release()
		return nil, ""
	}
	return n, filepath.Join(m.plain, dir, name)
}

func (m *model) write(t *rapid.T) {
	n, path := m.file(t)
	if n == nil {
		return
	}
	defer n.Release()
	off := rapid.Int64Range(0, 9000).Draw(t, "off")
	data := rapid.SliceOfN(rapid.Byte(), 1, 5000).Draw(t, "data")
	f, err := n.Open(t.Context(), os.O_RDWR)
	require.NoError(t, err)
	defer f.Close()
	size, err := f.WriteAt(t.Context(), data, off)
	require.NoError(t, err)
	require.Equal(t, len(data), size)
	plain, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer plain.Close()
	_, err = plain.WriteAt(data, off)
	require.NoError(t, err)
}

func (m *model) truncate(t *rapid.T) {
	n, path := m.file(t)
	if n == nil {
		return
	}
	defer n.Release()
	size := rapid.Int64Range(0, 20000).Draw(t, "size")
	a, err := n.SetAttr(t.Context(), Change{Size: &size})
	require.NoError(t, err)
	require.Equal(t, size, a.Size)
	require.NoError(t, os.Truncate(path, size))
}

func (m *model) mkdir(t *rapid.T) {
	dir, name := m.draw(t, "name")
	d := m.in(t, dir)
	if d == nil {
		return
	}
	n, ours := d.Mkdir(t.Context(), name, 0o755)
	same(t, "mkdir", ours, syscall.Mkdir(filepath.Join(m.plain, dir, name), 0o755))
	if ours == nil {
		n.Release()
	}
}

func (m *model) remove(t *rapid.T) {
	dir, name := m.draw(t, "name")
	d := m.in(t, dir)
	if d == nil {
		return
	}
	path := filepath.Join(m.plain, dir, name)
	if rapid.Bool().Draw(t, "rmdir") {
		same(t, "rmdir", d.Rmdir(t.Context(), name), syscall.Rmdir(path))
		return
	}
	same(t, "unlink", d.Unlink(t.Context(), name), syscall.Unlink(path))
}

func (m *model) rename(t *rapid.T) {
	dir, name := m.draw(t, "from")
	toDir, toName := m.draw(t, "to")
	d, to := m.in(t, dir), m.in(t, toDir)
	if d == nil || to == nil {
		return
	}
	hosts := syscall.Rename(filepath.Join(m.plain, dir, name), filepath.Join(m.plain, toDir, toName))
	same(t, "rename", d.Rename(t.Context(), name, to, toName, 0), hosts)
}

func (m *model) link(t *rapid.T) {
	n, path := m.file(t)
	dir, name := m.draw(t, "name")
	d := m.in(t, dir)
	if n == nil {
		return
	}
	defer n.Release()
	if d == nil {
		return
	}
	l, ours := d.Link(t.Context(), name, n)
	same(t, "link", ours, syscall.Link(path, filepath.Join(m.plain, dir, name)))
	if ours == nil {
		l.Release()
	}
}

func (m *model) symlink(t *rapid.T) {
	dir, name := m.draw(t, "name")
	d := m.in(t, dir)
	if d == nil {
		return
	}
	n, ours := d.Symlink(t.Context(), name, "a")
	same(t, "symlink", ours, syscall.Symlink("a", filepath.Join(m.plain, dir, name)))
	if ours == nil {
		n.Release()
	}
}

// check compares both trees.
func (m *model) check(t *rapid.T) { m.compare(t, m.root, m.plain) }

func (m *model) compare(t *rapid.T, n Node, path string) {
	dir, err := n.OpenDir(t.Context())
	require.NoError(t, err)
	var ours, hosts []string
	for pos := uint64(0); ; {
		es, err := dir.Entries(t.Context(), pos, 2)
		require.NoError(t, err)
		if len(es) == 0 {
			break
		}
		for _, e := range es {
			ours, pos = append(ours, fmt.Sprint(e.Name, e.Type)), e.Next
		}
	}
	require.NoError(t, dir.Close())
	list, err := os.ReadDir(path)
	require.NoError(t, err)
	for _, e := range list {
		hosts = append(hosts, fmt.Sprint(e.Name(), e.Type()))
		m.compareOne(t, n, path, e)
	}
	sort.Strings(ours)
	sort.Strings(hosts)
	require.Equal(t, hosts, ours)
}

func (m *model) compareOne(t *rapid.T, n Node, path string, e os.DirEntry) {
	child, err := n.Lookup(t.Context(), e.Name())
	require.NoError(t, err)
	defer child.Release()
	a, err := child.Attr(t.Context())
	require.NoError(t, err)
	at := filepath.Join(path, e.Name())
	var st syscall.Stat_t
	require.NoError(t, syscall.Lstat(at, &st))
	require.EqualValues(t, st.Nlink, a.Nlink, at)
	require.Equal(t, goMode(st.Mode), a.Mode, at)
	switch {
	case e.IsDir():
		m.compare(t, child, at)
	case e.Type().IsRegular():
		want, err := os.ReadFile(at)
		require.NoError(t, err)
		f, err := child.Open(t.Context(), os.O_RDONLY)
		require.NoError(t, err)
		defer f.Close()
		got := make([]byte, len(want)+1)
		size, err := f.ReadAt(t.Context(), got, 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got[:size]), at)
	}
}
