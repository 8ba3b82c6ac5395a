//go:build linux

package sandboxd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/near"
	"github.com/gondolin-go/gondolin/guest/wire"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// account is a user of the guest.
type account struct {
	name, home, shell string
	uid, gid          uint32
	groups            []uint32
}

// accounts remembers look-ups for as long as the files that they come from are
// the same: reading those costs more than starting a short command should.
var accounts struct {
	sync.Mutex
	stamp [2]fileStamp
	known map[string]*account
}

const maxAccounts = 64

// accountOf returns the account that spec names; see lookupAccount.
func accountOf(spec string) (*account, error) {
	if spec == "" {
		spec = "root"
	}
	stamp := [2]fileStamp{stampOf("/etc/passwd"), stampOf("/etc/group")}
	accounts.Lock()
	defer accounts.Unlock()
	if accounts.known == nil || accounts.stamp != stamp || len(accounts.known) >= maxAccounts {
		accounts.stamp, accounts.known = stamp, map[string]*account{}
	}
	if acc := accounts.known[spec]; acc != nil {
		return acc, nil
	}
	acc, err := lookupAccount(spec)
	if err == nil {
		accounts.known[spec] = acc
	}
	return acc, err
}

// fileStamp changes when a file does.
type fileStamp struct {
	ino          uint64
	size         int64
	mtime, ctime unix.Timespec
}

func stampOf(path string) fileStamp {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return fileStamp{}
	}
	return fileStamp{st.Ino, st.Size, st.Mtim, st.Ctim}
}

// lookupAccount resolves NAME, UID, and either with :GROUP or :GID. A number
// need not be in /etc/passwd.
func lookupAccount(spec string) (*account, error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	acc := &account{name: name, home: "/", shell: "/bin/sh"}
	u, err := user.Lookup(name)
	if err != nil {
		u, err = user.LookupId(name)
	}
	switch n, perr := strconv.ParseUint(name, 10, 32); {
	case err == nil:
		uid, _ := strconv.ParseUint(u.Uid, 10, 32)
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		acc.name, acc.home, acc.uid, acc.gid = u.Username, u.HomeDir, uint32(uid), uint32(gid)
	case perr == nil:
		acc.uid, acc.gid = uint32(n), uint32(n)
	case name == "root": // an image without /etc/passwd
		acc.home = "/root"
	default:
		return nil, fmt.Errorf("no user %q in the guest's /etc/passwd; use a name from there or a numeric uid", name)
	}
	if acc.home == "" {
		acc.home = "/"
	}
	if hasGroup {
		gid, err := lookupGroup(group)
		if err != nil {
			return nil, err
		}
		acc.gid = gid
		return acc, nil
	}
	if u != nil {
		ids, _ := u.GroupIds()
		for _, id := range ids {
			if n, err := strconv.ParseUint(id, 10, 32); err == nil {
				acc.groups = append(acc.groups, uint32(n))
			}
		}
	}
	return acc, nil
}

func lookupGroup(name string) (uint32, error) {
	id := name
	if g, err := user.LookupGroup(name); err == nil {
		id = g.Gid
	}
	n, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("no group %q in the guest's /etc/group", name)
	}
	return uint32(n), nil
}

// environment returns a command's environment; later entries win.
func environment(acc *account, extra []string, tty bool) []string {
	env := []string{
		"PATH=" + defaultPath, "HOME=" + acc.home, "USER=" + acc.name, "LOGNAME=" + acc.name,
		"SHELL=" + acc.shell, "LANG=C.UTF-8",
	}
	env = append(env, near.Environment()...)
	if tty {
		env = append(env, "TERM=xterm-256color")
	}
	index := make(map[string]int, len(env)+len(extra))
	for i, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		index[name] = i
	}
	for _, kv := range extra {
		name, _, _ := strings.Cut(kv, "=")
		if i, ok := index[name]; ok {
			env[i] = kv
			continue
		}
		index[name] = len(env)
		env = append(env, kv)
	}
	return env
}

func getenv(env []string, name string) string {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// commandLine returns the program's path and argument list.
func commandLine(req *wire.Start, dir string, env []string) (string, []string, *wire.Error) {
	switch {
	case req.Part == wire.PartSFTP && len(req.Argv) == 0 && req.Shell == "":
		// This program, also where the command's user may not look at it by another name.
		return "/proc/self/exe", []string{"sandboxssh", req.Part}, nil
	case (len(req.Argv) == 0) == (req.Shell == "") || req.Part != "":
		return "", nil, &wire.Error{Code: wire.CodeInvalid, Msg: "give exactly one of argv and shell"}
	case req.Shell != "":
		for _, shell := range []string{"/bin/bash", "/usr/bin/bash", "/bin/sh"} {
			if executable(shell) == nil {
				return shell, []string{filepath.Base(shell), "-c", req.Shell}, nil
			}
		}
		return "", nil, spawnError("/bin/sh", unix.ENOENT, "the image has no shell; give argv instead of a shell command")
	}
	name := req.Argv[0]
	if strings.Contains(name, "/") {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		if err := executable(path); err != nil {
			return "", nil, spawnError(name, err, "")
		}
		return path, req.Argv, nil
	}
	found := error(unix.ENOENT)
	for _, d := range filepath.SplitList(getenv(env, "PATH")) {
		if d == "" {
			continue
		}
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		err := executable(filepath.Join(d, name))
		if err == nil {
			return filepath.Join(d, name), req.Argv, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			found = err
		}
	}
	if errors.Is(found, fs.ErrNotExist) {
		return "", nil, spawnError(name, unix.ENOENT, fmt.Sprintf("command not found in PATH (%s)", getenv(env, "PATH")))
	}
	return "", nil, spawnError(name, found, "")
}

func executable(path string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return errnoOf(err)
	case st.IsDir():
		return unix.EISDIR
	case st.Mode()&0o111 == 0:
		return unix.EACCES
	}
	return nil
}

// workDir checks the directory that a command is to start in.
func workDir(dir string) *wire.Error {
	st, err := os.Stat(dir)
	switch {
	case err != nil:
		return &wire.Error{Code: wire.CodeSpawn, Errno: unix.ErrnoName(errnoOf(err)), Path: dir, Msg: "working directory: " + errnoOf(err).Error()}
	case !st.IsDir():
		return &wire.Error{Code: wire.CodeSpawn, Errno: "ENOTDIR", Path: dir, Msg: "working directory: not a directory"}
	}
	return nil
}

func spawnError(what string, err error, msg string) *wire.Error {
	errno := errnoOf(err)
	if msg == "" {
		switch errno {
		case unix.EACCES:
			msg = "permission denied: not executable, or a directory on its way or the working directory is closed to this user"
		case unix.ENOEXEC:
			msg = "exec format error: not a program for this machine, or a script without a #! line"
		case unix.ENOENT:
			msg = "no such file (or the interpreter or loader that it names is missing)"
		case unix.EAGAIN:
			msg = "the session's limit of processes is reached; end some, or raise limits.processes"
		case unix.E2BIG:
			msg = "arguments and environment are too long; pass data through stdin or a file"
		default:
			msg = errno.Error()
		}
	}
	return &wire.Error{Code: wire.CodeSpawn, Errno: unix.ErrnoName(errno), Path: what, Msg: msg}
}

// errnoOf digs the system call's error out of err.
func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return unix.EIO
}
