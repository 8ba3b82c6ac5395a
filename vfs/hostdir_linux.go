package vfs

import (
	"bufio"
	"container/list"
	"fmt"
	"hash/maphash"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// HostDirRoot is the root Node of a host directory, and a Watcher.
type HostDirRoot struct {
	*hostNode
	path string
}

// HostDir serves the host directory at path, read and write.
//
// Everything below the root is reached by descriptor and single names: a name is opened
// with O_PATH|O_NOFOLLOW relative to its directory's descriptor, and all work is done
// on that descriptor. No path is ever put together, and the server follows no symbolic link,
// so whatever is renamed or swapped meanwhile, a name leads to an entry of a directory that the
// guest already reached. Symbolic links are the guest's to resolve, in its own world. Two
// things stay the operator's: path itself is resolved once, links included (Path
// tells where it led), and a directory that the host moves out of the tree can be used by a
// guest that already held it.
//
// Only regular files are opened. Opening a FIFO or device fails with EACCES and a socket
// with ENXIO, without touching it. The guest can make files, directories, symbolic links
// and sockets (a dead socket harms nobody); FIFOs are refused with EPERM because they hang host programs
// that read everything. Setuid and setgid are never added, the sticky bit only to
// directories; bits that are there may stay, except that writing to a file clears setuid and
// setgid. Extended attributes are those in user.*; all others are ENOTSUP.
//
// Files are made as the server's user, or, when that is root, given to the owner of the
// directory at path. Permission bits are the host's, and so are its refusals: EACCES, EROFS,
// ENOSPC and EDQUOT pass through. chown never reaches the host; it is remembered for this
// session, for the latest 65536 files.
//
// The caller closes the root after the server has let go of it.
func HostDir(path string, o HostDirOptions) (*HostDirRoot, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening host directory %s: %w", path, err)
	}
	r, err := newHostRoot(fd, o)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("serving host directory %s: %w", path, err)
	}
	return r, nil
}

func newHostRoot(fd int, o HostDirOptions) (*HostDirRoot, error) {
	st, err := statAt(fd, "")
	if err != nil {
		return nil, err
	}
	if err := refuseKernelFS(fd); err != nil {
		return nil, fmt.Errorf("it is a kernel file system: %w", err)
	}
	var through unix.Stat_t
	if err := unix.Stat(procPath(fd), &through); err != nil || through.Ino != st.Ino {
		return nil, fmt.Errorf("/proc is needed to open files by descriptor: %w", syscall.ENOSYS)
	}
	real, err := os.Readlink(procPath(fd))
	if err != nil {
		return nil, err
	}
	f := &hostFS{
		opts: o, log: o.Logger, seed: maphash.MakeSeed(), umask: processUmask(),
		nodes: map[hostKey]*hostNode{}, numbers: map[uint64]*hostNode{},
		owners: map[hostKey]hostOwner{}, devs: map[uint64]error{},
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	f.maxFDs = handleLimit(o.MaxHandles)
	if os.Geteuid() == 0 && (st.Uid != 0 || st.Gid != 0) {
		f.newOwner = &hostOwner{uid: st.Uid, gid: st.Gid}
	}
	key := keyOf(&st)
	f.root = &hostNode{fs: f, key: key, typ: uint32(st.Mode) & unix.S_IFMT, num: key.ino, fd: fd, refs: 1}
	f.nodes[key], f.numbers[key.ino] = f.root, f.root
	return &HostDirRoot{hostNode: f.root, path: real}, nil
}

// Path returns the directory's real path at the time when it was opened.
func (r *HostDirRoot) Path() string { return r.path }

// Release does nothing: the root lives until Close.
func (r *HostDirRoot) Release() {}

// Close lets go of all descriptors but those of open files. Calls after it fail with ESTALE.
func (r *HostDirRoot) Close() error {
	f := r.fs
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	for e := f.lru.Front(); e != nil; {
		n, next := e.Value.(*hostNode), e.Next()
		if n.pins == 0 {
			n.dropFD()
		}
		e = next
	}
	if f.root.pins == 0 {
		f.root.dropFD()
	}
	return nil
}

// hostFS is what the nodes of one HostDir share.
type hostFS struct {
	opts     HostDirOptions
	log      *slog.Logger
	root     *hostNode
	newOwner *hostOwner // given to new files; nil when they are right already
	umask    uint32     // of this process
	maxFDs   int
	seed     maphash.Seed
	chownLog sync.Once

	mu      sync.Mutex // guards all below and the nodes' tables; held over no call that waits for a disk
	closed  bool
	nodes   map[hostKey]*hostNode
	numbers map[uint64]*hostNode // by Attr.Ino, also nodes whose inode the host has used again
	lru     list.List            // nodes with a descriptor, latest first; never the root
	owners  map[hostKey]hostOwner
	devs    map[uint64]error // verdict on each device met below
	watch   *hostWatch       // nil while nobody watches
}

// hostKey is a host file's identity while it exists.
type hostKey struct{ dev, ino uint64 }

// hostOwner is an owner in the guest's eyes; birth tells a later file with the same inode number apart.
type hostOwner struct {
	uid, gid uint32
	birth    hostBirth
}

// hostBirth is a file's time of creation, zero where the file system keeps none.
type hostBirth struct {
	sec  int64
	nsec uint32
}

func keyOf(st *unix.Statx_t) hostKey {
	return hostKey{dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino}
}

func birthOf(st *unix.Statx_t) hostBirth {
	if st.Mask&unix.STATX_BTIME == 0 {
		return hostBirth{}
	}
	return hostBirth{st.Btime.Sec, st.Btime.Nsec}
}

// statAt stats the entry called name in the directory dfd, or what dfd itself is.
func statAt(dfd int, name string) (unix.Statx_t, error) {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var st unix.Statx_t
	err := again(func() error {
		return unix.Statx(dfd, name, flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
	})
	return st, err
}

// procPath names one of our own descriptors, for calls that take no O_PATH descriptor.
// Only such a path, which no guest has a part in, is ever followed.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// again repeats a call that a signal interrupted, as the os package does.
func again(call func() error) error {
	for {
		if err := call(); err != syscall.EINTR {
			return err
		}
	}
}

// checkHostName refuses what is no single name, should a server have let it pass.
func checkHostName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return syscall.EINVAL
	case len(name) > MaxName:
		return syscall.ENAMETOOLONG
	}
	return nil
}

// handleLimit is the number of node descriptors to keep when asked was asked for.
func handleLimit(asked int) int {
	if asked > 0 {
		return asked
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 64
	}
	return int(max(16, min(hostHandles, lim.Cur/8)))
}

// processUmask reads the umask without changing it; 0 when /proc does not tell.
func processUmask() uint32 {
	file, err := os.Open("/proc/self/status")
	if err != nil {
		return 0
	}
	defer file.Close()
	for s := bufio.NewScanner(file); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "Umask:"); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(v), 8, 32)
			return uint32(n)
		}
	}
	return 0
}

// kernelFS are file systems whose files are handles on the kernel or on processes: writing
// to /proc/self/mem below a mount would rewrite this very server. Magic numbers of statfs(2).
var kernelFS = map[int64]string{
	unix.PROC_SUPER_MAGIC: "proc", unix.SYSFS_MAGIC: "sysfs", unix.DEBUGFS_MAGIC: "debugfs",
	unix.TRACEFS_MAGIC: "tracefs", unix.SECURITYFS_MAGIC: "securityfs", unix.CGROUP_SUPER_MAGIC: "cgroup",
	unix.CGROUP2_SUPER_MAGIC: "cgroup2", unix.DEVPTS_SUPER_MAGIC: "devpts", unix.BPF_FS_MAGIC: "bpf",
	unix.EFIVARFS_MAGIC: "efivarfs", unix.PSTOREFS_MAGIC: "pstore", unix.BINFMTFS_MAGIC: "binfmt_misc",
	unix.SELINUX_MAGIC: "selinuxfs", unix.SMACK_MAGIC: "smackfs", unix.RDTGROUP_SUPER_MAGIC: "resctrl",
	0x62656570: "configfs", 0x65735543: "fusectl", unix.NSFS_MAGIC: "nsfs",
}

func refuseKernelFS(fd int) error {
	var st unix.Statfs_t
	if err := again(func() error { return unix.Fstatfs(fd, &st) }); err != nil {
		return err
	}
	if name, ok := kernelFS[int64(st.Type)]; ok {
		return fmt.Errorf("%s: %w", name, syscall.EACCES)
	}
	return nil
}
