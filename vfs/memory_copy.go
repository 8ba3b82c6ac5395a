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
	for len(c.todo) > 0 {
		last := len(c.todo) - 1
		dir := c.todo[last]
		c.todo = c.todo[:last]
		c.entries(dir)
	}
	return copied, true
}

// copier copies a tree; made keeps files with several names one, and todo are directories whose
// entries are not copied yet: a guest makes them as deep as it likes.
type copier struct {
	m    *memory
	made map[*memNode]*memNode
	todo []*memNode
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
	made.data = memData{size: n.data.size, bytes: n.data.bytes, most: len(n.data.chunks)}
	if n.data.chunks != nil {
		made.data.chunks = map[int64][]byte{}
		for i, chunk := range n.data.chunks {
			made.data.chunks[i] = append(make([]byte, 0, cap(chunk)), chunk...)
		}
	}
	c.m.used += n.data.bytes + int64(len(n.data.chunks))*memChunkCost
	if n.dir != nil {
		made.dir = &memDir{names: maps.Clone(n.dir.names), gaps: n.dir.gaps, last: n.dir.last}
		c.todo = append(c.todo, n)
	}
	return made
}

// entries copies what is in a directory.
func (c *copier) entries(n *memNode) {
	made := c.made[n]
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
