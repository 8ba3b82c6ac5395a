package vfs

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"syscall"
)

// xattrRefused says which attributes a file system in memory does not keep: access
// control lists, which the guest's kernel would have to enforce, and file
// capabilities, which would have to be dropped at each write.
func xattrRefused(name string) bool {
	return strings.HasPrefix(name, "system.") || name == "security.capability"
}

func (n *memNode) GetXattr(_ context.Context, name string) ([]byte, error) {
	if xattrRefused(name) {
		return nil, syscall.ENOTSUP
	}
	n.m.mu.RLock()
	defer n.m.mu.RUnlock()
	v, ok := n.xattrs[name]
	if !ok {
		return nil, syscall.ENODATA
	}
	return v, nil
}

// maxXattrs is the number of attributes one node may have.
const maxXattrs = 256

func (n *memNode) SetXattr(_ context.Context, name string, value []byte, flags int) error {
	switch {
	case xattrRefused(name):
		return syscall.ENOTSUP
	case len(value) > MaxXattr:
		return syscall.E2BIG
	}
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	old, had := n.xattrs[name]
	switch {
	case n.gone:
		return syscall.ESTALE
	case had && flags&XattrCreate != 0:
		return syscall.EEXIST
	case !had && flags&XattrReplace != 0:
		return syscall.ENODATA
	case !had && len(n.xattrs) >= maxXattrs:
		return syscall.ENOSPC
	}
	cost := int64(len(value) - len(old))
	if !had {
		cost += int64(memXattrCost + len(name))
	}
	if err := n.m.charge(cost); err != nil {
		return err
	}
	if n.xattrs == nil {
		n.xattrs = map[string][]byte{}
	}
	n.xattrs[name] = bytes.Clone(value)
	n.ctime = now()
	return nil
}

func (n *memNode) ListXattr(context.Context) ([]string, error) {
	n.m.mu.RLock()
	defer n.m.mu.RUnlock()
	names := make([]string, 0, len(n.xattrs))
	for name := range n.xattrs {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

func (n *memNode) RemoveXattr(_ context.Context, name string) error {
	if xattrRefused(name) {
		return syscall.ENOTSUP
	}
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	v, ok := n.xattrs[name]
	if !ok {
		return syscall.ENODATA
	}
	_ = n.m.charge(-int64(memXattrCost + len(name) + len(v)))
	delete(n.xattrs, name)
	n.ctime = now()
	return nil
}
