package vfs

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"syscall"
)

// upperBit marks positions in a listing that belong to the upper provider. The host's cookies
// are non-negative numbers of 64 bits.
const upperBit = 1 << 63

// entries lists a directory without its hidden entries, then the guest's own ones of the upper provider.
func (s *shadow) entries(ctx context.Context, d *layerDir, pos uint64, most int) ([]DirEntry, error) {
	dir, ok := s.fs.pathOf(d.node, "")
	if !ok {
		return nil, nil // the directory is gone
	}
	for pos&upperBit == 0 {
		list, err := d.inner.Entries(ctx, pos, most)
		if err != nil {
			return nil, err
		}
		if len(list) == 0 {
			pos = upperBit
			break
		}
		pos = list[len(list)-1].Next
		if list = s.visible(ctx, dir, list); len(list) > 0 {
			return list, nil
		}
	}
	return s.upperEntries(ctx, d.node, dir, pos&^upperBit, most)
}

// visible drops hidden entries and remembers what they are.
func (s *shadow) visible(ctx context.Context, dir string, list []DirEntry) []DirEntry {
	kept := list[:0]
	for _, e := range list {
		path := joinPath(dir, e.Name)
		if s.rules.judge(path).final != nil {
			if e.Type == 0 {
				s.known.learn(e.Ino, path)
			}
			continue
		}
		if rule, _ := s.known.find(ctx, e.Ino); rule == nil {
			kept = append(kept, e)
		}
	}
	return kept
}

func (s *shadow) upperEntries(ctx context.Context, n *layerNode, dir string, pos uint64, most int) ([]DirEntry, error) {
	if s.o.Upper == nil {
		return nil, nil
	}
	c := &opCall{Op: Op{Kind: OpReadDir}}
	defer func() { releaseAll(c.cleanup) }()
	up, err := s.upperDir(ctx, n, c, false)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	open, err := up.OpenDir(ctx)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	defer open.Close()
	for {
		list, err := open.Entries(ctx, pos, most)
		if err != nil || len(list) == 0 {
			return nil, err
		}
		pos = list[len(list)-1].Next
		kept := list[:0]
		for _, e := range list {
			// The others are directories on the way to hidden names.
			if s.rules.judge(joinPath(dir, e.Name)).final != nil {
				e.Ino, e.Next = ^e.Ino, e.Next|upperBit
				kept = append(kept, e)
			}
		}
		if len(kept) > 0 {
			return kept, nil
		}
	}
}

// upperDir returns the upper provider's counterpart of a directory, made if need be. What
// it looked up is released with the call.
func (s *shadow) upperDir(ctx context.Context, n *layerNode, c *opCall, create bool) (Node, error) {
	path, ok := s.fs.pathOf(n, "")
	if !ok {
		return nil, syscall.ESTALE
	}
	return s.upperAt(ctx, path, c, create)
}

func (s *shadow) upperAt(ctx context.Context, path string, c *opCall, create bool) (Node, error) {
	at := s.o.Upper
	if path == "" {
		return at, nil
	}
	for name := range strings.SplitSeq(path, "/") {
		next, err := at.Lookup(ctx, name)
		if create && errors.Is(err, syscall.ENOENT) {
			if next, err = at.Mkdir(ctx, name, 0o755); errors.Is(err, syscall.EEXIST) {
				next, err = at.Lookup(ctx, name)
			}
		}
		if err != nil {
			return nil, err
		}
		c.cleanup = append(c.cleanup, next)
		at = next
	}
	return at, nil
}

// upperHolds reports whether the guest has files of its own below a directory.
func (s *shadow) upperHolds(ctx context.Context, path string) (bool, error) {
	if s.o.Upper == nil || s.rules.judge(path).final != nil {
		return false, nil
	}
	c := &opCall{}
	defer func() { releaseAll(c.cleanup) }()
	n, err := s.upperAt(ctx, path, c, false)
	if err != nil {
		return false, ignoreMissing(err)
	}
	dir, err := n.OpenDir(ctx)
	if err != nil {
		return false, ignoreMissing(err)
	}
	defer dir.Close()
	list, err := dir.Entries(ctx, 0, 64)
	for _, e := range list {
		below := joinPath(path, e.Name)
		if s.rules.judge(below).final != nil {
			return true, nil
		}
		if e.Type == fs.ModeDir {
			// Only left behind where its counterpart was removed, which needs it to be empty.
			if holds, err := s.upperHolds(ctx, below); holds || err != nil {
				return holds, err
			}
		}
	}
	return false, err
}

// renamed moves the guest's own files along with a directory that was renamed.
func (s *shadow) renamed(ctx context.Context, c *opCall) error {
	if s.o.Upper == nil {
		return nil
	}
	from, err := s.upperAt(ctx, parentOf(c.Path), c, c.Flags&RenameExchange != 0)
	if err != nil {
		return ignoreMissing(err)
	}
	if c.Flags&RenameExchange == 0 {
		if child, err := from.Lookup(ctx, c.name); err != nil {
			return ignoreMissing(err)
		} else {
			c.cleanup = append(c.cleanup, child)
		}
	}
	to, err := s.upperAt(ctx, parentOf(c.NewPath), c, true)
	if err != nil {
		return err
	}
	if c.Flags&RenameExchange == 0 {
		return from.Rename(ctx, c.name, to, c.toName, 0)
	}
	for _, side := range []struct {
		dir  Node
		name string
	}{{from, c.name}, {to, c.toName}} {
		made, err := side.dir.Mkdir(ctx, side.name, 0o755)
		if err == nil {
			made.Release()
		} else if !errors.Is(err, syscall.EEXIST) {
			return err
		}
	}
	return from.Rename(ctx, c.name, to, c.toName, RenameExchange)
}

// removed drops the empty counterpart of a directory that was removed.
func (s *shadow) removed(ctx context.Context, path string) error {
	if s.o.Upper == nil {
		return nil
	}
	c := &opCall{}
	defer func() { releaseAll(c.cleanup) }()
	dir, err := s.upperAt(ctx, parentOf(path), c, false)
	if err != nil {
		return ignoreMissing(err)
	}
	name := path[strings.LastIndexByte(path, '/')+1:]
	if err := dir.Rmdir(ctx, name); !errors.Is(err, syscall.ENOTEMPTY) {
		return ignoreMissing(err)
	}
	return nil // only empty directories below: harmless
}

func parentOf(path string) string { return path[:max(0, strings.LastIndexByte(path, '/'))] }

func ignoreMissing(err error) error {
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	return err
}

func releaseAll(list []Node) {
	for _, n := range list {
		n.Release()
	}
}
