package vfs

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"syscall"
)

// ProtectOptions are the options of Protect.
type ProtectOptions struct {
	// OnRefusal is told of each refusal, from the goroutine of the operation, as often as
	// a guest likes: bound what is kept of them. It may be nil.
	OnRefusal func(Refusal)
}

// Protect serves root such that what the rules name can be read and not be changed, also when it does
// not exist yet: making, writing, removing, renaming, linking, and every change of
// attributes fail with EPERM and a Refusal.
//
// Directories on the way to what a rule names (".git" on the way to .git/hooks) can be made and filled, yet not be
// renamed or replaced, and nothing that is no directory can be put in their place: no .git file and no
// symbolic link that leads git elsewhere. A directory can be renamed to where the rules mean the same
// below it and no other place. So a path that is free stays free whatever a guest does, and what it wrote there
// never comes to lie where a rule points. Directories that merely hold something that a rule
// names at any depth (proj/.envrc) can be renamed.
//
// A hard link that the host made to a protected file is protected under any name once it is recognised: a
// file with several names that is met under a free one has the tree searched for protected names, up to
// 200,000 entries and at most every half minute. A file that a guest has open for writing while the host
// renames it to a protected name remains open, as on any file system.
func Protect(root Node, rules *Rules, o ProtectOptions) Node {
	p := &protect{rules: rules, known: newKnown(root, rules), o: o}
	wants := mutations&^kinds(OpWrite, OpAllocate) | kinds(OpOpen, OpLookup)
	n := newLayer(root, p, wants, true)
	n.(layered).layer().fs.judgesNames()
	return n
}

type protect struct {
	rules *Rules
	known *known
	o     ProtectOptions
}

func (p *protect) refuse(c *opCall, rule *Rule, path, what string) error {
	r := Refusal{Rule: rule.title(), Path: path, What: what, Why: "protected", Errno: syscall.EPERM}
	if p.o.OnRefusal != nil {
		p.o.OnRefusal(r)
	}
	return r
}

func (p *protect) before(ctx context.Context, c *opCall) error {
	if !c.changes() {
		return nil
	}
	if c.lost {
		return syscall.ESTALE
	}
	switch c.Kind {
	case OpOpen:
		return p.node(ctx, c, c.n.inner, c.Path, "write")
	case OpSetAttr, OpSetXattr, OpRemoveXattr:
		return p.node(ctx, c, c.n.inner, c.Path, "change")
	case OpRename:
		return p.rename(ctx, c)
	case OpLink:
		if err := p.node(ctx, c, c.target.inner, c.Path, "link"); err != nil {
			return err
		}
		a, err := c.target.inner.Attr(ctx)
		if err != nil {
			return err
		}
		return p.entry(c, c.NewPath, a.Mode.Type(), "link")
	case OpMkdir, OpRmdir:
		return p.entry(c, c.Path, fs.ModeDir, c.Kind.String())
	case OpSymlink:
		return p.entry(c, c.Path, fs.ModeSymlink, "symlink")
	case OpUnlink:
		return p.entry(c, c.Path, 0, "remove")
	}
	if err := p.entry(c, c.Path, 0, "create"); err != nil || c.Flags&openExcl != 0 {
		return err
	}
	// It may exist, and be a hard link; then creating is opening.
	child, err := c.in.Lookup(ctx, c.name)
	if err != nil {
		if errors.Is(err, syscall.ENOENT) {
			return nil
		}
		return err
	}
	defer child.Release()
	return p.node(ctx, c, child, c.Path, "write")
}

// after learns which files have a protected name.
func (p *protect) after(ctx context.Context, c *opCall, err error) error {
	if err == nil && c.Kind == OpLookup && !c.lost && p.rules.judge(c.Path).final != nil {
		if ino, err := inoOf(ctx, c.got); err == nil {
			p.known.learn(ino, c.Path)
		}
	}
	return err
}

// entry judges a name that is about to come or go, of a file of the given type.
func (p *protect) entry(c *opCall, path string, typ fs.FileMode, what string) error {
	v := p.rules.judge(path)
	switch {
	case v.final != nil:
		return p.refuse(c, v.final, path, what)
	case v.way != nil && typ != fs.ModeDir:
		return p.refuse(c, v.way, path, what)
	case v.deep != nil && typ == fs.ModeSymlink && what != "remove":
		return p.refuse(c, v.deep, path, what)
	}
	return nil
}

// node judges a change of what a path leads to.
func (p *protect) node(ctx context.Context, c *opCall, n Node, path, what string) error {
	v := p.rules.judge(path)
	if v.final != nil {
		return p.refuse(c, v.final, path, what)
	}
	if v.way != nil {
		a, err := n.Attr(ctx)
		if err != nil {
			return err
		}
		if !a.Mode.IsDir() {
			return p.refuse(c, v.way, path, what)
		}
	}
	rule, named, err := p.known.findLinked(ctx, n)
	if err != nil {
		return err
	}
	if rule != nil {
		return p.refuse(c, rule, path+" (a link of "+named+")", what)
	}
	return nil
}

// rename judges both names. With RENAME_EXCHANGE two files move.
func (p *protect) rename(ctx context.Context, c *opCall) error {
	from, to := p.rules.judge(c.Path), p.rules.judge(c.NewPath)
	for _, side := range []struct {
		v    verdict
		path string
	}{{from, c.Path}, {to, c.NewPath}} {
		switch {
		case side.v.final != nil:
			return p.refuse(c, side.v.final, side.path, "rename")
		case side.v.way != nil:
			return p.refuse(c, side.v.way, side.path, "rename")
		}
	}
	if err := p.moves(ctx, c, c.in, c.name, from, to, c.NewPath); err != nil {
		return err
	}
	if c.Flags&RenameExchange == 0 {
		return nil
	}
	return p.moves(ctx, c, c.toIn, c.toName, to, from, c.Path)
}

// moves judges one file's move to path.
func (p *protect) moves(ctx context.Context, c *opCall, dir Node, name string, from, to verdict, path string) error {
	same := slices.Equal(from.state, to.state)
	if same && to.deep == nil {
		return nil
	}
	typ, err := typeOf(ctx, dir, name)
	if err != nil {
		return err
	}
	if typ == fs.ModeDir && !same {
		rule := to.deep
		if rule == nil {
			rule = from.deep
		}
		return p.refuse(c, rule, path, "rename")
	}
	if typ == fs.ModeSymlink && to.deep != nil {
		return p.refuse(c, to.deep, path, "rename")
	}
	return nil
}

// typeOf returns the type of an entry of the provider's directory.
func typeOf(ctx context.Context, dir Node, name string) (fs.FileMode, error) {
	child, err := dir.Lookup(ctx, name)
	if err != nil {
		return 0, err
	}
	defer child.Release()
	a, err := child.Attr(ctx)
	return a.Mode.Type(), err
}
