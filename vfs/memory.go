package vfs

import (
	"context"
	"io/fs"
	"math"
	"sync"
	"syscall"
	"time"
)

// MemoryOptions shape a Memory provider; the zero value is an empty root
// directory of root's with mode 0755 and the default limits.
type MemoryOptions struct {
	// MaxBytes bounds the memory of all content, names and bookkeeping together;
	// 0 means 1 GiB. Beyond it writes fail with ENOSPC.
	MaxBytes int64
	// MaxFiles bounds the number of files and directories; 0 means 262,144. Beyond
	// it creations fail with ENOSPC.
	MaxFiles int64
	// UID and GID own the root directory, Mode are its permissions (0 means 0755).
	UID, GID uint32
	Mode     fs.FileMode
}

// What bookkeeping is taken to cost, in bytes: rounded up from measurements, so
// that MaxBytes bounds the real memory.
const (
	memNodeCost  = 512
	memEntryCost = 192
	memXattrCost = 128
	memChunkCost = 64
)

// maxMemFile is the largest size of a file in memory, that of ext4: 16 TiB.
const maxMemFile = 1 << 44

// memory is a file system in memory. One lock guards all of it: its longest hold is
// the copying of one request's data.
type memory struct {
	mu      sync.RWMutex
	opts    MemoryOptions
	used    int64 // bytes
	files   int64
	nextIno uint64
}

// NewMemory returns the root of an empty file system in memory. It has all of
// what POSIX and Linux ask of a file system except devices: hard links, sparse
// files, fallocate, extended attributes, O_TMPFILE aside. Access times change
// only when they are set, as with the mount option noatime. Nothing has to be
// closed: memory goes with the last reference to the root.
func NewMemory(o MemoryOptions) Node {
	if o.MaxBytes <= 0 {
		o.MaxBytes = 1 << 30
	}
	if o.MaxFiles <= 0 {
		o.MaxFiles = 256 << 10
	}
	if o.Mode == 0 {
		o.Mode = 0o755
	}
	m := &memory{opts: o, used: memNodeCost, files: 1, nextIno: 2}
	now := time.Now()
	root := &memNode{
		m: m, ino: 1, mode: fs.ModeDir | o.Mode.Perm() | o.Mode&fs.ModeSticky, uid: o.UID, gid: o.GID,
		nlink: 2, atime: now, mtime: now, ctime: now, dir: &memDir{names: map[string]uint64{}},
	}
	root.dir.parent = root
	return root
}

// charge takes n bytes, or says that there are not as many.
func (m *memory) charge(n int64) error {
	if n > 0 && n > m.opts.MaxBytes-m.used {
		return syscall.ENOSPC
	}
	m.used += n
	return nil
}

// memNode is a file, directory or link in memory. All fields but m and ino are
// guarded by m.mu.
type memNode struct {
	m   *memory
	ino uint64

	mode                fs.FileMode
	uid, gid            uint32
	nlink               uint32
	atime, mtime, ctime time.Time
	xattrs              map[string][]byte // nil until one is set

	dir    *memDir // of a directory
	target string  // of a symbolic link
	data   memData // of a regular file
	opens  int     // open memFiles
	gone   bool    // its last name and last open file are gone
}

var _ Node = (*memNode)(nil)

func (n *memNode) attr() Attr {
	a := Attr{
		Ino: n.ino, Mode: n.mode, Nlink: n.nlink, UID: n.uid, GID: n.gid, BlockSize: 4096,
		Atime: n.atime, Mtime: n.mtime, Ctime: n.ctime,
	}
	switch {
	case n.mode.IsRegular():
		a.Size, a.Blocks = n.data.size, (n.data.bytes+511)/512
	case n.mode&fs.ModeSymlink != 0:
		a.Size = int64(len(n.target))
	case n.dir != nil:
		a.Size = int64(len(n.dir.names)) * 32
	}
	return a
}

func (n *memNode) Attr(context.Context) (Attr, error) {
	n.m.mu.RLock()
	defer n.m.mu.RUnlock()
	return n.attr(), nil
}

// changeable are the mode bits that chmod(2) sets.
const changeable = fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky

func (n *memNode) SetAttr(_ context.Context, c Change) (Attr, error) {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	return n.setAttr(c)
}

func (n *memNode) setAttr(c Change) (Attr, error) {
	now := time.Now()
	if c.Size != nil {
		if !n.mode.IsRegular() {
			return Attr{}, notRegular(n)
		}
		if err := n.resize(*c.Size, now); err != nil {
			return Attr{}, err
		}
	}
	if c.Mode != nil {
		n.mode = n.mode&^changeable | *c.Mode&changeable
	}
	if c.UID != nil {
		n.uid = *c.UID
	}
	if c.GID != nil {
		n.gid = *c.GID
	}
	if c.Atime != nil {
		n.atime = *c.Atime
	}
	if c.Mtime != nil {
		n.mtime = *c.Mtime
	}
	n.ctime = now
	return n.attr(), nil
}

// notRegular is the error of an operation on content.
func notRegular(n *memNode) error {
	if n.dir != nil {
		return syscall.EISDIR
	}
	return syscall.EINVAL
}

func (n *memNode) resize(size int64, now time.Time) error {
	if size < 0 {
		return syscall.EINVAL
	}
	if size > maxMemFile {
		return syscall.EFBIG
	}
	freed := n.data.truncate(size)
	_ = n.m.charge(-freed)
	n.mtime, n.ctime = now, now
	return nil
}

func (n *memNode) Readlink(context.Context) (string, error) {
	if n.mode&fs.ModeSymlink == 0 { // a node's type never changes
		return "", syscall.EINVAL
	}
	return n.target, nil
}

// drop gives the node's memory back when nothing can reach it any more.
func (n *memNode) drop() {
	if n.nlink > 0 || n.opens > 0 || n.gone {
		return
	}
	n.gone = true
	cost := int64(memNodeCost + len(n.target))
	for k, v := range n.xattrs {
		cost += int64(memXattrCost + len(k) + len(v))
	}
	n.xattrs = nil
	cost += n.data.truncate(0)
	_ = n.m.charge(-cost)
	n.m.files--
}

func (n *memNode) StatFS(context.Context) (StatFS, error) {
	m := n.m
	m.mu.RLock()
	defer m.mu.RUnlock()
	free := uint64(max(0, m.opts.MaxBytes-m.used)) / 4096
	return StatFS{
		BlockSize: 4096, Blocks: uint64(m.opts.MaxBytes) / 4096, Free: free, Avail: free,
		Files: uint64(m.opts.MaxFiles), FilesFree: uint64(max(0, m.opts.MaxFiles-m.files)), MaxName: MaxName,
	}, nil
}

// Release does nothing: a directory refers to its nodes.
func (n *memNode) Release() {}

// addOverflows reports whether off+size is no valid end of a range.
func addOverflows(off, size int64) bool {
	return off < 0 || size < 0 || off > math.MaxInt64-size
}
