package vfs

import (
	"context"
	"sync"
	"syscall"
)

// layer is what a wrapper does with the operations that pass through it. All wrappers
// of this package are layers: the nodes around them are the same.
type layer interface {
	// before is asked before an operation; its error is the operation's.
	before(ctx context.Context, c *opCall) error
	// after is told of an operation that before let pass, and returns its result.
	after(ctx context.Context, c *opCall, err error) error
}

// entryFilter is a layer that leaves entries out of directories, or adds some.
type entryFilter interface {
	entries(ctx context.Context, d *layerDir, pos uint64, most int) ([]DirEntry, error)
}

// opCall is an operation together with the nodes that it is about.
type opCall struct {
	Op
	n      *layerNode // the node, or the directory of an entry
	name   string     // the entry in n, "" for an operation on n itself
	to     *layerNode // directory of a new name
	toName string
	target *layerNode // of a link
	file   *layerFile
	lost   bool // Path could not be told for certain

	in, toIn Node   // the provider's directories that are worked in; before may put others there
	upper    bool   // in is not of the provider below
	got      Node   // the provider's node that a lookup or creation gave
	cleanup  []Node // released when the operation is over

	quota quotaCall // what a Quota notes between before and after
}

// layerFS is what the nodes of one wrapper share.
type layerFS struct {
	layer layer
	wants uint64     // kinds of operations that the layer is asked about
	paths *pathTable // nil for a layer that needs no paths
	root  *layerNode
	// moves is held while a layer judges a name and its operation is done: alone by a rename, which moves what
	// is at the name then, and together by what else makes or removes names. nil for a layer that judges none.
	moves *sync.RWMutex
}

// naming are the operations that make or remove names.
var naming = kinds(OpCreate, OpMkdir, OpMknod, OpSymlink, OpLink, OpUnlink, OpRmdir)

// holdNames keeps names from changing between what a layer sees and what the operation does.
func (f *layerFS) holdNames(k OpKind) (release func()) {
	switch {
	case f.moves == nil:
	case k == OpRename:
		f.moves.Lock()
		return f.moves.Unlock
	case kinds(k)&naming != 0:
		f.moves.RLock()
		return f.moves.RUnlock
	}
	return func() {}
}

// judgesNames is for the layers whose answer depends on what is at a name.
func (f *layerFS) judgesNames() { f.moves = &sync.RWMutex{} }

// newLayer wraps root. The wrapped root watches if root does.
func newLayer(root Node, l layer, wants uint64, paths bool) Node {
	f := &layerFS{layer: l, wants: wants}
	f.root = &layerNode{fs: f, inner: root, root: true}
	if paths {
		f.paths = newPathTable()
	}
	if w, ok := root.(Watcher); ok {
		return &layerWatcher{f.root, w}
	}
	return f.root
}

// layerWatcher is a wrapped root whose provider watches. What the layer hides is not told.
type layerWatcher struct {
	*layerNode
	watcher Watcher
}

// changeFilter is a layer that keeps some changes to itself.
type changeFilter interface{ hides(c Changed) bool }

func (w *layerWatcher) Watch(ctx context.Context, changed func(Changed)) error {
	f, ok := w.fs.layer.(changeFilter)
	if !ok {
		return w.watcher.Watch(ctx, changed)
	}
	return w.watcher.Watch(ctx, func(c Changed) {
		if !f.hides(c) {
			changed(c)
		}
	})
}

// layered is any Node of a wrapper.
type layered interface{ layer() *layerNode }

func (n *layerNode) layer() *layerNode { return n }

// mine returns the node behind a Node of this wrapper, nil for any other.
func (f *layerFS) mine(n Node) *layerNode {
	if l, ok := n.(layered); ok && l.layer().fs == f {
		return l.layer()
	}
	return nil
}

// numbered is a Node that knows its Attr.Ino without asking the file system.
type numbered interface{ number() uint64 }

func inoOf(ctx context.Context, n Node) (uint64, error) {
	if k, ok := n.(numbered); ok {
		return k.number(), nil
	}
	a, err := n.Attr(ctx)
	return a.Ino, err
}

// run takes an operation through the layer.
func (f *layerFS) run(ctx context.Context, c *opCall, do func() error) error {
	if c.in == nil {
		c.in = c.n.inner
	}
	if c.to != nil {
		c.toIn = c.to.inner
	}
	c.upper = c.n.upper
	if f.wants&(1<<c.Kind) == 0 {
		return do()
	}
	defer f.holdNames(c.Kind)()
	if f.paths != nil {
		f.fillPaths(c)
	}
	defer func() {
		for _, n := range c.cleanup {
			n.Release()
		}
	}()
	if err := f.layer.before(ctx, c); err != nil {
		return err
	}
	// A provider that panics must not leave the layer waiting for an end.
	err := error(syscall.EIO)
	ended := false
	defer func() {
		if !ended {
			_ = f.layer.after(ctx, c, err)
		}
	}()
	err = do()
	ended = true
	return f.layer.after(ctx, c, err)
}

func (f *layerFS) fillPaths(c *opCall) {
	var ok bool
	switch {
	case c.target != nil: // a link: its Path is the file that there is
		c.Path, ok = f.pathOf(c.target, "")
	case c.file != nil:
		if c.Path, ok = f.pathOf(c.n, ""); !ok {
			c.Path, ok = c.file.path, c.file.path != ""
		}
	default:
		c.Path, ok = f.pathOf(c.n, c.name)
	}
	c.lost = !ok
	if c.to != nil {
		c.NewPath, ok = f.pathOf(c.to, c.toName)
		c.lost = c.lost || !ok
	}
}

// pathOf returns the path of n, or of name in n. It reports false, with a path that is none, when
// a guest holds a node but no longer all directories above it.
func (f *layerFS) pathOf(n *layerNode, name string) (string, bool) {
	if n.root {
		return name, true
	}
	dir, ok := f.paths.path(n.ino)
	return joinPath(dir, name), ok
}

func joinPath(dir, name string) string {
	if dir == "" || name == "" {
		return dir + name
	}
	return dir + "/" + name
}

// wrap makes a wrapped node of what the provider gave for name in dir.
func (f *layerFS) wrap(ctx context.Context, c *opCall, dir *layerNode, name string, inner Node) (*layerNode, error) {
	n := &layerNode{fs: f, inner: inner, upper: c.upper}
	ino, err := inoOf(ctx, inner)
	if err != nil {
		inner.Release()
		return nil, err
	}
	n.ino = n.shown(ino)
	if r, ok := f.layer.(releaser); ok {
		r.held(n)
	}
	if f.paths != nil {
		f.paths.add(n.ino, dir.ino, dir.root, name)
	}
	return n, nil
}

// entry runs an operation that gives the node of name in n.
func (n *layerNode) entry(ctx context.Context, c *opCall, do func(c *opCall) error) (*layerNode, error) {
	err := n.fs.run(ctx, c, func() error { return do(c) })
	if err != nil {
		if c.got != nil {
			c.got.Release()
		}
		return nil, err
	}
	if c.to != nil {
		return n.fs.wrap(ctx, c, c.to, c.toName, c.got)
	}
	return n.fs.wrap(ctx, c, n, c.name, c.got)
}

// moved tells the path table where an entry is now.
func (f *layerFS) moved(ctx context.Context, in Node, upper bool, dir *layerNode, name string) {
	if f.paths == nil {
		return
	}
	child, err := in.Lookup(ctx, name)
	if err != nil {
		return // moved again meanwhile: whoever did so tells
	}
	defer child.Release()
	if ino, err := inoOf(ctx, child); err == nil {
		f.paths.move((&layerNode{upper: upper}).shown(ino), dir.ino, dir.root, name)
	}
}

// errForeign: a Node of another mount came as target or new directory.
const errForeign = syscall.EXDEV
