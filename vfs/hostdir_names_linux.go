package vfs

import (
	"context"
	"io/fs"
	"syscall"

	"golang.org/x/sys/unix"
)

func (n *hostNode) Create(ctx context.Context, name string, flags int, mode fs.FileMode) (Node, File, error) {
	dfd, err := n.enter(name)
	if err != nil {
		return nil, nil, err
	}
	defer n.done()
	n.watchNames()
	// What exists is opened by its handle: O_CREAT would open a device or wait for a FIFO.
	for range 8 {
		c, file, err := n.make(dfd, name, flags, mode)
		if err != syscall.EEXIST || flags&openExcl != 0 {
			return nodeOrNil(c), fileOrNil(file), err
		}
		c, err = n.fs.child(n, dfd, name)
		if err == syscall.ENOENT {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, nil, err
		}
		opened, err := c.Open(ctx, flags)
		if err != nil {
			c.Release()
			return nil, nil, err
		}
		return c, opened, nil
	}
	return nil, nil, syscall.EAGAIN
}

// make makes and opens a regular file that is not there yet.
func (n *hostNode) make(dfd int, name string, flags int, mode fs.FileMode) (*hostNode, *hostFile, error) {
	perm := linuxMode(mode) & 0o777
	fd, err := n.fs.open(dfd, name, hostFlags(flags)&^unix.O_TRUNC|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, perm)
	if err != nil {
		return nil, nil, err
	}
	c, err := n.adoptFile(fd, name, perm)
	if err != nil {
		unix.Close(fd)
		return nil, nil, err
	}
	return c, c.newFile(fd), nil
}

// adoptFile makes the node of a file that was just made and is open on fd.
func (n *hostNode) adoptFile(fd int, name string, perm uint32) (*hostNode, error) {
	if err := n.adopt(fd, perm); err != nil {
		return nil, err
	}
	st, err := statAt(fd, "")
	if err != nil {
		return nil, err
	}
	handle, err := n.fs.open(unix.AT_FDCWD, procPath(fd), unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	return n.fs.intern(n, name, handle, &st)
}

// adopt gives what the server just made in n to its owner, and the permissions that this
// process's umask took away: the guest has a umask of its own.
func (n *hostNode) adopt(fd int, perm uint32) error {
	f := n.fs
	if o := f.newOwner; o != nil {
		st, err := statAt(fd, "")
		if err != nil {
			return err
		}
		gid := int(o.gid)
		if st.Gid != 0 {
			gid = -1 // a setgid directory chose it
		}
		if st.Uid == 0 { // ours, not something that took its place
			if err := unix.Fchownat(fd, "", int(o.uid), gid, unix.AT_EMPTY_PATH); err != nil {
				f.chownLog.Do(func() {
					f.log.Warn("files made in a mount keep the server's owner", "error", err)
				})
			}
		}
	}
	lost := perm & f.umask
	if lost == 0 {
		return nil
	}
	st, err := statAt(fd, "")
	if err != nil {
		return err
	}
	return again(func() error { return unix.Chmod(procPath(fd), uint32(st.Mode)&0o7777|lost) })
}

func (n *hostNode) Mkdir(_ context.Context, name string, mode fs.FileMode) (Node, error) {
	perm := linuxMode(mode) & (0o777 | unix.S_ISVTX)
	return n.plant(name, perm, func(dfd int) error { return unix.Mkdirat(dfd, name, perm) })
}

func (n *hostNode) Mknod(ctx context.Context, name string, mode fs.FileMode) (Node, error) {
	perm := linuxMode(mode) & 0o777
	switch mode.Type() {
	case 0:
		c, file, err := n.Create(ctx, name, openExcl|openWrOnly, mode)
		if err != nil {
			return nil, err
		}
		return c, file.Close()
	case fs.ModeSocket:
		return n.plant(name, perm, func(dfd int) error { return unix.Mknodat(dfd, name, unix.S_IFSOCK|perm, 0) })
	}
	return nil, syscall.EPERM
}

func (n *hostNode) Symlink(_ context.Context, name, target string) (Node, error) {
	return n.plant(name, 0, func(dfd int) error { return unix.Symlinkat(target, dfd, name) })
}

func (n *hostNode) Link(_ context.Context, name string, target Node) (Node, error) {
	t := n.fs.mine(target)
	if t == nil {
		return nil, syscall.EXDEV
	}
	tfd, err := t.use()
	if err != nil {
		return nil, err
	}
	defer t.done()
	dfd, err := n.enter(name)
	if err != nil {
		return nil, err
	}
	defer n.done()
	err = again(func() error {
		return unix.Linkat(unix.AT_FDCWD, procPath(tfd), dfd, name, unix.AT_SYMLINK_FOLLOW)
	})
	if err != nil {
		return nil, err
	}
	c, err := n.fs.child(n, dfd, name)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// plant makes an entry with call and returns its node.
func (n *hostNode) plant(name string, perm uint32, call func(dfd int) error) (Node, error) {
	dfd, err := n.enter(name)
	if err != nil {
		return nil, err
	}
	defer n.done()
	if err := again(func() error { return call(dfd) }); err != nil {
		return nil, err
	}
	c, err := n.fs.child(n, dfd, name)
	if err != nil {
		return nil, err
	}
	fd, err := c.use()
	if err == nil {
		err = n.adopt(fd, perm)
		c.done()
	}
	if err != nil {
		c.Release()
		return nil, err
	}
	return c, nil
}

func (n *hostNode) Unlink(_ context.Context, name string) error { return n.remove(name, 0) }

func (n *hostNode) Rmdir(_ context.Context, name string) error {
	return n.remove(name, unix.AT_REMOVEDIR)
}

func (n *hostNode) remove(name string, flags int) error {
	dfd, err := n.enter(name)
	if err != nil {
		return err
	}
	defer n.done()
	v := n.fs.victim(dfd, name)
	err = again(func() error { return unix.Unlinkat(dfd, name, flags) })
	n.fs.gone(v, err)
	return err
}

func (n *hostNode) Rename(_ context.Context, name string, newDir Node, newName string, flags uint32) error {
	to := n.fs.mine(newDir)
	if to == nil {
		return syscall.EXDEV
	}
	if flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return syscall.EINVAL
	}
	dfd, err := n.enter(name)
	if err != nil {
		return err
	}
	defer n.done()
	tfd, err := to.enter(newName)
	if err != nil {
		return err
	}
	defer to.done()
	v := n.fs.victim(tfd, newName)
	err = again(func() error {
		if flags == 0 {
			return unix.Renameat(dfd, name, tfd, newName) // also where renameat2 is not supported
		}
		return unix.Renameat2(dfd, name, tfd, newName, uint(flags))
	})
	n.fs.gone(v, err)
	if err != nil {
		return err
	}
	n.fs.moved(to, tfd, newName)
	if flags&unix.RENAME_EXCHANGE != 0 {
		n.fs.moved(n, dfd, name)
	}
	return nil
}

// mine returns the node behind a Node of this mount, nil for any other.
func (f *hostFS) mine(n Node) *hostNode {
	var h *hostNode
	switch v := n.(type) {
	case *hostNode:
		h = v
	case *HostDirRoot:
		h = v.hostNode
	}
	if h == nil || h.fs != f {
		return nil
	}
	return h
}

// hostVictim is an entry whose name is about to go.
type hostVictim struct {
	st   unix.Statx_t
	held *hostNode // in use, so that it outlives its name
}

// victim prepares for the loss of a name. A node that the server holds is opened while its
// name still leads to it.
func (f *hostFS) victim(dfd int, name string) *hostVictim {
	st, err := statAt(dfd, name)
	if err != nil {
		return nil
	}
	f.mu.Lock()
	n := f.nodes[keyOf(&st)]
	f.mu.Unlock()
	if n != nil {
		if _, err := n.use(); err != nil {
			n = nil
		}
	}
	return &hostVictim{st: st, held: n}
}

// gone ends what victim began; err is the outcome of the removal.
func (f *hostFS) gone(v *hostVictim, err error) {
	if v == nil {
		return
	}
	if err == nil && (v.st.Nlink <= 1 || v.st.Mode&unix.S_IFMT == unix.S_IFDIR) {
		key := keyOf(&v.st)
		f.mu.Lock()
		if n := f.nodes[key]; n == nil || len(n.files) == 0 {
			delete(f.owners, key)
		}
		f.mu.Unlock()
	}
	if v.held != nil {
		v.held.done()
	}
}

// moved notes where a held node is found from now on.
func (f *hostFS) moved(dir *hostNode, dfd int, name string) {
	st, err := statAt(dfd, name)
	if err != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.nodes[keyOf(&st)]; n != nil && n != f.root {
		n.parent, n.name = dir.key, name
	}
}

// nodeOrNil and fileOrNil keep typed nil pointers out of interfaces.
func nodeOrNil(n *hostNode) Node {
	if n == nil {
		return nil
	}
	return n
}

func fileOrNil(f *hostFile) File {
	if f == nil {
		return nil
	}
	return f
}
