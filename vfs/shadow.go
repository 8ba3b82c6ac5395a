package vfs

import (
	"context"
	"slices"
	"syscall"
)

// ShadowOptions are the options of Shadow.
type ShadowOptions struct {
	// Upper takes what the guest writes under hidden names: the root of another provider, such as a
	// Memory, that nothing else uses. nil refuses such writes.
	Upper Node
	// OnRefusal is told of each refusal, also when a guest looks for a hidden file that does exist.
	// It is called from the goroutine of the operation, as often as a guest likes, and may be nil.
	OnRefusal func(Refusal)
}

// Shadow serves root without what the rules name. A hidden name is not found and not listed. Making one fails with
// EACCES and a Refusal, or, with an Upper, makes a file there that only this mount's guest sees: an .env of its own
// in place of the host's. Moving between the two is EXDEV, which mv and the like answer with a copy.
//
// A directory that holds hidden entries is not empty: rmdir fails with ENOTEMPTY. It cannot be renamed to
// a place where the rules hide something else below it, so no rename uncovers a file.
//
// A hard link that the host made to a hidden file is hidden under any name once it is recognised, as Protect
// recognises them. What hiding does not conceal: that a directory is not empty, its time of change, and the space used.
func Shadow(root Node, rules *Rules, o ShadowOptions) Node {
	s := &shadow{rules: rules, known: newKnown(root, rules), o: o, root: root}
	wants := kinds(OpLookup, OpOpen, OpCreate, OpMkdir, OpMknod, OpSymlink, OpLink, OpUnlink, OpRmdir, OpRename, OpReadDir)
	n := newLayer(root, s, wants, true)
	s.fs = n.(layered).layer().fs
	s.fs.judgesNames()
	return n
}

type shadow struct {
	rules *Rules
	known *known
	o     ShadowOptions
	root  Node
	fs    *layerFS
}

func (s *shadow) refuse(rule *Rule, path, what string, errno syscall.Errno) error {
	r := Refusal{Rule: rule.title(), Path: path, What: what, Why: "hidden", Errno: errno}
	if s.o.OnRefusal != nil {
		s.o.OnRefusal(r)
	}
	return r
}

func (s *shadow) before(ctx context.Context, c *opCall) error {
	if c.n.upper && c.to == nil {
		return nil // all below a hidden name is the guest's own
	}
	switch c.Kind {
	case OpReadDir:
		return nil
	case OpOpen:
		return s.linked(ctx, c, c.n.inner, false)
	}
	if c.lost {
		return syscall.ESTALE
	}
	switch c.Kind {
	case OpLink:
		return s.link(ctx, c)
	case OpRename:
		return s.rename(ctx, c)
	case OpRmdir:
		if rest, err := s.upperHolds(ctx, c.Path); err != nil || rest {
			return orErr(err, syscall.ENOTEMPTY)
		}
	}
	rule := s.rules.judge(c.Path).final
	if rule == nil {
		return nil
	}
	if s.o.Upper != nil {
		in, err := s.upperDir(ctx, c.n, c, c.Kind != OpLookup && c.Kind != OpUnlink && c.Kind != OpRmdir)
		c.in, c.upper = in, true
		return err
	}
	switch c.Kind {
	case OpLookup:
		s.lookedFor(ctx, c, rule)
		return syscall.ENOENT
	case OpUnlink, OpRmdir:
		return syscall.ENOENT
	}
	return s.refuse(rule, c.Path, c.Kind.String(), syscall.EACCES)
}

// after hides links of hidden files, and keeps the upper provider's directories in step.
func (s *shadow) after(ctx context.Context, c *opCall, err error) error {
	if err != nil || c.upper {
		return err
	}
	switch c.Kind {
	case OpLookup, OpCreate:
		return s.linked(ctx, c, c.got, true)
	case OpRename:
		return s.renamed(ctx, c)
	case OpRmdir:
		return s.removed(ctx, c.Path)
	}
	return nil
}

// linked refuses a file that is a hidden one under another name.
func (s *shadow) linked(ctx context.Context, c *opCall, n Node, search bool) error {
	var rule *Rule
	var err error
	if search {
		rule, _, err = s.known.findLinked(ctx, n)
	} else {
		var ino uint64
		if ino, err = inoOf(ctx, n); err == nil {
			rule, _ = s.known.find(ctx, ino)
		}
	}
	if err != nil || rule == nil {
		return err
	}
	return s.refuse(rule, c.Path, c.Kind.String(), syscall.ENOENT)
}

// lookedFor tells the operator when a guest looks for what is there and hidden, and learns its number.
func (s *shadow) lookedFor(ctx context.Context, c *opCall, rule *Rule) {
	child, err := c.in.Lookup(ctx, c.name)
	if err != nil {
		return
	}
	defer child.Release()
	if a, err := child.Attr(ctx); err == nil && a.Mode.IsRegular() {
		s.known.learn(a.Ino, c.Path)
	}
	_ = s.refuse(rule, c.Path, "lookup", syscall.ENOENT) // told; the guest gets a bare errno
}

func (s *shadow) link(ctx context.Context, c *opCall) error {
	if !c.target.upper {
		if err := s.linked(ctx, c, c.target.inner, false); err != nil {
			return err
		}
	}
	return s.newName(ctx, c)
}

// newName readies the directory of a new name; c.upper tells of the file that is to get it.
func (s *shadow) newName(ctx context.Context, c *opCall) error {
	c.upper = c.to.upper
	rule := s.rules.judge(c.NewPath).final
	if rule == nil || c.to.upper {
		return nil
	}
	if s.o.Upper == nil {
		return s.refuse(rule, c.NewPath, c.Kind.String(), syscall.EACCES)
	}
	in, err := s.upperDir(ctx, c.to, c, true)
	c.toIn, c.upper = in, true
	return err
}

func (s *shadow) rename(ctx context.Context, c *opCall) error {
	from, to := s.rules.judge(c.Path), s.rules.judge(c.NewPath)
	source := c.n.upper
	if !source && from.final != nil {
		if s.o.Upper == nil {
			return syscall.ENOENT
		}
		in, err := s.upperDir(ctx, c.n, c, false)
		if err != nil {
			return err
		}
		c.in, source = in, true
	}
	if err := s.newName(ctx, c); err != nil {
		return err
	}
	if c.upper != source {
		return syscall.EXDEV
	}
	if source || slices.Equal(from.state, to.state) {
		return nil
	}
	// Only directories have something below that could come to light.
	dirs := []struct {
		in   Node
		name string
	}{{c.in, c.name}, {c.toIn, c.toName}}
	for i, d := range dirs {
		if i == 1 && c.Flags&RenameExchange == 0 {
			break
		}
		typ, err := typeOf(ctx, d.in, d.name)
		if err != nil {
			return err
		}
		if typ.IsDir() {
			return s.refuse(s.nearest(from, to), c.NewPath, "rename", syscall.EACCES)
		}
	}
	return nil
}

// nearest picks the rule to name for two places that differ.
func (s *shadow) nearest(list ...verdict) *Rule {
	for _, v := range list {
		switch {
		case v.way != nil:
			return v.way
		case v.deep != nil:
			return v.deep
		}
	}
	return &Rule{}
}

// hides keeps events about hidden names from the guest.
func (s *shadow) hides(c Changed) bool {
	if c.Name == "" {
		return false // a file that the guest holds
	}
	if c.Dir == 0 {
		return s.rules.judge(c.Name).final != nil
	}
	dir, _ := s.fs.paths.path(c.Dir) // of a directory unknown or the root: the name alone decides
	return s.rules.judge(joinPath(dir, c.Name)).final != nil || s.rules.judge(c.Name).final != nil
}

func orErr(err error, other error) error {
	if err != nil {
		return err
	}
	return other
}
