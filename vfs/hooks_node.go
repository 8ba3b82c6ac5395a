package vfs

import (
	"context"
	"io/fs"
)

var (
	_ Node    = (*layerNode)(nil)
	_ File    = (*layerFile)(nil)
	_ Dir     = (*layerDir)(nil)
	_ Watcher = (*layerWatcher)(nil)
)

// layerNode is a wrapped Node.
type layerNode struct {
	fs    *layerFS
	inner Node
	ino   uint64 // as shown; 0 for the root, which is asked when needed
	root  bool
	upper bool // inner belongs to a Shadow's second provider
}

// shown is the number that the guest sees. Those of a second provider are turned over, which
// keeps two providers that count from 1 apart.
func (n *layerNode) shown(ino uint64) uint64 {
	if n.upper {
		return ^ino
	}
	return ino
}

func (n *layerNode) attr(a Attr, err error) (Attr, error) {
	a.Ino = n.shown(a.Ino)
	return a, err
}

// op runs an operation on the node itself.
func (n *layerNode) op(ctx context.Context, o Op, do func() error) error {
	return n.fs.run(ctx, &opCall{Op: o, n: n}, do)
}

func (n *layerNode) Attr(ctx context.Context) (a Attr, err error) {
	err = n.op(ctx, Op{Kind: OpGetAttr}, func() error { a, err = n.attr(n.inner.Attr(ctx)); return err })
	return a, err
}

func (n *layerNode) SetAttr(ctx context.Context, ch Change) (a Attr, err error) {
	err = n.op(ctx, Op{Kind: OpSetAttr, Change: ch}, func() error {
		a, err = n.attr(n.inner.SetAttr(ctx, ch))
		return err
	})
	return a, err
}

func (n *layerNode) Readlink(ctx context.Context) (target string, err error) {
	err = n.op(ctx, Op{Kind: OpReadlink}, func() error { target, err = n.inner.Readlink(ctx); return err })
	return target, err
}

func (n *layerNode) Open(ctx context.Context, flags int) (file File, err error) {
	err = n.op(ctx, Op{Kind: OpOpen, Flags: flags}, func() error { file, err = n.inner.Open(ctx, flags); return err })
	if err != nil {
		return nil, closing(file, err)
	}
	return n.opened(file, flags), nil
}

// closing gives back a file that a layer refused after it was opened.
func closing(file File, err error) error {
	if file != nil {
		_ = file.Close() // nothing was done with it
	}
	return err
}

// opened wraps an open file of n.
func (n *layerNode) opened(file File, flags int) *layerFile {
	f := &layerFile{node: n, inner: file, flags: flags}
	if r, ok := n.fs.layer.(releaser); ok {
		r.held(n)
	}
	if n.fs.paths != nil && !n.root {
		f.path, _ = n.fs.paths.path(n.ino)
		n.fs.paths.hold(n.ino)
	}
	return f
}

func (n *layerNode) OpenDir(ctx context.Context) (dir Dir, err error) {
	err = n.op(ctx, Op{Kind: OpOpenDir}, func() error { dir, err = n.inner.OpenDir(ctx); return err })
	if err != nil {
		return nil, err
	}
	return &layerDir{node: n, inner: dir}, nil
}

func (n *layerNode) Lookup(ctx context.Context, name string) (Node, error) {
	c := &opCall{Op: Op{Kind: OpLookup}, n: n, name: name}
	return asNode(n.entry(ctx, c, func(c *opCall) (err error) { c.got, err = c.in.Lookup(ctx, name); return err }))
}

func (n *layerNode) Create(ctx context.Context, name string, flags int, mode fs.FileMode) (Node, File, error) {
	c := &opCall{Op: Op{Kind: OpCreate, Flags: flags, Mode: mode}, n: n, name: name}
	var file File
	child, err := n.entry(ctx, c, func(c *opCall) (err error) {
		c.got, file, err = c.in.Create(ctx, name, flags, mode)
		return err
	})
	if err != nil {
		return nil, nil, closing(file, err)
	}
	return child, child.opened(file, flags), nil
}

func (n *layerNode) Mkdir(ctx context.Context, name string, mode fs.FileMode) (Node, error) {
	c := &opCall{Op: Op{Kind: OpMkdir, Mode: mode}, n: n, name: name}
	return asNode(n.entry(ctx, c, func(c *opCall) (err error) { c.got, err = c.in.Mkdir(ctx, name, mode); return err }))
}

func (n *layerNode) Mknod(ctx context.Context, name string, mode fs.FileMode) (Node, error) {
	c := &opCall{Op: Op{Kind: OpMknod, Mode: mode}, n: n, name: name}
	return asNode(n.entry(ctx, c, func(c *opCall) (err error) { c.got, err = c.in.Mknod(ctx, name, mode); return err }))
}

func (n *layerNode) Symlink(ctx context.Context, name, target string) (Node, error) {
	c := &opCall{Op: Op{Kind: OpSymlink, Target: target}, n: n, name: name}
	return asNode(n.entry(ctx, c, func(c *opCall) (err error) { c.got, err = c.in.Symlink(ctx, name, target); return err }))
}

func (n *layerNode) Link(ctx context.Context, name string, target Node) (Node, error) {
	t := n.fs.mine(target)
	if t == nil {
		return nil, errForeign
	}
	c := &opCall{Op: Op{Kind: OpLink}, n: n, to: n, toName: name, target: t}
	return asNode(n.entry(ctx, c, func(c *opCall) (err error) {
		if c.upper != t.upper {
			return errForeign
		}
		c.got, err = c.toIn.Link(ctx, name, t.inner)
		return err
	}))
}

func (n *layerNode) Unlink(ctx context.Context, name string) error {
	c := &opCall{Op: Op{Kind: OpUnlink}, n: n, name: name}
	return n.fs.run(ctx, c, func() error { return c.in.Unlink(ctx, name) })
}

func (n *layerNode) Rmdir(ctx context.Context, name string) error {
	c := &opCall{Op: Op{Kind: OpRmdir}, n: n, name: name}
	return n.fs.run(ctx, c, func() error { return c.in.Rmdir(ctx, name) })
}

func (n *layerNode) Rename(ctx context.Context, name string, newDir Node, newName string, flags uint32) error {
	to := n.fs.mine(newDir)
	if to == nil {
		return errForeign
	}
	c := &opCall{Op: Op{Kind: OpRename, Flags: int(flags)}, n: n, name: name, to: to, toName: newName}
	return n.fs.run(ctx, c, func() error {
		if err := c.in.Rename(ctx, name, c.toIn, newName, flags); err != nil {
			return err
		}
		n.fs.moved(ctx, c.toIn, c.upper, to, newName)
		if flags&RenameExchange != 0 {
			n.fs.moved(ctx, c.in, c.upper, n, name)
		}
		return nil
	})
}

func (n *layerNode) GetXattr(ctx context.Context, name string) (value []byte, err error) {
	err = n.op(ctx, Op{Kind: OpGetXattr, Name: name}, func() error { value, err = n.inner.GetXattr(ctx, name); return err })
	return value, err
}

func (n *layerNode) SetXattr(ctx context.Context, name string, value []byte, flags int) error {
	o := Op{Kind: OpSetXattr, Name: name, Flags: flags, Bytes: int64(len(value))}
	return n.op(ctx, o, func() error { return n.inner.SetXattr(ctx, name, value, flags) })
}

func (n *layerNode) ListXattr(ctx context.Context) (names []string, err error) {
	err = n.op(ctx, Op{Kind: OpListXattr}, func() error { names, err = n.inner.ListXattr(ctx); return err })
	return names, err
}

func (n *layerNode) RemoveXattr(ctx context.Context, name string) error {
	return n.op(ctx, Op{Kind: OpRemoveXattr, Name: name}, func() error { return n.inner.RemoveXattr(ctx, name) })
}

func (n *layerNode) StatFS(ctx context.Context) (st StatFS, err error) {
	err = n.op(ctx, Op{Kind: OpStatFS}, func() error { st, err = n.inner.StatFS(ctx); return err })
	if q, ok := n.fs.layer.(interface{ statFS(StatFS) StatFS }); ok && err == nil {
		st = q.statFS(st)
	}
	return st, err
}

func (n *layerNode) Release() {
	if n.root {
		return // the provider's root is its owner's
	}
	if r, ok := n.fs.layer.(releaser); ok {
		r.released(n)
	}
	n.inner.Release()
	if n.fs.paths != nil {
		n.fs.paths.drop(n.ino)
	}
}

// releaser is a layer that keeps count of the nodes and open files that the server holds.
type releaser interface {
	held(n *layerNode)
	released(n *layerNode)
}

// asNode keeps a typed nil pointer out of a Node.
func asNode(n *layerNode, err error) (Node, error) {
	if err != nil {
		return nil, err
	}
	return n, nil
}
