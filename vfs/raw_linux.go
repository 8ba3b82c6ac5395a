package vfs

import (
	"context"
	"io/fs"
	"math"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// raw turns FUSE's operations into calls of Nodes, Files and Dirs. Arguments have
// passed check.
type raw struct {
	fuse.RawFileSystem // what is not here fails with ENOSYS, and the kernel does not ask again

	s      *Server
	t      *table
	ctx    context.Context // of Serve
	copies chan []byte     // buffers of CopyFileRange
	notes  notes

	// canceled returns what ends when a request shall end. go-fuse has a channel of its
	// own for that, but no way to end all requests, or one that has not quite begun.
	canceled func(unique uint64) <-chan struct{}
}

func newRaw(ctx context.Context, s *Server, canceled func(uint64) <-chan struct{}) *raw {
	return &raw{
		canceled:      canceled,
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		s:             s, ctx: ctx, t: newTable(&s.opts, routerRoot{mounts: s.mounts, born: time.Now()}),
		copies: make(chan []byte, 2),
	}
}

// call is the context of one request: it ends when the guest's kernel interrupts
// the request or Serve ends.
type call struct {
	context.Context // Serve's, for its values
	cancel          <-chan struct{}
	caller          Caller
	unique          uint64 // the request's number
}

func (r *raw) call(h *fuse.InHeader) context.Context {
	return &call{r.ctx, r.canceled(h.Unique), Caller{UID: h.Uid, GID: h.Gid, PID: h.Pid}, h.Unique}
}

func (c *call) Deadline() (time.Time, bool) { return time.Time{}, false }
func (c *call) Done() <-chan struct{}       { return c.cancel }

func (c *call) Err() error {
	select {
	case <-c.cancel:
		return context.Canceled
	default:
		return nil
	}
}

func (c *call) Value(k any) any {
	if k == (callerKey{}) {
		return c.caller
	}
	return c.Context.Value(k)
}

// status is err as the kernel wants it.
func status(err error) fuse.Status { return fuse.Status(Errno(err)) }

// seconds splits a timeout.
func seconds(d time.Duration) (uint64, uint32) {
	return uint64(d / time.Second), uint32(d % time.Second)
}

// fillEntry makes the reply that hands e to the kernel.
func fillEntry(out *fuse.EntryOut, e *entry, a Attr) {
	out.NodeId, out.Generation = e.id, 1
	timeout := e.mount.attrTimeout(a)
	out.EntryValid, out.EntryValidNsec = seconds(timeout)
	out.AttrValid, out.AttrValidNsec = seconds(timeout)
	fillAttr(&out.Attr, e.mount.index, a)
}

// child returns the Node of name in dir, with whether it is a mount's root.
func (r *raw) child(ctx context.Context, dir *entry, name string) (*mount, Node, bool, error) {
	if dir.mount != nil {
		n, err := dir.node.Lookup(ctx, name)
		return dir.mount, n, false, err
	}
	for _, m := range r.s.mounts {
		if m.Name == name {
			return m, m.Root, true, nil
		}
	}
	return nil, nil, false, syscall.ENOENT
}

// enter puts a Node that a provider returned into the table and answers with it.
func (r *raw) enter(ctx context.Context, m *mount, n Node, pinned bool, h hint, out *fuse.EntryOut) (*entry, error) {
	a, err := n.Attr(ctx)
	if err != nil {
		if !pinned {
			n.Release()
		}
		return nil, err
	}
	e, err := r.t.add(m, n, a, h, pinned)
	if err != nil {
		return nil, err
	}
	fillEntry(out, e, a)
	return e, nil
}

func (r *raw) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, err := r.t.useDir(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer r.t.done(dir)
	ctx := r.call(in)
	m, n, pinned, err := r.child(ctx, dir, name)
	if err != nil {
		if Errno(err) == syscall.ENOENT && dir.mount != nil && dir.mount.negative() > 0 {
			// Node 0 says that the name does not exist, and for how long that holds.
			out.EntryValid, out.EntryValidNsec = seconds(dir.mount.negative())
			return fuse.OK
		}
		return status(err)
	}
	e, err := r.enter(ctx, m, n, pinned, hint{dir.id, name}, out)
	if err != nil {
		return status(err)
	}
	r.t.done(e)
	return fuse.OK
}

func (r *raw) Forget(id, n uint64) { r.t.forget(id, n) }

// attr reads e's attributes, through the open file h if there is one.
func (r *raw) attr(ctx context.Context, e *entry, h *handle) (Attr, error) {
	if h != nil && h.file != nil {
		return h.file.Attr(ctx)
	}
	a, err := e.node.Attr(ctx)
	if errno := Errno(err); errno == syscall.ENOENT || errno == syscall.ESTALE {
		// Its names are gone; an open file of it still knows.
		if h := r.t.anyFile(e); h != nil {
			defer r.t.doneHandle(h)
			return h.file.Attr(ctx)
		}
	}
	return a, err
}

func (r *raw) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	e, err := r.t.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer r.t.done(e)
	var h *handle
	if in.Flags()&fuse.FUSE_GETATTR_FH != 0 && e.kind.IsRegular() {
		if h, err = r.t.useHandle(e.id, in.Fh(), false); err != nil {
			return status(err)
		}
		defer r.t.doneHandle(h)
	}
	a, err := r.attr(r.call(&in.InHeader), e, h)
	if err != nil {
		return status(err)
	}
	r.fillAttrOut(out, e, a)
	return fuse.OK
}

func (r *raw) fillAttrOut(out *fuse.AttrOut, e *entry, a Attr) {
	if e.mount != nil {
		out.AttrValid, out.AttrValidNsec = seconds(e.mount.attrTimeout(a))
	} else {
		out.AttrValid = 3600
	}
	fillAttr(&out.Attr, e.mountIndex(), a)
	r.t.saw(e, a)
}

func (r *raw) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	e, err := r.t.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer r.t.done(e)
	var h *handle
	if in.Valid&fuse.FATTR_FH != 0 {
		if h, err = r.t.useHandle(e.id, in.Fh, false); err != nil {
			return status(err)
		}
		defer r.t.doneHandle(h)
	}
	ctx := r.call(&in.InHeader)
	c, err := change(in)
	if err != nil {
		return status(err)
	}
	if c.Mode == nil && e.kind.IsRegular() && (c.UID != nil || c.GID != nil || in.Valid&fuse.FATTR_KILL_SUIDGID != 0) {
		a, err := r.attr(ctx, e, h)
		if err != nil {
			return status(err)
		}
		c.Mode = killed(a.Mode)
	}
	a, err := r.setAttr(ctx, e, h, c)
	if err != nil {
		return status(err)
	}
	r.fillAttrOut(out, e, a)
	return fuse.OK
}

func (r *raw) setAttr(ctx context.Context, e *entry, h *handle, c Change) (Attr, error) {
	if h != nil {
		return h.file.SetAttr(ctx, c)
	}
	a, err := e.node.SetAttr(ctx, c)
	if errno := Errno(err); c.Size == nil && (errno == syscall.ENOENT || errno == syscall.ESTALE) {
		if h := r.t.anyFile(e); h != nil { // fchmod(2) and such, after the last name is gone
			defer r.t.doneHandle(h)
			return h.file.SetAttr(ctx, c)
		}
	}
	return a, err
}

// killed is mode without what a write or a change of owner takes away (Linux:
// setattr_should_drop_suidgid), nil if that is nothing.
func killed(mode fs.FileMode) *fs.FileMode {
	m := mode &^ fs.ModeSetuid
	if mode&0o010 != 0 {
		m &^= fs.ModeSetgid
	}
	if m == mode {
		return nil
	}
	m &= changeable
	return &m
}

func change(in *fuse.SetAttrIn) (Change, error) {
	var c Change
	if m, ok := in.GetMode(); ok {
		mode := goMode(m) & changeable
		c.Mode = &mode
	}
	if u, ok := in.GetUID(); ok {
		c.UID = &u
	}
	if g, ok := in.GetGID(); ok {
		c.GID = &g
	}
	if s, ok := in.GetSize(); ok {
		if s > math.MaxInt64 {
			return c, syscall.EFBIG
		}
		size := int64(s)
		c.Size = &size
	}
	if in.Atimensec >= 1e9 || in.Mtimensec >= 1e9 {
		return c, syscall.EINVAL
	}
	if t, ok := in.GetATime(); ok {
		c.Atime = &t
	}
	if t, ok := in.GetMTime(); ok {
		c.Mtime = &t
	}
	return c, nil
}

func (r *raw) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	e, err := r.t.use(in.NodeId)
	if err != nil {
		return nil, status(err)
	}
	defer r.t.done(e)
	target, err := e.node.Readlink(r.call(in))
	if err == nil && (len(target) > MaxPath || strings.Contains(target, "\x00")) {
		err = syscall.ENAMETOOLONG
	}
	return []byte(target), status(err)
}

func (r *raw) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	e, err := r.t.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer r.t.done(e)
	st, err := e.node.StatFS(r.call(in))
	if err != nil {
		return status(err)
	}
	if st.BlockSize == 0 {
		st.BlockSize = 4096
	}
	out.Bsize, out.Frsize, out.NameLen = st.BlockSize, st.BlockSize, st.MaxName
	out.Blocks, out.Bfree, out.Bavail = st.Blocks, st.Free, st.Avail
	out.Files, out.Ffree = st.Files, st.FilesFree
	return fuse.OK
}

// xattrReply puts v into dest, or tells how large dest has to be.
func xattrReply(v []byte, dest []byte, err error) (uint32, fuse.Status) {
	switch {
	case err != nil:
		return 0, status(err)
	case len(v) > MaxXattr:
		return 0, fuse.Status(syscall.E2BIG)
	case len(v) > len(dest):
		return uint32(len(v)), fuse.ERANGE
	}
	return uint32(copy(dest, v)), fuse.OK
}

func (r *raw) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	e, err := r.t.use(in.NodeId)
	if err != nil {
		return 0, status(err)
	}
	defer r.t.done(e)
	v, err := e.node.GetXattr(r.call(in), name)
	return xattrReply(v, dest, err)
}

func (r *raw) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	e, err := r.t.use(in.NodeId)
	if err != nil {
		return 0, status(err)
	}
	defer r.t.done(e)
	names, err := e.node.ListXattr(r.call(in))
	var list []byte
	for _, n := range names {
		if n != "" && !strings.Contains(n, "\x00") {
			list = append(append(list, n...), 0)
		}
	}
	return xattrReply(list, dest, err)
}

func (r *raw) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, v []byte) fuse.Status {
	e, err := r.t.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer r.t.done(e)
	return status(e.node.SetXattr(r.call(&in.InHeader), name, v, int(in.Flags)))
}

func (r *raw) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	e, err := r.t.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer r.t.done(e)
	return status(e.node.RemoveXattr(r.call(in), name))
}
