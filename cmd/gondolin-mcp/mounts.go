package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/tools"
	"github.com/gondolin-go/gondolin/vfs"
)

// files are what one session mounts. close is called when the session is Done.
type files struct {
	mounts  []sandbox.Mount
	denials *sandbox.DenialLog
	shown   tools.Mounts
	plan    []planned
	dir     string // where commands start because of them, or ""
	closers []func() error
	log     func(error)

	memories map[string]vfs.Node // the mounts in memory, by path
}

func (f *files) close() {
	for _, c := range f.closers {
		if err := c(); err != nil {
			f.log(err)
		}
	}
}

// planned is a mount before anything of it is opened.
type planned struct {
	configs.Mount
	named string // the workspace's directory as its user calls it, "" for other mounts
}

// wantsRoots says whether the client's roots are mounted.
func (b *sandboxes) wantsRoots() bool {
	return b.config.Workspace == configs.WorkspaceRoots && !b.mountsWorkspace()
}

// mountsWorkspace says whether the operator has a mount of his own where the workspace goes.
func (b *sandboxes) mountsWorkspace() bool {
	return slices.ContainsFunc(b.config.Mounts, func(m configs.Mount) bool { return m.Path == configs.WorkspacePath })
}

// expectsWorkspace says whether a session will probably have one.
func (b *sandboxes) expectsWorkspace() bool {
	return b.config.Workspace != configs.WorkspaceNone || b.mountsWorkspace()
}

// everyMount are the mounts that every session has.
func (b *sandboxes) everyMount() []tools.Mount {
	var list []tools.Mount
	for _, p := range b.plan(nil) {
		list = append(list, p.shown())
	}
	return list
}

// plan lists mounts, outer ones first. roots are those that passed.
func (b *sandboxes) plan(roots []root) []planned {
	var list []planned
	switch w := b.config.Workspace; w {
	case configs.WorkspaceNone:
	case configs.WorkspaceRoots:
		taken := map[string]bool{}
		for _, m := range b.config.Mounts {
			taken[m.Path] = true
		}
		for _, r := range roots {
			at := configs.WorkspacePath
			if len(roots) > 1 {
				at = unique(path.Join(at, filepath.Base(r.dir)), taken)
			}
			list = append(list, planned{Mount: configs.HostDirMount(at, r.dir), named: r.named})
		}
	default:
		if w == configs.WorkspaceCWD {
			w = b.cwd
		}
		list = append(list, planned{Mount: configs.HostDirMount(configs.WorkspacePath, w), named: w})
	}
	for _, m := range b.config.Mounts {
		list = append(list, planned{Mount: m})
	}
	slices.SortStableFunc(list, func(x, y planned) int {
		return cmp.Compare(strings.Count(x.Path, "/"), strings.Count(y.Path, "/"))
	})
	return list
}

// unique numbers a path that is taken.
func unique(p string, taken map[string]bool) string {
	name := p
	for n := 2; taken[name]; n++ {
		name = p + "-" + strconv.Itoa(n)
	}
	taken[name] = true
	return name
}

func (p planned) shown() tools.Mount {
	return tools.Mount{
		Path: p.Path, ReadOnly: p.Mode == configs.ModeReadOnly, Memory: p.Provider == configs.ProviderMemory, Source: p.named,
		Guarded: len(p.ProtectRules())+len(p.HideRules()) > 0,
	}
}

// provide opens what a session of a user mounts. Mounts in memory begin with what they hold in
// from, if that is not nil.
func (b *sandboxes) provide(roots []string, user string, from *files) (*files, error) {
	f := &files{
		denials:  &sandbox.DenialLog{},
		log:      func(err error) { b.log.Warn("closing a mount", "error", err) },
		memories: map[string]vfs.Node{},
	}
	if from != nil {
		for path, node := range from.memories {
			f.memories[path], _ = vfs.CopyMemory(node)
		}
	}
	var usable []root
	if b.wantsRoots() {
		usable, f.shown.Refused = b.judgeRoots(roots)
	}
	uid, gid, _ := numbers(user)
	var errs []error
	f.plan = b.plan(usable)
	for _, p := range f.plan {
		node, err := b.openMount(p, uid, gid, f)
		if err != nil {
			errs = append(errs, fmt.Errorf("mounting %s: %w", p.Path, err))
			continue
		}
		f.mounts = append(f.mounts, sandbox.Mount{
			Path: p.Path, Root: node, ReadOnly: p.Mode == configs.ModeReadOnly, Private: p.Provider == configs.ProviderMemory,
		})
		f.shown.List = append(f.shown.List, p.shown())
		if p.Path == configs.WorkspacePath || p.named != "" {
			f.dir = configs.WorkspacePath
		}
	}
	if len(errs) > 0 {
		f.close()
		return nil, errors.Join(errs...)
	}
	return f, nil
}

// hiddenWrites bounds what a session may write under hidden names of one mount, in bytes.
const hiddenWrites = 64 << 20

// openMount makes a mount's provider. From the inside out: what is counted, what must not be
// changed, what must not be seen, and whether anything can be written at all. So a
// hidden file is hidden before it is protected, and what is written in its place counts
// in memory and not as the host's.
func (b *sandboxes) openMount(p planned, uid, gid uint32, f *files) (vfs.Node, error) {
	readOnly := p.Mode == configs.ModeReadOnly
	bytes, count := int64(p.Quota)<<20, int64(p.MaxFiles)
	if p.Provider == configs.ProviderMemory {
		node := f.memories[p.Path]
		if node == nil {
			node = vfs.NewMemory(vfs.MemoryOptions{MaxBytes: bytes, MaxFiles: count, UID: uid, GID: gid})
			f.memories[p.Path] = node
		}
		if readOnly {
			node = vfs.ReadOnly(node)
		}
		return node, nil
	}
	protect, err := vfs.NewRules(append(b.ownRules(p.Source), p.ProtectRules()...)...)
	if err != nil {
		return nil, err
	}
	hide, err := vfs.NewRules(p.HideRules()...)
	if err != nil {
		return nil, err
	}
	dir, err := vfs.HostDir(p.Source, vfs.HostDirOptions{UID: uid, GID: gid, Logger: b.log})
	if err != nil {
		return nil, err
	}
	f.closers = append(f.closers, dir.Close)
	refused := func(r vfs.Refusal) { f.denials.Add(denial(p.Path, r)) }
	node := vfs.Node(dir)
	if bytes > 0 || count > 0 {
		node = vfs.Quota(node, vfs.QuotaOptions{Bytes: bytes, Files: count})
	}
	if !readOnly {
		node = vfs.Protect(node, protect, vfs.ProtectOptions{OnRefusal: refused})
	}
	if len(p.HideRules()) > 0 {
		o := vfs.ShadowOptions{OnRefusal: refused}
		if p.HideWrites == configs.HideWritesMemory && !readOnly {
			o.Upper = vfs.NewMemory(vfs.MemoryOptions{MaxBytes: hiddenWrites, UID: uid, GID: gid})
		}
		node = vfs.Shadow(node, hide, o)
	}
	if readOnly {
		node = vfs.ReadOnly(node)
	}
	return node, nil
}

// denial puts a refusal into words for the agent.
func denial(at string, r vfs.Refusal) sandbox.Denial {
	d := sandbox.Denial{
		Kind: "file", What: r.What, Path: path.Join(at, r.Path), Rule: r.Rule,
		Reason: fmt.Sprintf("%s by the rule %q", r.Why, r.Rule),
		Remedy: "Show the user what should be in it and let them write it, or ask them to change `protect` of this mount in the configuration of gondolin-mcp.",
	}
	if r.Why == "hidden" {
		d.Remedy = "Ask the user for what is needed of it, or to change `hide` of this mount in the configuration of gondolin-mcp."
	}
	return d
}

// numbers are a user's uid and gid, who owns the files of mounts in the session's eyes.
// known is false for a name, whose number only the image knows; it gets root's.
func numbers(user string) (uid, gid uint32, known bool) {
	name, group, _ := strings.Cut(user, ":")
	if name == "" || name == "root" {
		name = "0"
	}
	u, err := strconv.ParseUint(name, 10, 32)
	if err != nil {
		return 0, 0, false
	}
	if g, err := strconv.ParseUint(group, 10, 32); err == nil {
		return uint32(u), uint32(g), true
	}
	return uint32(u), uint32(u), true
}

// ownerProblem says that the files of mounts will not belong to whom commands run as.
func ownerProblem(c *configs.Config) string {
	if _, _, known := numbers(c.Session.User); known || c.Workspace == configs.WorkspaceNone && len(c.Mounts) == 0 {
		return ""
	}
	return fmt.Sprintf("session.user is the name %q, whose number only the image knows, so files of mounts belong to root in the machine: give the number, such as 1000", c.Session.User)
}

// ownRules protect gondolin-mcp's own files where they lie in a mount: its configuration
// above all, which decides what a guest may do.
func (b *sandboxes) ownRules(source string) []vfs.Rule {
	dir := realPath(source)
	var rules []vfs.Rule
	for _, own := range b.ownFiles() {
		if rest, ok := strings.CutPrefix(own.path, strings.TrimSuffix(dir, "/")+"/"); ok {
			rules = append(rules, vfs.Rule{Name: own.what + " of gondolin-mcp", Pattern: "/" + literal(rest)})
		}
	}
	return rules
}

// literal makes a pattern that means a path as it stands.
func literal(p string) string {
	var b strings.Builder
	for _, r := range p {
		if strings.ContainsRune(`*?[]{}\,`, r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// workingDirectory is the server's, for WorkspaceCWD.
func workingDirectory() string {
	dir, err := os.Getwd()
	if err != nil {
		return "." // opening it tells better
	}
	return dir
}
