package configs

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/adrg/xdg"

	"github.com/gondolin-go/gondolin/images"
	"github.com/gondolin-go/gondolin/sandbox"
)

// kind is the type of a key's value.
type kind string

const (
	kindBool     kind = "true|false"
	kindInt      kind = "number"
	kindSize     kind = "size"
	kindDuration kind = "duration"
	kindEnum     kind = "choice"
	kindText     kind = "text"
	kindPath     kind = "path"
	kindDir      kind = "directory" // like a path; in a file relative to where that lies
	kindVars     kind = "NAME=VALUE"
	kindWords    kind = "list"  // of text
	kindPaths    kind = "paths" // a list; in a file relative to where that lies
	kindNumber   kind = "decimal"
	kindBytes    kind = "bytes"
	kindBlocks   kind = "blocks" // a list whose items have keys of their own
)

// key is one row of the table that file, environment and flags share.
type key struct {
	path   string // in a block of a list: from the block on
	flag   string // without hyphens
	kind   kind
	def    any
	help   string
	values []string                                  // of kindEnum; of kindDir: words that are no directory
	alone  string                                    // what the flag means without a value
	never  bool                                      // of kindDuration: may be `never`
	low    int                                       // of kindInt and, in seconds, kindDuration, with high
	high   int                                       // 0: check judges
	check  func(v any, text string) (problem string) // what is wrong with a value of the right type; of kindWords, with each word

	list *list // of kindBlocks

	// In a block of a list:
	need     bool                            // it has no default
	optional bool                            // it has none and may be missing; a list that is there is not empty then
	quiet    bool                            // its value appears in no message
	short    bool                            // a list in the place of its section is this key
	applies  func(b *block) (problem string) // why the block cannot have it
}

// sessionEnv is the one key with free names below it.
const sessionEnv = "session.env"

// limit builds the check of a limit, which package sandbox judges.
func limit[T ~int](fill func(*sandbox.Limits, int)) func(any, string) string {
	return func(v any, text string) string {
		n := int(v.(T))
		if n == 0 {
			// To sandbox this is "the default", which a file says by leaving the key out.
			return "0 is out of range: leave the key out to get the default"
		}
		var l sandbox.Limits
		fill(&l, n)
		errs := l.Check()
		if len(errs) == 0 {
			return ""
		}
		_, allowed, _ := strings.Cut(strings.TrimSuffix(errs[0].Error(), ": "+sandbox.ErrInvalid.Error()), ": ")
		if _, isSize := v.(Size); isSize {
			allowed += " MiB"
		}
		return fmt.Sprintf("%s is out of range: %s", text, allowed)
	}
}

// year is the longest time that makes sense, in seconds.
const year = 365 * 24 * 3600

var hostnameForm = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$`)

var userForm = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_.@-]{0,63}\$?|[0-9]{1,10})(:([A-Za-z_][A-Za-z0-9_.@-]{0,63}\$?|[0-9]{1,10}))?$`)

// checkUser looks at the form alone: who exists is for the image to say.
func checkUser(v any, text string) string {
	name := v.(string)
	if name == "" {
		return ""
	}
	if !userForm.MatchString(name) {
		return quote(text) + " is no user: use a name or a uid, and after a colon a group if you like, such as node, 1000 or 1000:1000"
	}
	for part := range strings.SplitSeq(name, ":") {
		if n, err := strconv.ParseUint(part, 10, 64); err == nil && n >= math.MaxUint32 {
			return quote(text) + " is no user: a uid or gid is below 4294967295"
		}
	}
	return ""
}

// runtimeMost is what a socket's path leaves for the directory: the kernel takes
// 107 bytes, on macOS 103, and the session and the port have their names below it.
const runtimeMost = 60

// keys are all keys, in the order in which they are shown. `version` belongs to
// files alone and is read apart.
var keys = table{
	{path: "image.name", flag: "image", kind: kindText, def: images.DefaultTag, help: "image that sessions run: a name, an id or the beginning of one", check: notEmpty},
	{path: "image.auto_build", flag: "auto-build", kind: kindBool, def: true, help: "build the default image at the first session when it is missing"},

	{path: "session.root", flag: "root", kind: kindEnum, def: sandbox.RootCOW, values: []string{string(sandbox.RootCOW), string(sandbox.RootMemory), string(sandbox.RootReadOnly)},
		help: "where writes to the root file system go: cow (scratch disk), memory or readonly"},
	{path: "session.hostname", flag: "hostname", kind: kindText, def: "", help: "host name of the machine (default: gondolin- and the session's id)", check: func(v any, text string) string {
		if v != "" && !hostnameForm.MatchString(v.(string)) {
			return quote(text) + " is no host name: use 1 to 63 letters, digits and inner hyphens"
		}
		return ""
	}},
	{path: "session.user", flag: "user", kind: kindText, def: "", help: "user of commands unless a call names one: a name or uid[:gid] (default: the image's, or root)", check: checkUser},
	{path: "session.dir", flag: "dir", kind: kindText, def: "", help: "working directory in the machine (default: /workspace if something is mounted there, else the image's, or /root)", check: func(v any, text string) string {
		if s := v.(string); s != "" && !strings.HasPrefix(s, "/") {
			return quote(text) + " is not absolute: it is a path in the machine and begins with /"
		}
		return ""
	}},
	{path: sessionEnv, flag: "env", kind: kindVars, help: "environment variable of every command, may be given several times"},

	{path: "workspace", flag: "workspace", kind: kindDir, values: []string{WorkspaceRoots, WorkspaceCWD, WorkspaceNone}, def: WorkspaceRoots, alone: WorkspaceCWD,
		help: "what is mounted at /workspace: roots (those of the client), cwd (the working directory, also without a value), none, or a directory", check: notEmpty},
	{path: "mounts", kind: kindBlocks, list: mountList, help: "directories of the machine whose files this machine serves"},

	{path: "network.profiles", kind: kindBlocks, list: profileList, help: "sets of rules that come after network.rules"},
	{path: "network.rules", kind: kindBlocks, list: ruleList, help: "what the machine may reach; the first rule that matches decides"},
	{path: "network.dns", flag: "dns", kind: kindEnum, def: DNSSynthetic, values: []string{DNSSynthetic, DNSTrusted, DNSOpen}, help: "answers to lookups: synthetic (none leaves this computer), trusted or open"},
	{path: "network.maps", kind: kindBlocks, list: mapList, help: "TCP ports that lead to a place of your choice"},
	{path: "network.known_hosts", flag: "ssh-known-hosts", kind: kindPaths, def: []string{}, help: "files with the keys of SSH servers, parted by commas or the flag several times"},
	{path: "network.ssh_agent", flag: "ssh-agent", kind: kindBool, def: false, help: "use the SSH agent of this computer for what a rule allows"},
	{path: "network.ssh_keys", kind: kindPaths, def: []string{}, help: "files with private keys for SSH"},
	{path: "network.upstream_ca", kind: kindPaths, def: []string{}, help: "files with certificates of more authorities that servers may have"},
	{path: "network.proxy", kind: kindEnum, def: ProxyEnvironment, values: []string{ProxyEnvironment, ProxyNone}, help: "how connections leave this computer: environment (through HTTPS_PROXY and its kin, if set) or none"},
	{path: "network.limits.flows", kind: kindInt, low: 1, high: 4096, def: 512, help: "connections of a session at once"},
	{path: "network.limits.half_open", kind: kindInt, low: 1, high: 4096, def: 128, help: "connections of a session that are being set up"},
	{path: "network.limits.names", kind: kindInt, low: 16, high: 16384, def: 4096, help: "names that a session may have looked up"},
	{path: "network.limits.sniff", kind: kindDuration, low: 1, high: 60, def: Duration(15 * time.Second), help: "time in which a connection has to tell its protocol"},
	{path: "network.limits.idle", kind: kindDuration, low: 1, high: 24 * 3600, def: Duration(5 * time.Minute), help: "time without a byte after which a connection ends"},
	{path: "secrets", kind: kindBlocks, list: secretList, help: "secrets that are put into requests outside of the machine"},

	{path: "ingress.expose", flag: "expose", kind: kindBool, def: true, help: "let agents give you URLs, on this computer alone, for HTTP servers of their machine"},
	{path: "ingress.listen", kind: kindBlocks, list: listenList, help: "addresses of this computer that lead to HTTP servers of the machine"},
	{path: "ingress.hosts", kind: kindWords, def: []string{}, help: "more names that requests may give these addresses", check: checkIngressHost},
	{path: "ssh.enabled", flag: "ssh", kind: kindBool, def: false, help: "let you into each session over SSH, from this computer alone; the log says how"},
	{path: "ssh.forward", flag: "ssh-forward", kind: kindBool, def: false, help: "let SSH connect to ports of the machine's loopback, as editors need it"},

	{path: "audit.enabled", flag: "audit", kind: kindBool, def: true, help: "keep a record of each session and of each decision about its network"},
	{path: "audit.dir", flag: "audit-dir", kind: kindPath, def: "", help: "directory of the records (default: gondolin/audit in the user's state directory)"},
	{path: "audit.file_size", kind: kindSize, def: Size(16), help: "size at which a record goes on in another file", check: func(v any, text string) string {
		if n := v.(Size); n < 1 || n > 1024 {
			return text + " is out of range: use 1MiB to 1GiB"
		}
		return ""
	}},
	{path: "audit.files", kind: kindInt, low: 2, high: 1000, def: 16, help: "files of one session; the oldest are removed"},
	{path: "audit.keep", kind: kindDuration, never: true, low: 3600, high: 10 * year, def: Duration(90 * 24 * time.Hour), help: "time after which the record of a session that ended is removed"},

	{path: "metrics.listen", flag: "metrics", kind: kindText, def: "", help: "address and port to serve figures for Prometheus at, such as 127.0.0.1:9464 (default: nowhere)", check: checkListen},
	{path: "metrics.exposed", kind: kindBool, def: false, help: "metrics.listen may be an address that other computers reach"},

	{path: "limits.cpus", flag: "cpus", kind: kindInt, def: sandbox.DefaultLimits.CPUs, help: "virtual CPUs of a session",
		check: limit[int](func(l *sandbox.Limits, n int) { l.CPUs = n })},
	{path: "limits.memory", flag: "memory", kind: kindSize, def: Size(sandbox.DefaultLimits.MemoryMiB), help: "memory of a session, such as 2GiB",
		check: limit[Size](func(l *sandbox.Limits, n int) { l.MemoryMiB = n })},
	{path: "limits.disk", flag: "disk", kind: kindSize, def: Size(sandbox.DefaultLimits.DiskMiB), help: "scratch disk of a session, such as 16GiB",
		check: limit[Size](func(l *sandbox.Limits, n int) { l.DiskMiB = n })},
	{path: "limits.processes", flag: "processes", kind: kindInt, def: sandbox.DefaultLimits.Processes, help: "processes and threads of a session",
		check: limit[int](func(l *sandbox.Limits, n int) { l.Processes = n })},
	{path: "limits.wall", flag: "wall", kind: kindDuration, never: true, low: 1, high: year, def: Duration(sandbox.DefaultLimits.Wall), help: "age at which a session ends"},
	{path: "limits.idle", flag: "idle", kind: kindDuration, never: true, low: 1, high: year, def: Duration(sandbox.DefaultLimits.Idle), help: "time without a call after which a session ends"},

	{path: "sessions.max", flag: "max-sessions", kind: kindInt, low: 1, high: 1000, def: sandbox.DefaultMaxSessions, help: "sessions that may exist at once"},
	{path: "sessions.templates", flag: "templates", kind: kindBool, def: true, help: "clone sessions from a booted machine instead of booting each"},
	{path: "pool.size", flag: "pool", kind: kindInt, low: 0, high: 64, def: 0, help: "sessions that stand ready, stopped, beside those in use"},
	{path: "pool.memory", flag: "pool-memory", kind: kindSize, def: Size(4096), help: "bound on limits.memory of all sessions that stand ready", check: func(v any, text string) string {
		if v.(Size) <= 0 {
			return text + " is out of range: give a size, or set pool.size to 0 for no pool"
		}
		return ""
	}},
	{path: "exec.timeout_max", flag: "max-timeout", kind: kindDuration, low: 1, high: year, def: Duration(time.Hour), help: "longest time that an agent may give a command"},

	{path: "qemu.binary", flag: "qemu", kind: kindText, def: "", help: "name or path of QEMU (default: by architecture)"},
	{path: "qemu.accelerator", flag: "accelerator", kind: kindEnum, def: "auto", values: []string{"auto", "kvm", "hvf", "tcg"}, help: "auto, kvm, hvf or tcg; auto finds out what works"},
	{path: "qemu.boot_timeout", flag: "boot-timeout", kind: kindDuration, low: 1, high: 3600, def: Duration(sandbox.DefaultBootTimeout), help: "time that a machine has to boot"},

	{path: "paths.cache", flag: "cache-dir", kind: kindPath, def: "", help: "directory of images and other things that can be made again"},
	{path: "paths.runtime", flag: "runtime-dir", kind: kindPath, def: "", help: "directory of sockets, at most 60 bytes long"},

	{path: "log.level", flag: "log-level", kind: kindEnum, def: "info", values: []string{"debug", "info", "warn", "error"}, help: "debug, info, warn or error"},
	{path: "log.format", flag: "log-format", kind: kindEnum, def: "text", values: []string{"text", "json"}, help: "text or json"},
	{path: "log.file", flag: "log-file", kind: kindPath, def: "", help: "file to log to (default: standard error)"},
}

// fallback is what an empty path means.
func fallback(path string) string {
	switch path {
	case "paths.cache":
		return filepath.Join(xdg.CacheHome, "gondolin")
	case "paths.runtime":
		return sandbox.DefaultRuntimeDir()
	case "audit.dir":
		return filepath.Join(xdg.StateHome, "gondolin", "audit")
	}
	return ""
}

// name is the last part of the path.
func (k *key) name() string { return k.path[strings.LastIndex(k.path, ".")+1:] }

// env is the name of the environment variable.
func (k *key) env() string { return envPrefix + strings.ToUpper(strings.ReplaceAll(k.path, ".", "_")) }

func notEmpty(v any, _ string) string {
	if v.(string) == "" {
		return "it must not be empty"
	}
	return ""
}

// looksLikePath tells a directory from a misspelt word.
func looksLikePath(text string) bool {
	return strings.Contains(text, "/") || text == "." || text == ".." || text == "~"
}

// parse turns text into the key's value, or says what is wrong with it.
func (k *key) parse(text string) (v any, hint string, err error) {
	switch k.kind {
	case kindBool:
		v, err = parseBool(text)
	case kindInt:
		v, err = parseInt(text)
	case kindSize:
		v, err = parseSize(text)
	case kindDuration:
		v, err = parseDuration(text)
	case kindNumber:
		v, err = parseNumber(text)
	case kindBytes:
		v, err = parseBytes(text)
	case kindEnum:
		if !slices.Contains(k.values, text) {
			if m := nearest(text, k.values); m != "" {
				hint = "did you mean " + m + "?"
			}
			err = fmt.Errorf("%s is unknown, use %s", quote(text), strings.Join(k.values, ", "))
		}
		v = text
	case kindDir:
		v = text
		if len(k.values) > 0 && !slices.Contains(k.values, text) && text != "" && !looksLikePath(text) {
			if m := nearest(text, k.values); m != "" {
				hint = "did you mean " + m + "?"
			}
			err = fmt.Errorf("%s is unknown, use %s, or a directory with a slash in it, such as ./%s", quote(text), strings.Join(k.values, ", "), shortened(text))
		}
		if strings.ContainsRune(text, 0) {
			err = fmt.Errorf("%s contains a NUL", quote(text))
		}
	default:
		if strings.ContainsRune(text, 0) {
			err = fmt.Errorf("%s contains a NUL", quote(text))
		}
		v = text
	}
	if err != nil {
		return nil, hint, err
	}
	if problem := k.judge(v, text); problem != "" {
		return nil, "", errors.New(problem)
	}
	return v, "", nil
}

// judge checks the range of a value of the right type.
func (k *key) judge(v any, text string) string {
	switch v := v.(type) {
	case int:
		if k.high != 0 && (v < k.low || v > k.high) {
			return fmt.Sprintf("%d is out of range: use %d to %d", v, k.low, k.high)
		}
	case Duration:
		if v == Never && !k.never {
			return "it cannot be never: give a duration"
		}
		low, high := Duration(time.Duration(k.low)*time.Second), Duration(time.Duration(k.high)*time.Second)
		if v != Never && (v < low || v > high) {
			or := ""
			if k.never {
				or = ", or never"
			}
			return fmt.Sprintf("%s is out of range: use %s to %s%s", quote(text), low, high, or)
		}
	}
	if k.check != nil {
		return k.check(v, text)
	}
	return ""
}
