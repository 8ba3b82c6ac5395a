package vfs

import (
	"context"
	"io/fs"
	"sort"
	"syscall"
)

// memDir is the content of a directory. Entries stand in the order in which they
// were made; a position is the number of the entry to go on with, so that it means
// the same whatever is made and removed meanwhile.
type memDir struct {
	parent  *memNode          // the directory itself for the root
	names   map[string]uint64 // to the entry's number
	entries []memEntry        // by number; removed ones stay as gaps for a while
	gaps    int
	last    uint64 // the number given last
}

type memEntry struct {
	seq  uint64
	name string
	node *memNode // nil in a gap
}

// index returns the index of the first entry numbered seq or above.
func (d *memDir) index(seq uint64) int {
	return sort.Search(len(d.entries), func(i int) bool { return d.entries[i].seq >= seq })
}

func (d *memDir) get(name string) *memNode {
	seq, ok := d.names[name]
	if !ok {
		return nil
	}
	return d.entries[d.index(seq)].node
}

func (d *memDir) put(name string, n *memNode) {
	if seq, ok := d.names[name]; ok {
		d.entries[d.index(seq)].node = n
		return
	}
	d.last++
	d.names[name] = d.last
	d.entries = append(d.entries, memEntry{d.last, name, n})
}

func (d *memDir) remove(name string) {
	d.entries[d.index(d.names[name])] = memEntry{seq: d.names[name]}
	delete(d.names, name)
	// Half of it gaps: copying what stays costs as much as removing did.
	if d.gaps++; d.gaps > 64 && d.gaps > len(d.entries)/2 {
		kept := make([]memEntry, 0, len(d.names)+len(d.names)/4)
		names := make(map[string]uint64, len(d.names)) // the old one would stay as big as it ever was
		for _, e := range d.entries {
			if e.node != nil {
				kept = append(kept, e)
				names[e.name] = e.seq
			}
		}
		d.entries, d.names, d.gaps = kept, names, 0
	}
}

// asDir returns the directory that n is; m.mu is held.
func (n *memNode) asDir() (*memDir, error) {
	if n.dir == nil {
		return nil, syscall.ENOTDIR
	}
	return n.dir, nil
}

// forNew returns the directory for a name to be made in it.
func (n *memNode) forNew(name string) (*memDir, error) {
	d, err := n.asDir()
	switch {
	case err != nil:
		return nil, err
	case len(name) > MaxName:
		return nil, syscall.ENAMETOOLONG
	case n.nlink == 0:
		return nil, syscall.ENOENT // removed, and open somewhere
	}
	if _, ok := d.names[name]; ok {
		return nil, syscall.EEXIST
	}
	return d, nil
}

func (n *memNode) touch() {
	t := now()
	n.mtime, n.ctime = t, t
}

func (n *memNode) Lookup(_ context.Context, name string) (Node, error) {
	n.m.mu.RLock()
	defer n.m.mu.RUnlock()
	child, err := n.child(name)
	if err != nil {
		return nil, err
	}
	return child, nil
}

// make adds a new node; m.mu is held.
func (n *memNode) make(ctx context.Context, name string, mode fs.FileMode, target string) (*memNode, error) {
	d, err := n.forNew(name)
	if err != nil {
		return nil, err
	}
	m := n.m
	if m.files >= m.opts.MaxFiles {
		return nil, syscall.ENOSPC
	}
	if err := m.charge(int64(memNodeCost + memEntryCost + len(name) + len(target))); err != nil {
		return nil, err
	}
	c := CallerFrom(ctx)
	t := now()
	child := &memNode{
		m: m, ino: m.nextIno, mode: mode & (fs.ModeType | changeable), uid: c.UID, gid: c.GID,
		nlink: 1, atime: t, mtime: t, ctime: t, target: target,
	}
	if n.mode&fs.ModeSetgid != 0 { // inode_init_owner in Linux
		child.gid = n.gid
		if mode.IsDir() {
			child.mode |= fs.ModeSetgid
		}
	}
	if mode.IsDir() {
		child.dir = &memDir{parent: n, names: map[string]uint64{}}
		child.nlink = 2
		n.nlink++
	}
	m.nextIno++
	m.files++
	d.put(name, child)
	n.touch()
	return child, nil
}

func (n *memNode) Create(ctx context.Context, name string, flags int, mode fs.FileMode) (Node, File, error) {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	child, err := n.make(ctx, name, mode&changeable, "")
	if err == syscall.EEXIST && flags&syscall.O_EXCL == 0 {
		child, err = n.dir.get(name), nil
	}
	if err != nil {
		return nil, nil, err
	}
	f, err := child.open(flags)
	if err != nil {
		return nil, nil, err
	}
	return child, f, nil
}

func (n *memNode) makeNode(ctx context.Context, name string, mode fs.FileMode, target string) (Node, error) {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	child, err := n.make(ctx, name, mode, target)
	if err != nil {
		return nil, err
	}
	return child, nil
}

func (n *memNode) Mkdir(ctx context.Context, name string, mode fs.FileMode) (Node, error) {
	return n.makeNode(ctx, name, fs.ModeDir|mode&changeable, "")
}

func (n *memNode) Mknod(ctx context.Context, name string, mode fs.FileMode) (Node, error) {
	switch mode.Type() {
	case 0, fs.ModeNamedPipe, fs.ModeSocket:
		return n.makeNode(ctx, name, mode, "")
	}
	return nil, syscall.EPERM
}

func (n *memNode) Symlink(ctx context.Context, name, target string) (Node, error) {
	return n.makeNode(ctx, name, fs.ModeSymlink|0o777, target)
}

func (n *memNode) Link(_ context.Context, name string, target Node) (Node, error) {
	t, ok := target.(*memNode)
	if !ok || t.m != n.m {
		return nil, syscall.EXDEV
	}
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	if t.dir != nil {
		return nil, syscall.EPERM
	}
	d, err := n.forNew(name)
	switch {
	case err != nil:
		return nil, err
	case t.nlink == 0:
		return nil, syscall.ENOENT
	case t.nlink >= 65000: // as ext4
		return nil, syscall.EMLINK
	}
	if err := n.m.charge(int64(memEntryCost + len(name))); err != nil {
		return nil, err
	}
	d.put(name, t)
	t.nlink++
	t.ctime = now()
	n.touch()
	return t, nil
}

// unlink takes child's name away; m.mu is held.
func (n *memNode) unlink(name string, child *memNode) {
	n.dir.remove(name)
	_ = n.m.charge(-int64(memEntryCost + len(name)))
	n.touch()
	n.unref(child)
}

// unref takes from child the link that stood in n.
func (n *memNode) unref(child *memNode) {
	if child.dir != nil {
		child.nlink = 0
		n.nlink--
	} else {
		child.nlink--
	}
	child.ctime = now()
	child.drop()
}

// child returns the node called name in a directory; the lock is held.
func (n *memNode) child(name string) (*memNode, error) {
	d, err := n.asDir()
	if err != nil {
		return nil, err
	}
	if c := d.get(name); c != nil {
		return c, nil
	}
	return nil, syscall.ENOENT
}

func (n *memNode) Unlink(_ context.Context, name string) error {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	child, err := n.child(name)
	switch {
	case err != nil:
		return err
	case child.dir != nil:
		return syscall.EISDIR
	}
	n.unlink(name, child)
	return nil
}

func (n *memNode) Rmdir(_ context.Context, name string) error {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	child, err := n.child(name)
	switch {
	case err != nil:
		return err
	case child.dir == nil:
		return syscall.ENOTDIR
	case len(child.dir.names) > 0:
		return syscall.ENOTEMPTY
	}
	n.unlink(name, child)
	return nil
}

// memOpenDir is an open directory.
type memOpenDir struct{ n *memNode }

func (n *memNode) OpenDir(context.Context) (Dir, error) {
	if n.dir == nil {
		return nil, syscall.ENOTDIR
	}
	return memOpenDir{n}, nil
}

func (o memOpenDir) Entries(_ context.Context, pos uint64, max int) ([]DirEntry, error) {
	o.n.m.mu.RLock()
	defer o.n.m.mu.RUnlock()
	d := o.n.dir
	var out []DirEntry
	for _, e := range d.entries[d.index(pos):] {
		if e.node == nil {
			continue
		}
		if len(out) == max {
			break
		}
		out = append(out, DirEntry{Name: e.name, Ino: e.node.ino, Type: e.node.mode.Type(), Next: e.seq + 1})
	}
	return out, nil
}

func (memOpenDir) Sync(context.Context) error { return nil }
func (memOpenDir) Close() error               { return nil }
