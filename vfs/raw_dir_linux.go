package vfs

import (
	"context"
	"io/fs"
	"math"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

func (r *raw) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return r.make(&in.InHeader, name, out, func(ctx context.Context, dir Node) (Node, error) {
		return dir.Mkdir(ctx, name, goMode(in.Mode)&changeable)
	})
}

func (r *raw) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	mode := goMode(in.Mode)
	switch mode.Type() {
	case 0, fs.ModeNamedPipe, fs.ModeSocket:
	default:
		return fuse.EPERM
	}
	return r.make(&in.InHeader, name, out, func(ctx context.Context, dir Node) (Node, error) {
		return dir.Mknod(ctx, name, mode)
	})
}

func (r *raw) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return r.make(in, name, out, func(ctx context.Context, dir Node) (Node, error) {
		return dir.Symlink(ctx, name, target)
	})
}

func (r *raw) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	target, err := r.t.use(in.Oldnodeid)
	if err != nil {
		return status(err)
	}
	defer r.t.done(target)
	dir, err := r.t.useDir(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer r.t.done(dir)
	if dir.mount != target.mount {
		return fuse.EXDEV
	}
	return r.make(&in.InHeader, name, out, func(ctx context.Context, dir Node) (Node, error) {
		return dir.Link(ctx, name, target.node)
	})
}

// make runs an operation that makes a name, and answers with what it made.
func (r *raw) make(in *fuse.InHeader, name string, out *fuse.EntryOut, op func(context.Context, Node) (Node, error)) fuse.Status {
	dir, err := r.t.useDir(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer r.t.done(dir)
	ctx := r.call(in)
	n, err := op(ctx, dir.node)
	if err != nil {
		return status(err)
	}
	r.touched(ctx, dir)
	e, err := r.enter(ctx, dir.mount, n, false, hint{dir.id, name}, out)
	if err != nil {
		return status(err)
	}
	r.t.done(e)
	return fuse.OK
}

// touched notes that dir has changed by the guest's own request. Its kernel knows that
// it does not know the attributes any more, so they are no news to it.
func (r *raw) touched(ctx context.Context, dir *entry) {
	if a, err := dir.node.Attr(ctx); err == nil {
		r.t.saw(dir, a)
		r.note(ctx, dir, a)
	}
}

// removed is touched for a name that is gone.
func (r *raw) removed(ctx context.Context, dir *entry, name string, err error) fuse.Status {
	if err == nil {
		r.t.unnamed(hint{dir.id, name})
		r.touched(ctx, dir)
	}
	return status(err)
}

func (r *raw) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	dir, err := r.t.useDir(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer r.t.done(dir)
	ctx := r.call(in)
	return r.removed(ctx, dir, name, dir.node.Unlink(ctx, name))
}

func (r *raw) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	dir, err := r.t.useDir(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer r.t.done(dir)
	ctx := r.call(in)
	return r.removed(ctx, dir, name, dir.node.Rmdir(ctx, name))
}

func (r *raw) Rename(_ <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	if in.Flags != 0 && in.Flags != RenameNoReplace && in.Flags != RenameExchange {
		return fuse.EINVAL
	}
	dir, err := r.t.useDir(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer r.t.done(dir)
	to, err := r.t.useDir(in.Newdir)
	if err != nil {
		return status(err)
	}
	defer r.t.done(to)
	if dir.mount != to.mount {
		return fuse.EXDEV
	}
	ctx := r.call(&in.InHeader)
	if err := dir.node.Rename(ctx, name, to.node, newName, in.Flags); err != nil {
		return status(err)
	}
	r.t.renamed(hint{dir.id, name}, hint{to.id, newName}, in.Flags == RenameExchange)
	r.touched(ctx, dir)
	r.touched(ctx, to)
	return fuse.OK
}

// openDir is an open directory with the entries that were read of it and did not
// fit into the last reply.
type openDir struct {
	d Dir

	mu    sync.Mutex
	rest  []DirEntry
	at    uint64 // the position of rest[0]
	stash uint64 // the provider's position that lastOffset stands for
}

// Offsets as the kernel has them: 0 is before ".", dotOffset before "..", and
// dotsOffset more than the provider's position otherwise. Positions can use all 63 bits
// (that at the end of an ext4 directory does): those that are too large are
// lastOffset, which one directory needs once, at its end.
const (
	dotOffset  = 1
	dotsOffset = 2
	lastOffset = math.MaxInt64
)

func (o *openDir) offset(pos uint64) uint64 {
	if pos >= lastOffset-dotsOffset {
		o.stash = pos
		return lastOffset
	}
	return pos + dotsOffset
}

func (o *openDir) position(offset uint64) uint64 {
	if offset >= lastOffset {
		return o.stash
	}
	return offset - dotsOffset
}

// batch is how many entries are asked of a provider at a time: what one page, the
// size of a request on most kernels, holds of short names.
const batch = 128

// next returns the entries from pos on.
func (o *openDir) next(ctx context.Context, pos uint64, most int) ([]DirEntry, error) {
	if len(o.rest) > 0 && o.at == pos && pos != 0 {
		return o.rest, nil
	}
	list, err := o.d.Entries(ctx, pos, most)
	if err != nil {
		return nil, err
	}
	return list[:min(len(list), most)], nil
}

func (r *raw) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	e, err := r.t.useDir(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer r.t.done(e)
	if err := r.t.room(true); err != nil {
		return status(err)
	}
	d, err := e.node.OpenDir(r.call(&in.InHeader))
	if err != nil {
		return status(err)
	}
	h := &handle{e: e, dir: &openDir{d: d}}
	if err := r.t.open(h); err != nil {
		_ = d.Close()
		return status(err)
	}
	out.Fh = h.id
	return fuse.OK
}

func (r *raw) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return r.readDir(in, func(_ context.Context, _ *entry, d fuse.DirEntry) bool { return out.AddDirEntry(d) }, 24)
}

func (r *raw) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return r.readDir(in, func(ctx context.Context, dir *entry, d fuse.DirEntry) bool {
		o := out.AddDirLookupEntry(d)
		if o == nil {
			return false
		}
		if d.Name == "." || d.Name == ".." {
			return true
		}
		// An entry without a node is one that the kernel has to look up when it needs it.
		m, n, pinned, err := r.child(ctx, dir, d.Name)
		if err != nil {
			return true
		}
		if e, err := r.enter(ctx, m, n, pinned, hint{dir.id, d.Name}, o); err == nil {
			out.FixMode(o.Mode)
			r.t.done(e)
		}
		return true
	}, 24+128)
}

// readDir gives entries to add until it takes no more. size is what an entry takes
// besides its name.
func (r *raw) readDir(in *fuse.ReadIn, add func(context.Context, *entry, fuse.DirEntry) bool, size int) fuse.Status {
	h, err := r.t.useHandle(in.NodeId, in.Fh, true)
	if err != nil {
		return status(err)
	}
	defer r.t.doneHandle(h)
	dir, err := r.t.useDir(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer r.t.done(dir)
	o := h.dir
	o.mu.Lock()
	defer o.mu.Unlock()
	ctx := r.call(&in.InHeader)
	self := guestIno(dir.mountIndex(), dir.ino)
	offset := in.Offset
	for _, dot := range []fuse.DirEntry{
		{Name: ".", Off: dotOffset, Ino: self, Mode: syscall.S_IFDIR},
		{Name: "..", Off: dotsOffset, Ino: self, Mode: syscall.S_IFDIR},
	} {
		if offset == dot.Off-1 {
			if !add(ctx, dir, dot) {
				return fuse.OK
			}
			offset = dot.Off
		}
	}
	pos, added := o.position(offset), 0
	for {
		most := min(batch, int(in.Size)/(size+8)+1)
		list, err := o.next(ctx, pos, most)
		if err != nil {
			o.rest = nil
			if added > 0 {
				return fuse.OK // the next request finds the error again
			}
			return status(err)
		}
		if len(list) == 0 {
			o.rest = nil
			return fuse.OK
		}
		for i, d := range list {
			if !validName([]byte(d.Name)) {
				pos = d.Next
				continue
			}
			ok := add(ctx, dir, fuse.DirEntry{
				Name: d.Name, Off: o.offset(d.Next), Mode: linuxMode(d.Type),
				Ino: guestIno(r.entryMount(dir, d.Name), d.Ino),
			})
			if !ok {
				o.rest, o.at = list[i:], pos
				return fuse.OK
			}
			pos = d.Next
			added++
		}
		o.rest = nil
	}
}

// entryMount is the mount that an entry of dir belongs to.
func (r *raw) entryMount(dir *entry, name string) uint64 {
	if dir.mount != nil {
		return dir.mount.index
	}
	for _, m := range r.s.mounts {
		if m.Name == name {
			return m.index
		}
	}
	return 0
}

func (r *raw) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h, err := r.t.useHandle(in.NodeId, in.Fh, true)
	if err != nil {
		return status(err)
	}
	defer r.t.doneHandle(h)
	return status(h.dir.d.Sync(r.call(&in.InHeader)))
}

func (r *raw) ReleaseDir(in *fuse.ReleaseIn) { r.t.release(in.NodeId, in.Fh, true) }
