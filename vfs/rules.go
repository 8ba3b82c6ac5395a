package vfs

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/bmatcuk/doublestar/v4"
)

// Rule names files by a pattern, relative to the root of a mount and much like a line of .gitignore:
//
//	.envrc, *.pem       a name or glob: at any depth
//	.git/hooks          several elements: at any depth
//	/build/out          a leading slash: from the root of the mount only
//	.git/modules/**/config   ** stands for any number of directories
//
// Globs are those of github.com/bmatcuk/doublestar within one element. What is below a directory that
// a rule names is named as well. Upper and lower case are the same, and so are the spellings
// that some host file systems take for the same name: trailing dots and spaces, characters that HFS+ ignores,
// NTFS streams, and the short name of .git.
type Rule struct {
	// Name is shown to users; empty means Pattern.
	Name string
	// Pattern is as above; a trailing slash or /** means nothing more.
	Pattern string
	// Except are globs; a name that fits one of them is not meant by the pattern's last element.
	Except []string
}

func (r Rule) title() string {
	if r.Name != "" {
		return r.Name
	}
	return r.Pattern
}

// Rules are compiled; nil has none.
type Rules struct {
	rules    []ruleSet
	literal  map[string][]int // floating rules by a first element without a glob
	globbing []int            // floating rules whose first element has one
	anchored []int
}

type ruleSet struct {
	Rule
	elems  []elem
	except []elem
}

// elem is one element of a pattern.
type elem struct {
	text string
	kind elemKind
}

type elemKind uint8

const (
	elemName   elemKind = iota // text itself
	elemPrefix                 // text*
	elemSuffix                 // *text
	elemGlob
	elemAny // **
)

func (e elem) match(name string) bool {
	switch e.kind {
	case elemName:
		return e.text == name
	case elemPrefix:
		return strings.HasPrefix(name, e.text)
	case elemSuffix:
		return strings.HasSuffix(name, e.text)
	}
	ok, err := doublestar.Match(e.text, name)
	return ok && err == nil
}

// NewRules compiles rules. The error tells all mistakes at once.
func NewRules(rules ...Rule) (*Rules, error) {
	set := &Rules{literal: map[string][]int{}}
	var errs []error
	for _, r := range rules {
		for _, pattern := range alternatives(r.Pattern) {
			c, err := compile(r, pattern)
			if err != nil {
				errs = append(errs, fmt.Errorf("rule %q: %w", r.Pattern, err))
				break
			}
			set.add(c, strings.HasPrefix(pattern, "/"))
		}
	}
	return set, errors.Join(errs...)
}

func (r *Rules) add(c ruleSet, anchored bool) {
	i := len(r.rules)
	r.rules = append(r.rules, c)
	first := c.elems[0]
	switch {
	case anchored:
		r.anchored = append(r.anchored, i)
	case first.kind == elemName:
		r.literal[first.text] = append(r.literal[first.text], i)
	default:
		r.globbing = append(r.globbing, i)
	}
}

// alternatives writes out a pattern's braces: most rules are plain names then, which are much quicker
// to compare than globs. What is not that simple is left to the glob.
func alternatives(pattern string) []string {
	open := strings.IndexByte(pattern, '{')
	if open < 0 || strings.ContainsAny(pattern, `\[`) {
		return []string{pattern}
	}
	size := strings.IndexAny(pattern[open+1:], "{}")
	if size < 0 || pattern[open+1+size] == '{' {
		return []string{pattern}
	}
	var out []string
	for part := range strings.SplitSeq(pattern[open+1:open+1+size], ",") {
		out = append(out, alternatives(pattern[:open]+part+pattern[open+size+2:])...)
	}
	return out
}

// compile compiles a rule for one of its alternatives.
func compile(r Rule, pattern string) (ruleSet, error) {
	c := ruleSet{Rule: r}
	pattern = strings.TrimPrefix(strings.TrimSuffix(pattern, "/"), "/")
	for strings.HasPrefix(pattern, "**/") {
		pattern = strings.TrimPrefix(pattern, "**/")
	}
	for strings.HasSuffix(pattern, "/**") {
		pattern = strings.TrimSuffix(pattern, "/**")
	}
	for text := range strings.SplitSeq(pattern, "/") {
		e, err := compileElem(text)
		if err != nil {
			return c, err
		}
		c.elems = append(c.elems, e)
	}
	if c.elems[0].kind == elemAny {
		return c, errors.New("it would mean every file")
	}
	for _, text := range r.Except {
		e, err := compileElem(text)
		if err != nil {
			return c, fmt.Errorf("exception %q: %w", text, err)
		}
		c.except = append(c.except, e)
	}
	return c, nil
}

func compileElem(text string) (elem, error) {
	switch {
	case text == "" || text == "." || text == "..":
		return elem{}, fmt.Errorf("an element %q never is a file's name", text)
	case text == "**":
		return elem{kind: elemAny}, nil
	case !doublestar.ValidatePattern(text):
		return elem{}, errors.New("not a valid glob")
	}
	text = fold(text)
	const meta = `*?[{\`
	switch {
	case !strings.ContainsAny(text, meta):
		return elem{text: text, kind: elemName}, nil
	case text[0] == '*' && !strings.ContainsAny(text[1:], meta):
		return elem{text: text[1:], kind: elemSuffix}, nil
	case !strings.ContainsAny(text[:len(text)-1], meta) && text[len(text)-1] == '*':
		return elem{text: text[:len(text)-1], kind: elemPrefix}, nil
	}
	return elem{text: text, kind: elemGlob}, nil
}

// Match returns the rule that names a path or a directory above it.
func (r *Rules) Match(path string) (Rule, bool) {
	v := r.judge(path)
	if v.final == nil {
		return Rule{}, false
	}
	return *v.final, true
}

// verdict is what rules say of a path.
type verdict struct {
	final *Rule   // it names the path or a directory above it
	way   *Rule   // the path must be a directory for what it names to lie below
	deep  *Rule   // the path is below the ** of one
	state []state // how far each rule has got
}

// state says that the first elems elements of a rule fit.
type state struct{ rule, elems int }

// judge walks a path's elements and the rules' together. Two directories with the same state
// differ in nothing: whatever is below is named in both or in neither.
func (r *Rules) judge(path string) verdict {
	if r == nil || path == "" {
		return verdict{}
	}
	var now, next []state
	var v verdict
	root := true
	for name := range strings.SplitSeq(path, "/") {
		name = fold(name)
		v = verdict{}
		next = next[:0]
		step := func(s state) {
			c := &r.rules[s.rule]
			if c.elems[s.elems].kind == elemAny {
				v.deep = &c.Rule
				next = append(next, s)
				s.elems++
			}
			if !c.elems[s.elems].match(name) {
				return
			}
			s.elems++
			if s.elems < len(c.elems) {
				v.way = &c.Rule
				next = append(next, s)
			} else if v.final == nil && !slices.ContainsFunc(c.except, func(e elem) bool { return e.match(name) }) {
				v.final = &c.Rule
			}
		}
		for _, s := range now {
			step(s)
		}
		for _, i := range r.literal[name] {
			step(state{i, 0})
		}
		for _, i := range r.globbing {
			step(state{i, 0})
		}
		if root {
			for _, i := range r.anchored {
				step(state{i, 0})
			}
		}
		if v.final != nil {
			return v
		}
		root = false
		now, next = next, now
	}
	slices.SortFunc(now, func(a, b state) int { return (a.rule-b.rule)<<8 + a.elems - b.elems })
	v.state = slices.Compact(now)
	return v
}

// fold brings spellings together that some file system takes for the same name.
func fold(name string) string {
	if plain(name) {
		return name
	}
	name = strings.ToLower(strings.ToUpper(name))
	name = strings.Map(func(r rune) rune {
		switch {
		case r >= 0x200c && r <= 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x206a && r <= 0x206f, r == 0xfeff:
			return -1 // HFS+
		}
		return r
	}, name)
	if i := strings.IndexByte(name, ':'); i > 0 {
		name = name[:i] // NTFS
	}
	if short := strings.TrimRight(name, ". "); short != "" {
		name = short
	}
	if len(name) == 5 && strings.HasPrefix(name, "git~") {
		return ".git" // its short name on FAT and NTFS
	}
	return name
}

// plain reports whether fold has nothing to do, as for nearly all names.
func plain(name string) bool {
	for i := range len(name) {
		if c := name[i]; c >= 0x80 || c >= 'A' && c <= 'Z' || c == ':' || c == '~' {
			return false
		}
	}
	return name != "" && name[len(name)-1] != '.' && name[len(name)-1] != ' '
}

// Refusal says what a wrapper refused and by which rule, for people to read. It wraps the errno that the
// guest gets.
type Refusal struct {
	Rule  string // the rule's name
	Path  string // the file, relative to the mount's root
	What  string // the operation: "write", "create", "rename" and so on
	Why   string // what kind of rule: "protected" or "hidden"
	Errno syscall.Errno
}

func (r Refusal) Error() string {
	return fmt.Sprintf("%s: %s is %s by the rule %q: %v", r.What, r.Path, r.Why, r.Rule, r.Errno)
}

func (r Refusal) Unwrap() error { return r.Errno }
