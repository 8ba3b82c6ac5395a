package vfs

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"syscall"
)

// QuotaOptions bound what a guest can add below a mount; 0 is no bound.
type QuotaOptions struct {
	Bytes int64 // of space that files occupy, as stat(2)'s blocks tell
	Files int64 // of files, directories, links and the like
	// UsedBytes and UsedFiles count as used from the start. Usage measures them; without,
	// only growth counts, and what was there before can be removed to make room.
	UsedBytes, UsedFiles int64
}

// Quota serves root within bounds; what would go beyond fails with EDQUOT.
//
// Space is counted after each operation from the provider's own figures, so holes, truncation and rewriting in
// place count as they should, and before a write for as much as it may need at most. What is removed is free
// again when its last name is gone and nobody has it open, as on a disk. Approximate are: the space of
// directories that grow, a file system that tells of blocks only later (ZFS, some network ones), and
// changes by the host, which count only in files that the guest then changes. The provider must
// tell Nlink: a file without links counts only while it is in use.
func Quota(root Node, o QuotaOptions) Node {
	q := &quota{o: o, bytes: o.UsedBytes, files: o.UsedFiles, nodes: map[uint64]*quotaNode{}}
	wants := kinds(OpOpen, OpSetAttr, OpCreate, OpMkdir, OpMknod, OpSymlink, OpLink, OpUnlink, OpRmdir, OpRename, OpWrite, OpAllocate)
	return newLayer(root, q, wants, false)
}

type quota struct {
	o QuotaOptions

	// names is held while a name is made, removed or moved, so that what was looked at before is what is
	// made or loses its name: else a guest could have files uncounted that exist.
	names sync.Mutex

	mu       sync.Mutex
	bytes    int64 // used
	files    int64
	reserved int64 // bytes that writes under way may need
	pending  int64 // files being made
	nodes    map[uint64]*quotaNode
}

// quotaNode is a file that the server holds or an operation is about.
type quotaNode struct {
	ino     uint64
	measure sync.Mutex // one looks at a time, so that an older look does not undo a newer one

	// Under quota.mu:
	refs    int
	counted bool  // charge is known
	charge  int64 // bytes within quota.bytes
	gone    bool  // the last name is
}

// quotaCall is what before leaves to after.
type quotaCall struct {
	bytes, files int64      // reserved
	node         *quotaNode // changes
	victim       *quotaNode // loses a name
	last         bool       // its last one
}

// nameMoves are the operations that hold quota.names.
var nameMoves = kinds(OpUnlink, OpRmdir, OpRename, OpLink, OpCreate, OpMknod)

// quotaBlock is the unit by which a write's need is rounded up, the block size of common file systems.
const quotaBlock = 4096

// charge is the space that a file occupies. A provider without blocks is taken by sizes.
func charge(a Attr) int64 {
	if a.Blocks == 0 && a.BlockSize == 0 {
		return a.Size
	}
	return a.Blocks * 512
}

func (q *quota) before(ctx context.Context, c *opCall) (err error) {
	if kinds(c.Kind)&nameMoves != 0 {
		q.names.Lock()
	}
	switch c.Kind {
	case OpWrite, OpAllocate, OpSetAttr, OpOpen:
		err = q.beforeData(ctx, c)
	case OpUnlink, OpRmdir, OpRename, OpLink:
		err = q.victim(ctx, c)
	default:
		err = q.beforeMake(ctx, c)
	}
	if err != nil {
		q.end(c)
	}
	return err
}

// end gives back what an operation held and reserved.
func (q *quota) end(c *opCall) {
	q.mu.Lock()
	q.reserved -= c.quota.bytes
	q.pending -= c.quota.files
	q.unpin(c.quota.node)
	q.unpin(c.quota.victim)
	q.mu.Unlock()
	if kinds(c.Kind)&nameMoves != 0 {
		q.names.Unlock()
	}
}

// beforeData looks at a file before it changes, and reserves for growth.
func (q *quota) beforeData(ctx context.Context, c *opCall) error {
	if c.Kind == OpOpen && c.Flags&openTrunc == 0 || c.Kind == OpSetAttr && c.Change.Size == nil {
		return nil
	}
	c.quota.node = q.pin(c.n.ino)
	a, err := q.look(ctx, c.quota.node, attrFunc(c), false)
	if err != nil {
		return err
	}
	switch c.Kind {
	case OpWrite:
		return q.reserve(c, need(a, c), 0)
	case OpAllocate:
		if c.Flags&FallocPunchHole == 0 {
			return q.reserve(c, min(c.Bytes, 1<<62), 0)
		}
	}
	return nil
}

// beforeMake reserves for a new file. A create may open what is there, and truncate it.
func (q *quota) beforeMake(ctx context.Context, c *opCall) error {
	if c.Kind == OpCreate && c.Flags&openExcl == 0 {
		child, err := c.in.Lookup(ctx, c.name)
		if err == nil {
			c.quota.node, err = q.seen(ctx, c, child)
			return err
		}
		if !errors.Is(err, syscall.ENOENT) {
			return err
		}
	}
	return q.reserve(c, quotaBlock, 1)
}

// victim looks at what is about to lose a name; that there is nothing is the provider's to say.
func (q *quota) victim(ctx context.Context, c *opCall) error {
	dir, name := c.in, c.name
	if c.Kind == OpRename {
		dir, name = c.toIn, c.toName
	}
	if c.Kind == OpLink || c.Kind == OpRename && c.Flags&RenameExchange != 0 {
		return nil // nothing does
	}
	child, err := dir.Lookup(ctx, name)
	if err != nil {
		return ignoreMissing(err)
	}
	if c.quota.victim, err = q.seen(ctx, c, child); err != nil {
		return err
	}
	a, err := child.Attr(ctx)
	if err != nil {
		return err
	}
	c.quota.last = a.Nlink <= 1 || a.Mode.IsDir()
	if c.Kind != OpRename {
		return nil
	}
	// Renamed to itself, or to another spelling of its name, a file is not replaced.
	source, err := c.in.Lookup(ctx, c.name)
	if err != nil {
		return err
	}
	c.cleanup = append(c.cleanup, source)
	ino, err := inoOf(ctx, source)
	c.quota.last = c.quota.last && ino != a.Ino
	return err
}

// seen pins a provider's node and looks at it. The node is kept until the operation is over: released
// sooner, its number could be another file's while the entry still stands for this one.
func (q *quota) seen(ctx context.Context, c *opCall, n Node) (*quotaNode, error) {
	c.cleanup = append(c.cleanup, n)
	ino, err := inoOf(ctx, n)
	if err != nil {
		return nil, err
	}
	e := q.pin(ino)
	_, err = q.look(ctx, e, n.Attr, false)
	return e, err
}

func (q *quota) after(ctx context.Context, c *opCall, err error) error {
	defer q.end(c)
	made := c.quota.files > 0 && err == nil
	if made {
		ino, inoErr := inoOf(ctx, c.got)
		if inoErr != nil {
			return inoErr
		}
		c.quota.node = q.pin(ino)
		// A failing look leaves what was counted before; the next one sets it right.
		_, _ = q.look(ctx, c.quota.node, c.got.Attr, true)
	} else if c.quota.node != nil { // also after an error: part may have been written
		attr := attrFunc(c)
		if c.Kind == OpCreate {
			if err != nil {
				return err
			}
			attr = c.got.Attr
		}
		_, _ = q.look(ctx, c.quota.node, attr, false)
	}
	if c.quota.last && err == nil {
		q.mu.Lock()
		c.quota.victim.gone = true
		q.mu.Unlock()
	}
	return err
}

// attrFunc describes the file that an operation is about.
func attrFunc(c *opCall) func(context.Context) (Attr, error) {
	if c.file != nil {
		return c.file.inner.Attr
	}
	return c.n.inner.Attr
}

// look counts what a file occupies now. Met for the first time, that was there before, unless it was
// just made.
func (q *quota) look(ctx context.Context, e *quotaNode, attr func(context.Context) (Attr, error), made bool) (Attr, error) {
	e.measure.Lock()
	defer e.measure.Unlock()
	a, err := attr(ctx)
	if err != nil {
		return a, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	// A file without a name was taken out of the count between its lookup and now, and still is there.
	lost := a.Nlink == 0 && !made
	if !e.counted && (made || lost) {
		e.counted, e.gone = true, lost
		q.files++
	}
	if e.counted {
		q.bytes += charge(a) - e.charge
	}
	e.charge, e.counted = charge(a), true
	return a, nil
}

// need is how much a write can add to a file at most.
func need(a Attr, c *opCall) int64 {
	off := c.Off
	if c.file.flags&openAppend != 0 {
		off = a.Size
	}
	if a.Blocks*512 < a.Size || off > a.Size { // with holes, or compressed
		return roundUp(c.Bytes) + quotaBlock
	}
	return max(0, roundUp(off+c.Bytes)-charge(a))
}

func roundUp(n int64) int64 { return (n + quotaBlock - 1) / quotaBlock * quotaBlock }

func (q *quota) reserve(c *opCall, bytes, files int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.o.Bytes > 0 && bytes > 0 && q.bytes+q.reserved > q.o.Bytes-bytes ||
		q.o.Files > 0 && files > 0 && q.files+q.pending > q.o.Files-files {
		return syscall.EDQUOT
	}
	q.reserved += bytes
	q.pending += files
	c.quota.bytes, c.quota.files = bytes, files
	return nil
}

// pin returns the entry of a file and holds it until unpin.
func (q *quota) pin(ino uint64) *quotaNode {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.nodes[ino]
	if e == nil {
		e = &quotaNode{ino: ino}
		q.nodes[ino] = e
	}
	e.refs++
	return e
}

// unpin lets an entry go, and a file with it that has no name any more. Under q.mu; e may be nil.
func (q *quota) unpin(e *quotaNode) {
	if e == nil {
		return
	}
	if e.refs--; e.refs > 0 {
		return
	}
	delete(q.nodes, e.ino)
	if e.gone {
		q.bytes -= e.charge
		q.files--
	}
}

func (q *quota) held(n *layerNode) { q.pin(n.ino) }

func (q *quota) released(n *layerNode) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.unpin(q.nodes[n.ino])
}

// statFS shows the bounds as the size of the file system.
func (q *quota) statFS(st StatFS) StatFS {
	q.mu.Lock()
	defer q.mu.Unlock()
	if size := int64(st.BlockSize); q.o.Bytes > 0 && size > 0 {
		st.Blocks = min(st.Blocks, uint64(q.o.Bytes/size))
		left := uint64(max(0, q.o.Bytes-q.bytes) / size)
		st.Free, st.Avail = min(st.Free, left), min(st.Avail, left)
	}
	if q.o.Files > 0 {
		st.Files = min(st.Files, uint64(q.o.Files))
		st.FilesFree = min(st.FilesFree, uint64(max(0, q.o.Files-q.files)))
	}
	return st
}

// Usage measures what is below root: the space occupied and the number of files, root not included.
func Usage(ctx context.Context, root Node) (bytes, files int64, err error) {
	seen := map[uint64]bool{}
	var walk func(dir Node) error
	walk = func(dir Node) error {
		open, err := dir.OpenDir(ctx)
		if err != nil {
			return err
		}
		defer open.Close()
		for pos := uint64(0); ; {
			list, err := open.Entries(ctx, pos, 1024)
			if err != nil || len(list) == 0 {
				return errors.Join(err, ctx.Err())
			}
			for _, e := range list {
				pos = e.Next
				child, err := dir.Lookup(ctx, e.Name)
				if errors.Is(err, syscall.ENOENT) {
					continue // removed meanwhile
				}
				if err != nil {
					return err
				}
				a, err := child.Attr(ctx)
				if err == nil && !seen[a.Ino] {
					if a.Nlink > 1 && !a.Mode.IsDir() {
						seen[a.Ino] = true
					}
					files++
					bytes += charge(a)
				}
				if err == nil && a.Mode.Type() == fs.ModeDir {
					err = walk(child)
				}
				child.Release()
				if err != nil {
					return err
				}
			}
		}
	}
	return bytes, files, walk(root)
}
