package vfs

import (
	"context"
	"math"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// openFlags are the flags of open(2) that a File may get. O_DIRECT among others
// stays in the guest: it speaks of the guest's page cache.
const openFlags = syscall.O_ACCMODE | syscall.O_APPEND | syscall.O_TRUNC | syscall.O_SYNC | syscall.O_DSYNC

// opened makes the handle of an open file and its reply.
func (r *raw) opened(ctx context.Context, e *entry, f File, flags int, out *fuse.OpenOut, made bool) error {
	h := &handle{e: e, file: f, flags: flags}
	if err := r.t.open(h); err != nil {
		_ = f.Close()
		return err
	}
	out.Fh = h.id
	if flags&syscall.O_ACCMODE == syscall.O_RDONLY || !e.mount.Flush {
		out.OpenFlags |= fuse.FOPEN_NOFLUSH // nothing to report at close(2)
	}
	// What the kernel has cached of the file stays if it is what the file holds. For
	// the time after this the kernel compares attributes (CAP_AUTO_INVAL_DATA).
	if made {
		out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
	} else if a, err := f.Attr(ctx); err == nil && r.t.fresh(e, a) {
		out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
	}
	return nil
}

func (r *raw) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	e, err := r.t.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer r.t.done(e)
	if e.kind.IsDir() {
		return fuse.EISDIR
	}
	if !e.kind.IsRegular() {
		return fuse.Status(syscall.ENXIO) // the kernel opens pipes and sockets itself
	}
	if err := r.t.room(false); err != nil {
		return status(err)
	}
	ctx := r.call(&in.InHeader)
	flags := int(in.Flags) & openFlags
	f, err := e.node.Open(ctx, flags)
	if err != nil {
		return status(err)
	}
	if in.Mode&fuse.OPEN_KILL_SUIDGID != 0 {
		stripSetuid(ctx, f)
	}
	return status(r.opened(ctx, e, f, flags, out, false))
}

func (r *raw) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	dir, err := r.t.useDir(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer r.t.done(dir)
	if err := r.t.room(false); err != nil {
		return status(err)
	}
	ctx := r.call(&in.InHeader)
	flags := int(in.Flags) & openFlags
	n, f, err := dir.node.Create(ctx, name, flags|int(in.Flags)&syscall.O_EXCL, goMode(in.Mode)&changeable)
	if err != nil {
		return status(err)
	}
	r.touched(ctx, dir)
	e, err := r.enter(ctx, dir.mount, n, false, hint{dir.id, name}, &out.EntryOut)
	if err != nil {
		_ = f.Close()
		return status(err)
	}
	defer r.t.done(e)
	if err := r.opened(ctx, e, f, flags, &out.OpenOut, true); err != nil {
		r.t.forget(e.id, 1) // the reply that would tell of the lookup fails
		return status(err)
	}
	return fuse.OK
}

// stripSetuid does what the kernel leaves to us since CAP_HANDLE_KILLPRIV_V2.
func stripSetuid(ctx context.Context, f File) {
	a, err := f.Attr(ctx)
	if err != nil {
		return
	}
	if m := killed(a.Mode); m != nil {
		_, _ = f.SetAttr(ctx, Change{Mode: m})
	}
}

// inPlace is a read's result that stands where the reply wants it.
type inPlace []byte

func (p inPlace) Bytes([]byte) ([]byte, fuse.Status) { return p, fuse.OK }
func (p inPlace) Size() int                          { return len(p) }
func (p inPlace) Done()                              {}

// Readv spares go-fuse the copy: dst is the memory that was read into.
func (p inPlace) Readv(dst [][]byte) (int, fuse.Status) {
	if len(p) == 0 || len(dst) == 1 && len(dst[0]) >= len(p) && &dst[0][0] == &p[0] {
		return len(p), fuse.OK
	}
	n := 0
	for _, d := range dst {
		n += copy(d, p[n:])
	}
	return n, fuse.OK
}

func (r *raw) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h, err := r.t.useHandle(in.NodeId, in.Fh, false)
	if err != nil {
		return nil, status(err)
	}
	defer r.t.doneHandle(h)
	if in.Offset > math.MaxInt64-uint64(len(buf)) {
		return nil, fuse.EINVAL
	}
	n, err := h.file.ReadAt(r.call(&in.InHeader), buf, int64(in.Offset))
	if err != nil {
		return nil, status(err)
	}
	return inPlace(buf[:min(max(n, 0), len(buf))]), fuse.OK
}

func (r *raw) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h, err := r.t.useHandle(in.NodeId, in.Fh, false)
	if err != nil {
		return 0, status(err)
	}
	defer r.t.doneHandle(h)
	if in.Offset > math.MaxInt64-uint64(len(data)) {
		return 0, fuse.Status(syscall.EFBIG)
	}
	ctx := r.call(&in.InHeader)
	n, err := h.file.WriteAt(ctx, data, int64(in.Offset))
	if err != nil {
		return 0, status(err)
	}
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		stripSetuid(ctx, h.file)
	}
	if a, err := h.file.Attr(ctx); err == nil {
		r.t.saw(h.e, a) // the kernel has these bytes, and asks for the attributes anew
		r.note(ctx, h.e, a)
	}
	return uint32(min(max(n, 0), len(data))), fuse.OK
}

// Lengths of one copy_file_range request: how much is done before the guest gets
// an answer, so that it can be interrupted, and the buffer.
const (
	copyMost   = 16 << 20
	copyBuffer = 1 << 20
)

// CopyFileRange copies between files without the data travelling to the guest.
func (r *raw) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	if in.Flags != 0 || in.OffIn > math.MaxInt64-copyMost || in.OffOut > math.MaxInt64-copyMost {
		return 0, fuse.EINVAL
	}
	src, err := r.t.useHandle(in.NodeId, in.FhIn, false)
	if err != nil {
		return 0, status(err)
	}
	defer r.t.doneHandle(src)
	dst, err := r.t.useHandle(in.NodeIdOut, in.FhOut, false)
	if err != nil {
		return 0, status(err)
	}
	defer r.t.doneHandle(dst)
	var buf []byte
	select {
	case buf = <-r.copies:
	default:
		buf = make([]byte, copyBuffer)
	}
	defer func() {
		select {
		case r.copies <- buf:
		default:
		}
	}()
	ctx := r.call(&in.InHeader)
	want, done := int(min(in.Len, copyMost)), 0
	for done < want && ctx.Err() == nil {
		part := buf[:min(len(buf), want-done)]
		n, err := src.file.ReadAt(ctx, part, int64(in.OffIn)+int64(done))
		wrote := 0
		if err == nil && n > 0 {
			wrote, err = dst.file.WriteAt(ctx, part[:n], int64(in.OffOut)+int64(done))
		}
		done += wrote
		if err != nil && done == 0 {
			return 0, status(err)
		}
		if err != nil || n < len(part) {
			break
		}
	}
	return uint32(done), fuse.OK
}

func (r *raw) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h, err := r.t.useHandle(in.NodeId, in.Fh, false)
	if err != nil {
		return status(err)
	}
	defer r.t.doneHandle(h)
	if in.Whence != SeekData && in.Whence != SeekHole || in.Offset > math.MaxInt64 {
		return fuse.EINVAL
	}
	at, err := h.file.Seek(r.call(&in.InHeader), int64(in.Offset), int(in.Whence))
	if err == nil && at < 0 {
		err = syscall.EINVAL
	}
	out.Offset = uint64(at)
	return status(err)
}

func (r *raw) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h, err := r.t.useHandle(in.NodeId, in.Fh, false)
	if err != nil {
		return status(err)
	}
	defer r.t.doneHandle(h)
	if in.Length == 0 || in.Offset > math.MaxInt64 || in.Length > math.MaxInt64-in.Offset {
		return fuse.EINVAL
	}
	return status(h.file.Allocate(r.call(&in.InHeader), in.Mode, int64(in.Offset), int64(in.Length)))
}

func (r *raw) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	h, err := r.t.useHandle(in.NodeId, in.Fh, false)
	if err != nil {
		return status(err)
	}
	defer r.t.doneHandle(h)
	return status(h.file.Flush(r.call(&in.InHeader)))
}

func (r *raw) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h, err := r.t.useHandle(in.NodeId, in.Fh, false)
	if err != nil {
		return status(err)
	}
	defer r.t.doneHandle(h)
	return status(h.file.Sync(r.call(&in.InHeader), in.FsyncFlags&1 != 0))
}

func (r *raw) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	r.t.release(in.NodeId, in.Fh, false)
}
