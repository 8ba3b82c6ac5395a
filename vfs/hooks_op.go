package vfs

import (
	"io/fs"
	"strconv"
)

// OpKind says what a guest's program asks for.
type OpKind uint8

// The kinds of operations; from OpRead on they are those of open files.
const (
	OpLookup OpKind = iota + 1
	OpGetAttr
	OpSetAttr
	OpReadlink
	OpOpen
	OpOpenDir
	OpReadDir
	OpCreate
	OpMkdir
	OpMknod
	OpSymlink
	OpLink
	OpUnlink
	OpRmdir
	OpRename
	OpGetXattr
	OpSetXattr
	OpListXattr
	OpRemoveXattr
	OpStatFS
	OpRead
	OpWrite
	OpAllocate
	OpSync
	OpFlush // each close(2)
)

var opNames = [...]string{
	OpLookup: "lookup", OpGetAttr: "getattr", OpSetAttr: "setattr", OpReadlink: "readlink", OpOpen: "open",
	OpOpenDir: "opendir", OpReadDir: "readdir", OpCreate: "create", OpMkdir: "mkdir", OpMknod: "mknod",
	OpSymlink: "symlink", OpLink: "link", OpUnlink: "unlink", OpRmdir: "rmdir", OpRename: "rename",
	OpGetXattr: "getxattr", OpSetXattr: "setxattr", OpListXattr: "listxattr", OpRemoveXattr: "removexattr",
	OpStatFS: "statfs", OpRead: "read", OpWrite: "write", OpAllocate: "allocate", OpSync: "sync",
	OpFlush: "flush",
}

func (k OpKind) String() string {
	if int(k) < len(opNames) && opNames[k] != "" {
		return opNames[k]
	}
	return "op " + strconv.Itoa(int(k))
}

// kinds is a set of kinds as bits.
func kinds(list ...OpKind) (bits uint64) {
	for _, k := range list {
		bits |= 1 << k
	}
	return bits
}

// mutations are the kinds that always change something. OpOpen does when it opens for writing.
var mutations = kinds(OpSetAttr, OpCreate, OpMkdir, OpMknod, OpSymlink, OpLink, OpUnlink, OpRmdir, OpRename,
	OpSetXattr, OpRemoveXattr, OpWrite, OpAllocate)

// Op is one operation on its way to a provider.
type Op struct {
	Kind OpKind
	// Path is the file's, relative to the mount's root: "" is the root, "a/b" a file below. Where
	// an operation names an entry (lookup, create, unlink, the source of a rename) it is the
	// entry's. A file whose directory is gone has a Path that begins with "(unreachable)/".
	Path string
	// NewPath is the new name of a rename or link, whose Path is the file that there was before.
	NewPath string
	// Flags are open(2)'s, renameat2(2)'s, setxattr(2)'s or fallocate(2)'s.
	Flags int
	// Mode is that of a new file.
	Mode fs.FileMode
	// Change is a setattr's.
	Change Change
	// Name is an extended attribute's name, Target a new symbolic link's target.
	Name, Target string
	// Off and Bytes are where a read, write or allocation begins and how long it is asked to be.
	Off, Bytes int64
}

// changes reports whether the operation can change something.
func (o *Op) changes() bool {
	return mutations&(1<<o.Kind) != 0 || o.Kind == OpOpen && writes(o.Flags)
}
