package vfs

import (
	"slices"
	"strings"
	"sync"
)

// pathTable knows where the nodes that a server holds are found, by Attr.Ino. It holds a node's
// directory by number, not by reference: a kernel keeps the directories of all that it knows, and a
// guest that pretends otherwise loses paths instead of filling the host's memory.
type pathTable struct {
	mu      sync.Mutex
	entries map[uint64]*pathEntry
}

type pathEntry struct {
	refs   int
	dir    uint64
	atRoot bool // dir is the mount's root
	name   string
}

func newPathTable() *pathTable { return &pathTable{entries: map[uint64]*pathEntry{}} }

// add notes a place of a node and holds it until drop.
func (t *pathTable) add(ino, dir uint64, atRoot bool, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[ino]
	if e == nil {
		e = &pathEntry{}
		t.entries[ino] = e
	}
	e.refs++
	e.dir, e.atRoot, e.name = dir, atRoot, name
}

// hold holds a node that is held already once more.
func (t *pathTable) hold(ino uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.entries[ino]; e != nil {
		e.refs++
	}
}

// move notes a new place of a node, if it is held.
func (t *pathTable) move(ino, dir uint64, atRoot bool, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.entries[ino]; e != nil {
		e.dir, e.atRoot, e.name = dir, atRoot, name
	}
}

func (t *pathTable) drop(ino uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.entries[ino]; e != nil {
		if e.refs--; e.refs == 0 {
			delete(t.entries, ino)
		}
	}
}

// maxDepth bounds the directories above a file, as PATH_MAX does.
const maxDepth = 2048

// path returns the path from the mount's root, false if it cannot be told.
func (t *pathTable) path(ino uint64) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var names []string
	for range maxDepth {
		e := t.entries[ino]
		if e == nil {
			break
		}
		names = append(names, e.name)
		if e.atRoot {
			slices.Reverse(names)
			return strings.Join(names, "/"), true
		}
		ino = e.dir
	}
	slices.Reverse(names)
	return "(unreachable)/" + strings.Join(names[:min(1, len(names))], "/"), false
}
