package configs

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/gondolin-go/gondolin/vfs"
)

// WorkspacePath is where the workspace is mounted: itself, or one directory for each of
// several roots.
const WorkspacePath = "/workspace"

// What Config.Workspace may say besides a directory.
const (
	WorkspaceRoots = "roots" // the directories that the client names as its roots
	WorkspaceCWD   = "cwd"   // the server's working directory
	WorkspaceNone  = "none"
)

// Values of a Mount.
const (
	ProviderHostDir = "hostdir"
	ProviderMemory  = "memory"

	ModeReadWrite = "rw"
	ModeReadOnly  = "ro"

	HideWritesDeny   = "deny"   // what a guest writes under a hidden name is refused
	HideWritesMemory = "memory" // only this session sees it
)

// Mount is a directory of the guest that the host serves.
type Mount struct {
	Path       string `koanf:"path" yaml:"path" json:"path"` // in the guest, absolute and clean
	Provider   string `koanf:"provider" yaml:"provider" json:"provider"`
	Source     string `koanf:"source" yaml:"source,omitempty" json:"source,omitempty"` // host directory, absolute
	Mode       string `koanf:"mode" yaml:"mode" json:"mode"`
	Protect    *Rules `koanf:"protect" yaml:"protect,omitempty" json:"protect,omitempty"` // nil with ProviderMemory, as are the next two
	Hide       *Rules `koanf:"hide" yaml:"hide,omitempty" json:"hide,omitempty"`
	HideWrites string `koanf:"hide_writes" yaml:"hide_writes,omitempty" json:"hide_writes,omitempty"`
	Quota      Size   `koanf:"quota" yaml:"quota,omitempty" json:"quota,omitempty"`             // what a session may add; 0: no bound, in memory 1 GiB
	MaxFiles   int    `koanf:"max_files" yaml:"max_files,omitempty" json:"max_files,omitempty"` // likewise; 0: no bound, in memory 262,144
}

// Rules change a list of rules of package vfs.
type Rules struct {
	Add      []string `koanf:"add" yaml:"add,flow" json:"add"`
	Remove   []string `koanf:"remove" yaml:"remove,flow" json:"remove"` // patterns of default rules
	Defaults bool     `koanf:"defaults" yaml:"defaults" json:"defaults"`
}

// HostDirMount is a mount of a host directory with the default protection, as the
// workspace is.
func HostDirMount(path, source string) Mount {
	rules := Rules{Add: []string{}, Remove: []string{}, Defaults: true}
	protect, hide := rules, rules
	return Mount{
		Path: path, Provider: ProviderHostDir, Source: source, Mode: ModeReadWrite,
		Protect: &protect, Hide: &hide, HideWrites: HideWritesDeny,
	}
}

// ProtectRules are the rules for what the guest must not change.
func (m Mount) ProtectRules() []vfs.Rule { return m.Protect.apply(vfs.DefaultProtect()) }

// HideRules are the rules for what the guest must not see.
func (m Mount) HideRules() []vfs.Rule { return m.Hide.apply(vfs.DefaultHide()) }

func (r *Rules) apply(defaults []vfs.Rule) []vfs.Rule {
	if r == nil {
		return nil
	}
	var rules []vfs.Rule
	for _, p := range r.Add {
		rules = append(rules, vfs.Rule{Pattern: p})
	}
	if !r.Defaults {
		return rules
	}
	return append(rules, slices.DeleteFunc(defaults, func(d vfs.Rule) bool { return slices.Contains(r.Remove, d.Pattern) })...)
}

// mountList are the keys of one block of mounts.
var mountList = &list{
	keys: table{
		{path: "path", kind: kindText, need: true, help: "give the directory of the machine, such as /data", check: checkGuestPath},
		{path: "provider", kind: kindEnum, def: ProviderHostDir, values: []string{ProviderHostDir, ProviderMemory}, help: "hostdir (a directory of this machine) or memory"},
		{path: "source", kind: kindDir, need: true, help: "give the directory of this machine, or `provider: memory`", check: notEmpty, applies: ofHostDir("there is nothing to take files from")},
		{path: "mode", kind: kindEnum, def: ModeReadWrite, values: []string{ModeReadWrite, ModeReadOnly}, help: "rw or ro"},
		{path: "protect.add", kind: kindWords, def: []string{}, short: true, check: checkPattern, applies: ofHostDir("nothing on this machine is in danger"), help: "patterns of what must not be changed"},
		{path: "protect.remove", kind: kindWords, def: []string{}, check: isDefault(vfs.DefaultProtect), applies: ofHostDir("nothing on this machine is in danger"), help: "default patterns to leave out"},
		{path: "protect.defaults", kind: kindBool, def: true, applies: ofHostDir("nothing on this machine is in danger"), help: "whether the default patterns apply"},
		{path: "hide.add", kind: kindWords, def: []string{}, short: true, check: checkPattern, applies: ofHostDir("nothing of this machine is in it"), help: "patterns of what must not be seen"},
		{path: "hide.remove", kind: kindWords, def: []string{}, check: isDefault(vfs.DefaultHide), applies: ofHostDir("nothing of this machine is in it"), help: "default patterns to leave out"},
		{path: "hide.defaults", kind: kindBool, def: true, applies: ofHostDir("nothing of this machine is in it"), help: "whether the default patterns apply"},
		{path: "hide_writes", kind: kindEnum, def: HideWritesDeny, values: []string{HideWritesDeny, HideWritesMemory}, applies: ofHostDir("nothing is hidden in it"), help: "what becomes of writes to hidden names: deny or memory"},
		{path: "quota", kind: kindSize, def: Size(0), check: positive[Size], help: "what a session may add, such as 2GiB"},
		{path: "max_files", kind: kindInt, def: 0, check: positive[int], help: "how many files a session may add"},
	},
	flags: []listFlag{
		{name: "mount", form: "HOST:GUEST[:ro]", help: "mount a directory of this machine in the sandbox, may be given several times", parse: parseMount},
		{name: "mount-memory", form: "GUEST", help: "mount an empty directory in memory, may be given several times", parse: func(text string) (map[string][]string, error) {
			return map[string][]string{"path": {text}, "provider": {ProviderMemory}}, nil
		}},
	},
	whole: checkMounts,
}

// ofHostDir makes a key one of host directories; why says what makes it senseless in memory.
func ofHostDir(why string) func(*block) string {
	return func(b *block) string {
		if b.text("provider") != ProviderMemory {
			return ""
		}
		return "a mount in memory has no such key: " + why
	}
}

func positive[T ~int](v any, text string) string {
	if v.(T) <= 0 {
		return text + " is out of range: leave the key out for no bound"
	}
	return ""
}

// guestOwn are directories of the guest whose content is the kernel's or the agent's;
// package sandbox refuses them as well.
var guestOwn = []string{"/proc", "/sys", "/dev", "/run/gondolin"}

func checkGuestPath(v any, text string) string {
	p := v.(string)
	if !strings.HasPrefix(p, "/") {
		return quote(text) + " is not absolute: it is a path in the machine and begins with /"
	}
	p = path.Clean(p)
	if p == "/" || p == "/run" {
		return quote(text) + " would cover what the machine needs: choose a directory below it, such as /data"
	}
	for _, own := range guestOwn {
		if p == own || strings.HasPrefix(p, own+"/") {
			return quote(text) + " belongs to the machine's kernel: nothing can be mounted in " + own
		}
	}
	return ""
}

func checkPattern(v any, text string) string {
	if _, err := vfs.NewRules(vfs.Rule{Pattern: v.(string)}); err != nil {
		_, what, _ := strings.Cut(err.Error(), `": `) // after the pattern
		return quote(text) + " is no pattern: " + what
	}
	return ""
}

// isDefault checks that there is such a default rule.
func isDefault(defaults func() []vfs.Rule) func(any, string) string {
	return func(v any, text string) string {
		var all []string
		for _, r := range defaults() {
			if r.Pattern == v.(string) {
				return ""
			}
			all = append(all, r.Pattern)
		}
		hint := "`gondolin-mcp config rules` lists them"
		for _, p := range all {
			if strings.Contains(p, v.(string)) && len(text) > 2 {
				return quote(text) + " is no default pattern; did you mean " + p + "? " + hint
			}
		}
		if m := nearest(text, all); m != "" {
			hint = "did you mean " + m + "? " + hint
		}
		return quote(text) + " is no default pattern; " + hint
	}
}

// parseMount reads HOST:GUEST[:ro]. A colon may be in HOST.
func parseMount(text string) (map[string][]string, error) {
	rest, mode := text, ModeReadWrite
	for _, m := range []string{ModeReadOnly, ModeReadWrite} {
		if r, ok := strings.CutSuffix(text, ":"+m); ok {
			rest, mode = r, m
		}
	}
	i := strings.LastIndexByte(rest, ':')
	switch {
	case i < 0:
		return nil, fmt.Errorf("%s does not say where in the machine", quote(text))
	case i == 0:
		return nil, fmt.Errorf("%s does not say which directory of this machine", quote(text))
	}
	return map[string][]string{"source": {rest[:i]}, "path": {rest[i+1:]}, "mode": {mode}}, nil
}

// checkMounts judges the mounts together and brings their paths into one form. Their order does
// not matter: what lies in another is mounted after it.
func checkMounts(l *loader, blocks []*block) {
	seen := map[string]*block{}
	for _, b := range blocks {
		p := b.text("path")
		if p == "" {
			continue
		}
		p = path.Clean(p)
		b.values["path"] = p
		bad := func(format string, args ...any) {
			l.report(Problem{Origin: b.origins["path"], Key: b.key("path"), Message: fmt.Sprintf(format, args...)})
		}
		if first := seen[p]; first != nil {
			bad("%s has a mount already: %s (%s)", quote(p), first.name, first.origins["path"])
			continue
		}
		seen[p] = b
		// By itself the workspace gives way; who asks for both is told.
		if w := l.origins["workspace"]; p == WorkspacePath && w.Kind != KindDefault && l.ko.String("workspace") != WorkspaceNone {
			bad("%s is where the workspace is mounted (workspace is %s, %s): choose one", quote(p), quote(l.ko.String("workspace")), w)
		}
		if len(b.texts("protect.remove")) > 0 && b.values["protect.defaults"] == false {
			l.report(Problem{Origin: b.origins["protect.remove"], Key: b.key("protect.remove"), Message: "there is nothing to remove, as protect.defaults is false"})
		}
		if len(b.texts("hide.remove")) > 0 && b.values["hide.defaults"] == false {
			l.report(Problem{Origin: b.origins["hide.remove"], Key: b.key("hide.remove"), Message: "there is nothing to remove, as hide.defaults is false"})
		}
	}
}

func (b *block) texts(path string) []string {
	list, _ := b.values[path].([]string)
	return list
}

// checkHere looks for the directories to be mounted.
func (l *loader) checkHere() {
	if !l.src.Here {
		return
	}
	check := func(key, dir string, o Origin) {
		if problem := directoryProblem(dir); problem != "" {
			l.report(Problem{Origin: o, Key: key, Message: problem})
		}
	}
	if w := l.ko.String("workspace"); strings.HasPrefix(w, "/") {
		check("workspace", w, l.origins["workspace"])
	}
	for _, b := range l.blocks["mounts"] {
		if dir := b.text("source"); dir != "" && b.text("provider") == ProviderHostDir {
			check(b.key("source"), dir, b.origins["source"])
		}
	}
}

// directoryProblem says why a host directory cannot be mounted now.
func directoryProblem(dir string) string {
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return quote(dir) + " does not exist: make it, or name another directory"
	case err != nil:
		return fmt.Sprintf("%s cannot be used: %v", quote(dir), rootCause(err))
	case !st.IsDir():
		return quote(dir) + " is no directory: name the one that it lies in"
	}
	return ""
}

func rootCause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
