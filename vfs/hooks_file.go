package vfs

import "context"

// layerFile is an open file of a wrapped node.
type layerFile struct {
	node  *layerNode
	inner File
	path  string // when it was opened
	flags int
}

// op runs an operation on the open file.
func (f *layerFile) op(ctx context.Context, o Op, do func() error) error {
	return f.node.fs.run(ctx, &opCall{Op: o, n: f.node, file: f}, do)
}

func (f *layerFile) ReadAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	err = f.op(ctx, Op{Kind: OpRead, Off: off, Bytes: int64(len(p))}, func() error {
		n, err = f.inner.ReadAt(ctx, p, off)
		return err
	})
	return n, err
}

func (f *layerFile) WriteAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	err = f.op(ctx, Op{Kind: OpWrite, Off: off, Bytes: int64(len(p))}, func() error {
		n, err = f.inner.WriteAt(ctx, p, off)
		return err
	})
	return n, err
}

func (f *layerFile) Attr(ctx context.Context) (a Attr, err error) {
	err = f.op(ctx, Op{Kind: OpGetAttr}, func() error { a, err = f.node.attr(f.inner.Attr(ctx)); return err })
	return a, err
}

func (f *layerFile) SetAttr(ctx context.Context, ch Change) (a Attr, err error) {
	err = f.op(ctx, Op{Kind: OpSetAttr, Change: ch}, func() error {
		a, err = f.node.attr(f.inner.SetAttr(ctx, ch))
		return err
	})
	return a, err
}

func (f *layerFile) Sync(ctx context.Context, dataOnly bool) error {
	return f.op(ctx, Op{Kind: OpSync}, func() error { return f.inner.Sync(ctx, dataOnly) })
}

func (f *layerFile) Allocate(ctx context.Context, mode uint32, off, size int64) error {
	o := Op{Kind: OpAllocate, Flags: int(mode), Off: off, Bytes: size}
	return f.op(ctx, o, func() error { return f.inner.Allocate(ctx, mode, off, size) })
}

// Seek changes nothing and tells no more than a read: no layer is asked.
func (f *layerFile) Seek(ctx context.Context, off int64, whence int) (int64, error) {
	return f.inner.Seek(ctx, off, whence)
}

func (f *layerFile) Flush(ctx context.Context) error {
	return f.op(ctx, Op{Kind: OpFlush}, func() error { return f.inner.Flush(ctx) })
}

func (f *layerFile) Close() error {
	// The layer first: once the file is closed its number can be another's.
	if r, ok := f.node.fs.layer.(releaser); ok {
		r.released(f.node)
	}
	err := f.inner.Close()
	if f.node.fs.paths != nil && !f.node.root {
		f.node.fs.paths.drop(f.node.ino)
	}
	return err
}

// layerDir is an open directory of a wrapped node.
type layerDir struct {
	node  *layerNode
	inner Dir
}

func (d *layerDir) Entries(ctx context.Context, pos uint64, most int) (list []DirEntry, err error) {
	err = d.node.op(ctx, Op{Kind: OpReadDir}, func() error {
		if l, ok := d.node.fs.layer.(entryFilter); ok && !d.node.upper {
			list, err = l.entries(ctx, d, pos, most)
			return err
		}
		list, err = d.inner.Entries(ctx, pos, most)
		for i := range list {
			list[i].Ino = d.node.shown(list[i].Ino)
		}
		return err
	})
	return list, err
}

func (d *layerDir) Sync(ctx context.Context) error { return d.inner.Sync(ctx) }
func (d *layerDir) Close() error                   { return d.inner.Close() }
