package vfs

import (
	"context"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var (
	_ Node    = (*hostNode)(nil)
	_ Node    = (*HostDirRoot)(nil)
	_ Watcher = (*HostDirRoot)(nil)
)

// number is Attr.Ino without asking the file system, for wrappers.
func (n *hostNode) number() uint64 { return n.num }

func (n *hostNode) Attr(context.Context) (Attr, error) {
	fd, err := n.use()
	if err != nil {
		return Attr{}, err
	}
	defer n.done()
	return n.attr(fd)
}

// attr describes the inode that fd is open on, which is the node's.
func (n *hostNode) attr(fd int) (Attr, error) {
	st, err := statAt(fd, "")
	if err != nil {
		return Attr{}, err
	}
	a := Attr{
		Ino: n.num, Mode: goMode(uint32(st.Mode)), Nlink: st.Nlink,
		UID: n.fs.opts.UID, GID: n.fs.opts.GID,
		Size: int64(st.Size), Blocks: int64(st.Blocks), BlockSize: st.Blksize,
		Atime: timeOf(st.Atime), Mtime: timeOf(st.Mtime), Ctime: timeOf(st.Ctime),
	}
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	if o, ok := n.fs.owners[n.key]; ok && o.birth == birthOf(&st) {
		a.UID, a.GID = o.uid, o.gid
	}
	return a, nil
}

func (n *hostNode) SetAttr(_ context.Context, c Change) (Attr, error) {
	fd, err := n.use()
	if err != nil {
		return Attr{}, err
	}
	defer n.done()
	return n.change(fd, c, func(size int64) error { return unix.Truncate(procPath(fd), size) })
}

// change applies c to the inode that fd is open on.
func (n *hostNode) change(fd int, c Change, truncate func(int64) error) (Attr, error) {
	st, err := statAt(fd, "")
	if err != nil {
		return Attr{}, err
	}
	if c.Size != nil {
		if err := n.regular(); err != nil {
			return Attr{}, err
		}
		if err := n.clearSetID(fd, &st); err != nil {
			return Attr{}, err
		}
		if err := again(func() error { return truncate(*c.Size) }); err != nil {
			return Attr{}, err
		}
	}
	if c.Mode != nil {
		mode := linuxMode(*c.Mode) & 0o7777
		allowed := uint32(0o777) | uint32(st.Mode)&0o7000
		if n.typ == unix.S_IFDIR {
			allowed |= unix.S_ISVTX
		}
		if err := again(func() error { return unix.Chmod(procPath(fd), mode&allowed) }); err != nil {
			return Attr{}, err
		}
	}
	if c.Atime != nil || c.Mtime != nil {
		ts := []unix.Timespec{timespec(c.Atime), timespec(c.Mtime)}
		if err := again(func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, procPath(fd), ts, 0) }); err != nil {
			return Attr{}, err
		}
	}
	if c.UID != nil || c.GID != nil {
		n.chown(c.UID, c.GID, birthOf(&st))
	}
	return n.attr(fd)
}

// chown remembers an owner for the guest's eyes.
func (n *hostNode) chown(uid, gid *uint32, birth hostBirth) {
	f := n.fs
	f.mu.Lock()
	defer f.mu.Unlock()
	o, ok := f.owners[n.key]
	if !ok || o.birth != birth {
		o = hostOwner{uid: f.opts.UID, gid: f.opts.GID, birth: birth}
	}
	if uid != nil {
		o.uid = *uid
	}
	if gid != nil {
		o.gid = *gid
	}
	delete(f.owners, n.key)
	if o.uid == f.opts.UID && o.gid == f.opts.GID {
		return
	}
	for k := range f.owners {
		if len(f.owners) < hostOwners {
			break
		}
		delete(f.owners, k) // any: a bound matters here, an order does not
	}
	f.owners[n.key] = o
}

// clearSetID takes setuid and setgid from a file that is about to be written. The kernel does so for
// other users, but a server that is root would keep them.
func (n *hostNode) clearSetID(fd int, st *unix.Statx_t) error {
	if n.typ != unix.S_IFREG || st.Mode&(unix.S_ISUID|unix.S_ISGID) == 0 {
		return nil
	}
	return again(func() error {
		return unix.Chmod(procPath(fd), uint32(st.Mode)&0o7777&^(unix.S_ISUID|unix.S_ISGID))
	})
}

// regular says with the fitting error why a node that is no regular file cannot be opened.
func (n *hostNode) regular() error {
	switch n.typ {
	case unix.S_IFREG:
		return nil
	case unix.S_IFDIR:
		return syscall.EISDIR
	case unix.S_IFLNK:
		return syscall.ELOOP
	case unix.S_IFSOCK:
		return syscall.ENXIO
	}
	return syscall.EACCES
}

func (n *hostNode) Readlink(context.Context) (string, error) {
	if n.typ != unix.S_IFLNK {
		return "", syscall.EINVAL
	}
	fd, err := n.use()
	if err != nil {
		return "", err
	}
	defer n.done()
	buf := make([]byte, MaxPath+1)
	size, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:size]), nil
}

func (n *hostNode) Open(_ context.Context, flags int) (File, error) {
	if err := n.regular(); err != nil {
		return nil, err
	}
	fd, err := n.use()
	if err != nil {
		return nil, err
	}
	defer n.done()
	if writes(flags) {
		st, err := statAt(fd, "")
		if err != nil {
			return nil, err
		}
		if err := n.clearSetID(fd, &st); err != nil {
			return nil, err
		}
	}
	// O_NONBLOCK so that a lease held by a host program cannot make us wait.
	file, err := n.fs.open(unix.AT_FDCWD, procPath(fd), hostFlags(flags)|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return n.newFile(file), nil
}

func (n *hostNode) Lookup(_ context.Context, name string) (Node, error) {
	dfd, err := n.enter(name)
	if err != nil {
		return nil, err
	}
	defer n.done()
	n.watchNames()
	c, err := n.fs.child(n, dfd, name)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// enter is use for a directory in which name is to be worked on.
func (n *hostNode) enter(name string) (int, error) {
	if n.typ != unix.S_IFDIR {
		return -1, syscall.ENOTDIR
	}
	if err := checkHostName(name); err != nil {
		return -1, err
	}
	return n.use()
}

func (n *hostNode) OpenDir(context.Context) (Dir, error) {
	if n.typ != unix.S_IFDIR {
		return nil, syscall.ENOTDIR
	}
	fd, err := n.use()
	if err != nil {
		return nil, err
	}
	defer n.done()
	n.watchNames()
	dir, err := n.fs.open(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return &hostDir{node: n, fd: dir}, nil
}

func (n *hostNode) StatFS(context.Context) (StatFS, error) {
	fd, err := n.use()
	if err != nil {
		return StatFS{}, err
	}
	defer n.done()
	var st unix.Statfs_t
	if err := again(func() error { return unix.Fstatfs(fd, &st) }); err != nil {
		return StatFS{}, err
	}
	return StatFS{
		BlockSize: uint32(st.Bsize), Blocks: st.Blocks, Free: st.Bfree, Avail: st.Bavail,
		Files: st.Files, FilesFree: st.Ffree, MaxName: uint32(st.Namelen),
	}, nil
}

// hostFlags are the open flags that a guest may choose: no O_DIRECT, which would need
// aligned buffers, and nothing that makes or opens something else than a regular file.
func hostFlags(flags int) int {
	return flags & (unix.O_ACCMODE | unix.O_TRUNC | unix.O_APPEND | unix.O_SYNC | unix.O_DSYNC)
}

func timeOf(t unix.StatxTimestamp) time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }

// timespec is UTIME_OMIT for nil.
func timespec(t *time.Time) unix.Timespec {
	if t == nil {
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}
