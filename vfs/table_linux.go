package vfs

import (
	"io/fs"
	"math/bits"
	"slices"
	"sync"
	"syscall"
)

// rootID is the node id of the connection's root, FUSE_ROOT_ID.
const rootID = 1

// entry is a Node that the guest's kernel knows by an id.
//
// It lives while the kernel has looked it up more often than forgotten, and while a
// request uses it; then its Node is released.
type entry struct {
	id    uint64
	mount *mount // nil for the root
	node  Node
	ino   uint64      // the provider's
	kind  fs.FileMode // type bits; a node's type never changes

	// Guarded by table.mu.
	lookups uint64
	refs    int // requests that use it
	pinned  bool
	gone    bool      // dropped, or about to be
	names   []hint    // by which the kernel may know it, the latest last; at most maxNames
	files   []*handle // open files of it
	known   version   // what the kernel last heard, or knows that it does not know
}

// hint is a name in a directory. It can be out of date.
type hint struct {
	parent uint64
	name   string
}

// version is what tells one state of a file from another.
type version struct {
	mtime, ctime, size int64
	mode               fs.FileMode
	nlink, uid, gid    uint32
}

func versionOf(a Attr) version {
	return version{a.Mtime.UnixNano(), a.Ctime.UnixNano(), a.Size, a.Mode, a.Nlink, a.UID, a.GID}
}

// maxNames is how many names of a file are remembered, and so, with maxNodes, how many there
// are in all: a guest can make hard links without end. What is known by more names is
// believed for a shorter time anyway (see fillEntry).
const maxNames = 2

// key is what makes two Nodes the same file.
type key struct{ mount, ino uint64 }

// table holds the nodes and the open files of one FUSE connection. Ids are given
// once and never again, so that no late message can mean another file.
type table struct {
	maxNodes, maxFiles, maxDirs int
	crowded                     chan struct{} // gets an element when it is more than three quarters full of nodes

	mu      sync.Mutex
	nextID  uint64
	nodes   map[uint64]*entry
	byIno   map[key]*entry
	byName  map[hint]*entry
	handles map[uint64]*handle
	dirs    int // among handles
}

func newTable(o *Options, root Node) *table {
	t := &table{
		maxNodes: o.MaxNodes, maxFiles: o.MaxFiles, maxDirs: o.MaxDirs, nextID: rootID + 1,
		crowded: make(chan struct{}, 1),
		nodes:   map[uint64]*entry{}, byIno: map[key]*entry{}, byName: map[hint]*entry{}, handles: map[uint64]*handle{},
	}
	t.nodes[rootID] = &entry{id: rootID, node: root, ino: rootIno, kind: fs.ModeDir, pinned: true}
	return t
}

func (e *entry) mountIndex() uint64 {
	if e.mount == nil {
		return 0
	}
	return e.mount.index
}

// guestIno is the inode number that the guest sees: the provider's, made different
// from those of other mounts.
func guestIno(mount, ino uint64) uint64 { return bits.RotateLeft64(ino, 8) ^ mount }

// use returns the entry called id for the time of one request; done gives it back.
func (t *table) use(id uint64) (*entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.nodes[id]
	if e == nil || e.gone {
		return nil, syscall.ESTALE
	}
	e.refs++
	return e, nil
}

// useDir is use of what has to be a directory: only a guest that makes up its
// requests names something else, a link for one, which no provider shall follow.
func (t *table) useDir(id uint64) (*entry, error) {
	e, err := t.use(id)
	if err == nil && !e.kind.IsDir() {
		t.done(e)
		return nil, syscall.ENOTDIR
	}
	return e, err
}

func (t *table) done(e *entry) {
	t.mu.Lock()
	e.refs--
	drop := t.dead(e)
	t.mu.Unlock()
	if drop {
		e.node.Release()
	}
}

// dead takes an entry out of the table that nobody knows or uses any more, and says
// whether it did; t.mu is held.
func (t *table) dead(e *entry) bool {
	if e.lookups > 0 || e.refs > 0 || e.pinned || e.gone {
		return false
	}
	e.gone = true
	delete(t.nodes, e.id)
	if k := (key{e.mountIndex(), e.ino}); t.byIno[k] == e {
		delete(t.byIno, k)
	}
	for _, n := range e.names {
		if t.byName[n] == e {
			delete(t.byName, n)
		}
	}
	return true
}

// add counts one lookup of node, which a provider has just returned, and returns
// its entry, for use. A Node that is known already is released, and so is one for
// which there is no room.
func (t *table) add(m *mount, node Node, a Attr, h hint, pinned bool) (*entry, error) {
	e, release, err := t.addLocked(m, node, a, h, pinned)
	if release && !pinned {
		node.Release()
	}
	return e, err
}

func (t *table) addLocked(m *mount, node Node, a Attr, h hint, pinned bool) (e *entry, release bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := key{m.index, a.Ino}
	e = t.byIno[k]
	known := e != nil && e.kind == a.Mode.Type() && !e.gone
	if !known {
		if len(t.nodes) > t.maxNodes {
			return nil, true, syscall.ENFILE
		}
		e = &entry{id: t.nextID, mount: m, node: node, ino: a.Ino, kind: a.Mode.Type(), pinned: pinned}
		t.nextID++
		t.nodes[e.id], t.byIno[k] = e, e
		if len(t.nodes) > t.maxNodes/4*3 {
			select {
			case t.crowded <- struct{}{}:
			default:
			}
		}
	}
	e.lookups++
	e.refs++
	t.named(e, h)
	e.known = versionOf(a)
	return e, known, nil
}

// named notes that the kernel knows e by a name; t.mu is held.
func (t *table) named(e *entry, h hint) {
	t.byName[h] = e
	e.names = slices.DeleteFunc(e.names, func(o hint) bool { return o == h })
	if len(e.names) == maxNames {
		if t.byName[e.names[0]] == e {
			delete(t.byName, e.names[0])
		}
		e.names = slices.Delete(e.names, 0, 1)
	}
	e.names = append(e.names, h)
}

// unnamed notes that the kernel knows that a name is gone.
func (t *table) unnamed(h hint) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.byName[h]; e != nil {
		delete(t.byName, h)
		e.names = slices.DeleteFunc(e.names, func(o hint) bool { return o == h })
	}
}

// renamed notes that the kernel knows that a name has moved to another.
func (t *table) renamed(from, to hint, exchange bool) {
	t.mu.Lock()
	moved, other := t.byName[from], t.byName[to]
	t.mu.Unlock()
	t.unnamed(from)
	t.unnamed(to)
	t.mu.Lock()
	defer t.mu.Unlock()
	if moved != nil && !moved.gone {
		t.named(moved, to)
	}
	if exchange && other != nil && !other.gone {
		t.named(other, from)
	}
}

// namedBy returns the number by which the provider knows what the kernel knows by a
// name; 0: nothing.
func (t *table) namedBy(h hint) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.byName[h]; e != nil {
		return e.ino
	}
	return 0
}

// saw notes what the kernel is told about e, or what became of e by a request after
// which the kernel asks anew by itself.
func (t *table) saw(e *entry, a Attr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.known = versionOf(a)
}

// fresh reports whether the kernel's cache of e's content is that of a.
func (t *table) fresh(e *entry, a Attr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return e.known.size == a.Size && e.known.mtime == a.Mtime.UnixNano()
}

// changed reports whether a is news to the kernel.
func (t *table) changed(e *entry, a Attr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return e.known != versionOf(a)
}

// forget takes n lookups back. A guest that takes back more than it has, or from
// what does not exist, changes nothing but its own view.
func (t *table) forget(id, n uint64) {
	t.mu.Lock()
	e := t.nodes[id]
	if e == nil || id == rootID {
		t.mu.Unlock()
		return
	}
	e.lookups -= min(n, e.lookups)
	drop := t.dead(e)
	t.mu.Unlock()
	if drop {
		e.node.Release()
	}
}

// find returns the id of what a provider calls ino, 0 if the kernel does not know it.
func (t *table) find(m *mount, ino uint64) (uint64, fs.FileMode) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.byIno[key{m.index, ino}]; e != nil {
		return e.id, e.kind
	}
	return 0, 0
}

// maxThin is how many nodes are let go of at a time; a guest queues more than that.
const maxThin = 2048

// thin returns names that the kernel should let go of, of files and links that are
// not open. Directories stay: forgetting one would unmount what the guest mounted on it.
func (t *table) thin() []hint {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []hint
	for _, e := range t.nodes { // in random order, which is as good as any
		if len(out) >= min(maxThin, t.maxNodes/16) {
			break
		}
		if !e.kind.IsDir() && e.refs == 0 && len(e.files) == 0 {
			out = append(out, e.names...)
		}
	}
	return out
}

// clear closes and releases everything. No request runs any more.
func (t *table) clear(guard func(func())) {
	for _, h := range t.handles {
		guard(h.close)
	}
	for _, e := range t.nodes {
		if e.id != rootID && !e.pinned {
			guard(e.node.Release)
		}
	}
	clear(t.handles)
	clear(t.nodes)
	clear(t.byIno)
	clear(t.byName)
}

// handle is an open file or directory.
type handle struct {
	id    uint64
	e     *entry
	file  File // nil for a directory
	dir   *openDir
	flags int // of open(2)

	refs     int // requests that use it; guarded by table.mu
	released bool
}

func (h *handle) close() {
	if h.file != nil {
		_ = h.file.Close() // close(2) has had its error from Flush
		return
	}
	_ = h.dir.d.Close()
}

// room says whether another handle fits.
func (t *table) room(dir bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.roomLocked(dir)
}

func (t *table) roomLocked(dir bool) error {
	if dir && t.dirs >= t.maxDirs || !dir && len(t.handles)-t.dirs >= t.maxFiles {
		return syscall.ENFILE
	}
	return nil
}

// open gives h an id. The caller closes h's file itself when there is no room.
func (t *table) open(h *handle) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.roomLocked(h.dir != nil); err != nil {
		return err
	}
	h.id = t.nextID
	t.nextID++
	t.handles[h.id] = h
	if h.dir != nil {
		t.dirs++
	} else {
		h.e.files = append(h.e.files, h)
	}
	return nil
}

// useHandle returns the open file (or directory) fh of node id for the time of a
// request; doneHandle gives it back.
func (t *table) useHandle(id, fh uint64, dir bool) (*handle, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.handles[fh]
	if h == nil || h.released || h.e.id != id || (h.dir != nil) != dir {
		return nil, syscall.EBADF
	}
	h.refs++
	return h, nil
}

// anyFile returns some open file of e for the time of a request, nil if there is none.
func (t *table) anyFile(e *entry) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(e.files) == 0 {
		return nil
	}
	e.files[0].refs++
	return e.files[0]
}

func (t *table) doneHandle(h *handle) {
	t.mu.Lock()
	h.refs--
	last := h.released && h.refs == 0
	t.mu.Unlock()
	if last {
		h.close()
	}
}

// release ends a handle; its file is closed when no request uses it any more.
func (t *table) release(id, fh uint64, dir bool) {
	h, err := t.useHandle(id, fh, dir)
	if err != nil {
		return
	}
	t.mu.Lock()
	first := !h.released
	h.released = true
	if first {
		delete(t.handles, fh)
		if dir {
			t.dirs--
		} else {
			h.e.files = slices.DeleteFunc(h.e.files, func(o *handle) bool { return o == h })
		}
	}
	t.mu.Unlock()
	t.doneHandle(h)
}
