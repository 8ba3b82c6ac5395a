package vfs

import (
	"container/list"
	"hash/maphash"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// hostNode is one host inode that the server holds. All Lookups of it, by whatever hard link, return this one.
type hostNode struct {
	fs    *hostFS
	key   hostKey
	birth hostBirth
	typ   uint32 // S_IFMT bits
	num   uint64 // Attr.Ino

	// Under fs.mu:
	refs   int           // Lookups less Releases
	fd     int           // O_PATH descriptor, -1 when it had to make room for others
	pins   int           // calls that use fd now
	lru    *list.Element // place in fs.lru while fd is there
	parent hostKey       // directory that it was last found in ...
	name   string        // ... under this name
	files  []*hostFile   // open files, which keep the inode alive after its last name is gone
}

// use returns the node's descriptor, opened again if need be, and keeps it until done.
func (n *hostNode) use() (int, error) {
	f := n.fs
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return -1, syscall.ESTALE
	}
	if n.fd < 0 {
		if err := f.reopen(n); err != nil {
			return -1, err
		}
	}
	n.pins++
	if n.lru != nil {
		f.lru.MoveToFront(n.lru)
	}
	return n.fd, nil
}

// done ends a use.
func (n *hostNode) done() {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	n.pins--
	if n.pins == 0 && (n.refs == 0 || n.fs.closed) {
		n.dropFD()
	}
}

// setFD gives the node its descriptor and makes room for it. Under fs.mu.
func (n *hostNode) setFD(fd int) {
	n.fd = fd
	n.lru = n.fs.lru.PushFront(n)
	n.fs.shrink(n.fs.maxFDs, n)
}

// dropFD closes the node's descriptor. Under fs.mu.
func (n *hostNode) dropFD() {
	if n.fd < 0 {
		return
	}
	unix.Close(n.fd)
	n.fd = -1
	if n.lru != nil {
		n.fs.lru.Remove(n.lru)
		n.lru = nil
	}
}

// shrink closes idle descriptors, the longest unused first, until at most keep are left. Under f.mu.
func (f *hostFS) shrink(keep int, spare *hostNode) {
	for e := f.lru.Back(); e != nil && f.lru.Len() > keep; {
		n, prev := e.Value.(*hostNode), e.Prev()
		if n.pins == 0 && n != spare {
			n.dropFD()
		}
		e = prev
	}
}

// reopen finds the inode again: through an open file, or down from the nearest ancestor whose
// descriptor is there, by the names under which they were last seen. What is found must be the
// very same inodes. Called with f.mu held, which it lets go of while it opens.
func (f *hostFS) reopen(n *hostNode) error {
	if len(n.files) > 0 {
		// The descriptor is our own and open: this asks no file system.
		fd, err := unix.Open(procPath(n.files[0].fd), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		n.setFD(fd)
		return nil
	}
	var way []*hostNode // from n up to the child of top
	var names []string
	top := n
	for top.fd < 0 {
		way, names = append(way, top), append(names, top.name)
		if top = f.nodes[top.parent]; top == nil || len(way) > hostDepth {
			return syscall.ESTALE
		}
	}
	top.pins++
	f.mu.Unlock()
	fd, err := f.descend(top.fd, way, names)
	f.mu.Lock()
	if top.pins--; top.pins == 0 && (top.refs == 0 || f.closed) {
		top.dropFD()
	}
	if err != nil {
		return err
	}
	if n.fd >= 0 || f.closed { // another call was quicker
		unix.Close(fd)
		if f.closed {
			return syscall.ESTALE
		}
		return nil
	}
	n.setFD(fd)
	return nil
}

// descend opens the last node of the way, which is listed from the bottom up, starting in dfd.
func (f *hostFS) descend(dfd int, way []*hostNode, names []string) (int, error) {
	at := dfd
	for i, n := range slices.Backward(way) {
		fd, st, err := f.openPath(at, names[i])
		if at != dfd {
			unix.Close(at)
		}
		if err != nil {
			if err == syscall.ENOENT || err == syscall.ENOTDIR {
				err = syscall.ESTALE
			}
			return -1, err
		}
		if keyOf(&st) != n.key || !n.bornLike(&st) {
			unix.Close(fd)
			return -1, syscall.ESTALE
		}
		at = fd
	}
	return at, nil
}

// openPath opens a handle on the entry called name, whatever it is, without following or touching it.
func (f *hostFS) openPath(dfd int, name string) (int, unix.Statx_t, error) {
	fd, err := f.open(dfd, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, unix.Statx_t{}, err
	}
	st, err := statAt(fd, "")
	if err != nil {
		unix.Close(fd)
		return -1, st, err
	}
	return fd, st, nil
}

// open is openat(2); when the process runs out of descriptors, half of the idle ones here make room.
func (f *hostFS) open(dfd int, name string, flags int, mode uint32) (fd int, err error) {
	try := func() error {
		fd, err = unix.Openat(dfd, name, flags|unix.O_CLOEXEC, mode)
		return err
	}
	if err := again(try); err != syscall.EMFILE && err != syscall.ENFILE {
		return fd, err
	}
	f.mu.Lock()
	f.shrink(f.lru.Len()/2, nil)
	f.mu.Unlock()
	return fd, again(try)
}

// child returns the node of the entry called name in dir, whose descriptor is dfd.
func (f *hostFS) child(dir *hostNode, dfd int, name string) (*hostNode, error) {
	fd, st, err := f.openPath(dfd, name)
	if err != nil {
		return nil, err
	}
	if err := f.admit(dir, fd, &st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return f.intern(dir, name, fd, &st)
}

// admit judges an entry that may lie on another file system than its directory.
func (f *hostFS) admit(dir *hostNode, fd int, st *unix.Statx_t) error {
	if f.opts.OneFileSystem && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return syscall.EXDEV
	}
	dev := keyOf(st).dev
	if dev == dir.key.dev {
		return nil
	}
	f.mu.Lock()
	verdict, known := f.devs[dev]
	f.mu.Unlock()
	if known {
		return verdict
	}
	verdict = refuseKernelFS(fd)
	f.mu.Lock()
	f.devs[dev] = verdict
	f.mu.Unlock()
	return verdict
}

// intern returns the node of the inode that fd is open on, and owns fd from then on.
func (f *hostFS) intern(dir *hostNode, name string, fd int, st *unix.Statx_t) (*hostNode, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		unix.Close(fd)
		return nil, syscall.ESTALE
	}
	key := keyOf(st)
	n := f.nodes[key]
	// While a descriptor is open the host cannot use the inode number again; otherwise its birth tells.
	if n != nil && n.fd < 0 && len(n.files) == 0 && !n.bornLike(st) {
		n = nil
	}
	if n != nil {
		n.refs++
		if n.fd >= 0 {
			unix.Close(fd)
		} else {
			n.setFD(fd)
		}
	} else {
		n = &hostNode{fs: f, key: key, birth: birthOf(st), typ: uint32(st.Mode) & unix.S_IFMT, refs: 1}
		n.num = f.number(key, true)
		f.nodes[key], f.numbers[n.num] = n, n
		n.setFD(fd)
	}
	if n != f.root {
		n.parent, n.name = dir.key, name
	}
	return n, nil
}

// number maps a host inode to Attr.Ino: its own number on the root's file system, else a hash, so that
// file systems below cannot collide. With fresh, a number that a live node has is passed over. Under f.mu.
func (f *hostFS) number(key hostKey, fresh bool) uint64 {
	num := key.ino
	other := f.root != nil && key.dev != f.root.key.dev
	for round := 0; ; round++ {
		if round > 0 || other || num >= 1<<63 {
			num = maphash.Comparable(f.seed, struct {
				key   hostKey
				round int
			}{key, round}) | 1<<63
		}
		if !fresh || f.numbers[num] == nil {
			return num
		}
	}
}

// bornLike reports whether st may be the node's inode rather than a later one with the same number.
func (n *hostNode) bornLike(st *unix.Statx_t) bool {
	b := birthOf(st)
	return uint32(st.Mode)&unix.S_IFMT == n.typ && (b == n.birth || b == hostBirth{} || n.birth == hostBirth{})
}

// Release lets the server's hold go.
func (n *hostNode) Release() {
	f := n.fs
	f.mu.Lock()
	n.refs--
	last := n.refs == 0
	if last {
		if f.nodes[n.key] == n {
			delete(f.nodes, n.key)
		}
		delete(f.numbers, n.num)
		if n.pins == 0 {
			n.dropFD()
		}
	}
	w := f.watch
	f.mu.Unlock()
	if last && w != nil && n.typ == unix.S_IFDIR {
		w.forget(n.key)
	}
}
