package vfs

import (
	"bytes"
	"maps"
)

// CopyMemory returns a provider of its own with what a root of NewMemory holds now, or false if it
// is no such root. What is open without a name is not in it.
func CopyMemory(root Node) (Node, bool) {
	n, ok := root.(*memNode)
	if !ok || n.dir == nil || n.dir.parent != n {
		return nil, false
	}
	n.m.mu.RLock()
	defer n.m.mu.RUnlock()
	c := copier{m: &memory{opts: n.m.opts, nextIno: n.m.nextIno}, made: map[*memNode]*memNode{}}
	copied := c.node(n)
	copied.dir.parent = copied
	return copied, true
}

// copier copies a tree; made keeps files with several names one.
type copier struct {
	m    *memory
	made map[*memNode]*memNode
}

func (c *copier) node(n *memNode) *memNode {
	if old := c.made[n]; old != nil {
		return old
	}
	made := &memNode{
		m: c.m, ino: n.ino, mode: n.mode, uid: n.uid, gid: n.gid, nlink: n.nlink,
		atime: n.atime, mtime: n.mtime, ctime: n.ctime, target: n.target,
	}
	c.made[n] = made
	c.m.files++
	c.m.used += int64(memNodeCost + len(n.target))
	if n.xattrs != nil {
		made.xattrs = map[string][]byte{}
		for k, v := range n.xattrs {
			made.xattrs[k] = bytes.Clone(v)
			c.m.used += int64(memXattrCost + len(k) + len(v))
		}
	}
	made.data = memData{size: n.data.size, bytes: n.data.bytes}
	if n.data.chunks != nil {
		made.data.chunks = map[int64][]byte{}
		for i, chunk := range n.data.chunks {
			made.data.chunks[i] = append(make([]byte, 0, cap(chunk)), chunk...)
		}
	}
	c.m.used += n.data.bytes
	if n.dir != nil {
		made.dir = &memDir{names: maps.Clone(n.dir.names), gaps: n.dir.gaps, last: n.dir.last}
		for _, e := range n.dir.entries {
			if e.node != nil {
				c.m.used += int64(memEntryCost + len(e.name))
				e.node = c.node(e.node)
				if e.node.dir != nil {
					e.node.dir.parent = made
				}
			}
			made.dir.entries = append(made.dir.entries, e)
		}
	}
	return made
}
