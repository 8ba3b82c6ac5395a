package vfs

import (
	"context"
	"syscall"
)

func (n *memNode) Rename(_ context.Context, name string, newDir Node, newName string, flags uint32) error {
	to, ok := newDir.(*memNode)
	if !ok || to.m != n.m {
		return syscall.EXDEV
	}
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	from, err := n.asDir()
	if err != nil {
		return err
	}
	dest, err := to.asDir()
	switch {
	case err != nil:
		return err
	case len(newName) > MaxName:
		return syscall.ENAMETOOLONG
	case to.nlink == 0:
		return syscall.ENOENT
	}
	src, dst := from.get(name), dest.get(newName)
	switch {
	case src == nil:
		return syscall.ENOENT
	case src.dir != nil && to.within(src):
		return syscall.EINVAL
	}
	switch flags {
	case RenameExchange:
		return n.exchange(name, src, to, newName, dst)
	case RenameNoReplace:
		if dst != nil {
			return syscall.EEXIST
		}
	case 0:
	default:
		return syscall.EINVAL
	}
	switch {
	case src == dst:
		return nil // two names of one file: POSIX wants both to stay
	case dst == nil:
	case dst.dir != nil && n.within(dst):
		return syscall.ENOTEMPTY
	case src.dir == nil && dst.dir != nil:
		return syscall.EISDIR
	case src.dir != nil && dst.dir == nil:
		return syscall.ENOTDIR
	case dst.dir != nil && len(dst.dir.names) > 0:
		return syscall.ENOTEMPTY
	}
	if dst == nil {
		if err := n.m.charge(int64(len(newName) - len(name))); err != nil {
			return err
		}
	} else {
		_ = n.m.charge(-int64(memEntryCost + len(name)))
	}
	from.remove(name)
	dest.put(newName, src)
	if dst != nil {
		to.unref(dst)
	}
	n.moved(src, to)
	n.touch()
	to.touch()
	return nil
}

// exchange is renameat2(2) with RENAME_EXCHANGE.
func (n *memNode) exchange(name string, src, to *memNode, newName string, dst *memNode) error {
	switch {
	case dst == nil:
		return syscall.ENOENT
	case dst.dir != nil && n.within(dst):
		return syscall.EINVAL
	}
	n.dir.put(name, dst)
	to.dir.put(newName, src)
	n.moved(src, to)
	to.moved(dst, n)
	n.touch()
	to.touch()
	return nil
}

// moved tells a node that its name went from n to another directory.
func (n *memNode) moved(child, to *memNode) {
	if child.dir != nil {
		child.dir.parent = to
		n.nlink--
		to.nlink++
	}
	child.ctime = now()
}

// within reports whether n is top or lies below it.
func (n *memNode) within(top *memNode) bool {
	for {
		if n == top {
			return true
		}
		if n.dir.parent == n {
			return false
		}
		n = n.dir.parent
	}
}
