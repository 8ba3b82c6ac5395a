package vfs

import (
	"context"
	"io/fs"
	"syscall"
	"time"
)

// Node is one file, directory, symbolic link or other inode of a provider.
//
// Every method may be called from any goroutine, several at a time. An error is
// a syscall.Errno, wraps one, or wraps one of the io/fs errors; the guest's
// program gets that number (see Errno). A Node that lacks a method embeds
// Unsupported.
//
// Names are single path elements that the server has checked: 1 to MaxName
// bytes, no NUL, no slash, neither "." nor "..". They need not be UTF-8.
type Node interface {
	// Attr describes the node. Attr.Ino names the node: two Nodes of one provider with
	// equal Ino are the same file (hard links), and the server keeps the first.
	Attr(ctx context.Context) (Attr, error)
	// SetAttr changes what c names, at once, and returns the attributes after it.
	SetAttr(ctx context.Context, c Change) (Attr, error)
	// Readlink returns the target of a symbolic link, as it stands.
	Readlink(ctx context.Context) (string, error)
	// Open opens a regular file. flags are Linux open(2) flags; O_CREAT, O_EXCL and
	// O_NOCTTY are never among them, O_TRUNC and O_APPEND may be.
	Open(ctx context.Context, flags int) (File, error)

	// Lookup returns the child called name, syscall.ENOENT if there is none.
	Lookup(ctx context.Context, name string) (Node, error)
	// OpenDir opens a directory for reading.
	OpenDir(ctx context.Context) (Dir, error)
	// Create makes and opens a regular file; with syscall.O_EXCL among flags it must not exist.
	Create(ctx context.Context, name string, flags int, mode fs.FileMode) (Node, File, error)
	Mkdir(ctx context.Context, name string, mode fs.FileMode) (Node, error)
	// Mknod makes a regular file, FIFO or socket. Devices never come here: the server refuses them.
	Mknod(ctx context.Context, name string, mode fs.FileMode) (Node, error)
	Symlink(ctx context.Context, name, target string) (Node, error)
	// Link makes name another name of target, a Node of the same provider.
	Link(ctx context.Context, name string, target Node) (Node, error)
	Unlink(ctx context.Context, name string) error
	Rmdir(ctx context.Context, name string) error
	// Rename moves name to newName in newDir, a Node of the same provider. flags are
	// those of renameat2(2): RENAME_NOREPLACE, RENAME_EXCHANGE.
	Rename(ctx context.Context, name string, newDir Node, newName string, flags uint32) error

	GetXattr(ctx context.Context, name string) ([]byte, error)
	// SetXattr's flags are those of setxattr(2).
	SetXattr(ctx context.Context, name string, value []byte, flags int) error
	ListXattr(ctx context.Context) ([]string, error)
	RemoveXattr(ctx context.Context, name string) error

	// StatFS describes the file system the node lies on.
	StatFS(ctx context.Context) (StatFS, error)
	// Release is called once for each time that a provider returned the Node, when the
	// server drops it. Open Files and Dirs outlive it.
	Release()
}

// File is an open regular file. The server calls Close once, after all other calls ended.
type File interface {
	// ReadAt is io.ReaderAt; fewer bytes than asked for mean the end of the file.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// WriteAt writes all of p or fails. With O_APPEND off is ignored.
	WriteAt(ctx context.Context, p []byte, off int64) (int, error)
	// Attr and SetAttr are fstat and ftruncate and their kin: they work after the file's last name is gone.
	Attr(ctx context.Context) (Attr, error)
	SetAttr(ctx context.Context, c Change) (Attr, error)
	// Sync makes what was written durable; dataOnly is fdatasync(2).
	Sync(ctx context.Context, dataOnly bool) error
	// Allocate is fallocate(2).
	Allocate(ctx context.Context, mode uint32, off, size int64) error
	// Seek finds data or holes: whence is SEEK_DATA or SEEK_HOLE of lseek(2).
	Seek(ctx context.Context, off int64, whence int) (int64, error)
	// Flush is called at each close(2) in the guest of a file that was opened for writing;
	// its error is that close's result.
	Flush(ctx context.Context) error
	Close() error
}

// Dir is an open directory.
type Dir interface {
	// Entries returns the entries at position pos (0 is the beginning), at least one and at most
	// max, without "." and ".."; none and no error is the end. The position of entry i is
	// Next of entry i-1. Entries that were neither made nor removed meanwhile are returned exactly once.
	Entries(ctx context.Context, pos uint64, max int) ([]DirEntry, error)
	Sync(ctx context.Context) error
	Close() error
}

// DirEntry is one name in a directory.
type DirEntry struct {
	Name string
	Ino  uint64
	Type fs.FileMode // type bits only
	Next uint64      // position of the entry after this one; not 0
}

// Attr are a node's attributes.
type Attr struct {
	Ino       uint64
	Mode      fs.FileMode // type, permissions, setuid, setgid and sticky
	Nlink     uint32
	UID, GID  uint32
	Size      int64
	Blocks    int64 // of 512 bytes, as in stat(2)
	BlockSize uint32
	Atime     time.Time
	Mtime     time.Time
	Ctime     time.Time
}

// Change is what SetAttr changes; a nil field stays.
type Change struct {
	Mode         *fs.FileMode // permissions, setuid, setgid and sticky
	UID, GID     *uint32
	Size         *int64
	Atime, Mtime *time.Time
}

// StatFS are the figures of statfs(2).
type StatFS struct {
	BlockSize           uint32
	Blocks, Free, Avail uint64 // in blocks of BlockSize
	Files, FilesFree    uint64
	MaxName             uint32
}

// Caller is the guest's process that a call is made for. The guest's kernel says so;
// a hostile guest can say anything, so it is good for ownership inside the mount, never for access.
type Caller struct{ UID, GID, PID uint32 }

type callerKey struct{}

// WithCaller returns a context that carries c.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerFrom returns the caller in ctx; the zero Caller is root.
func CallerFrom(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// Changed tells a server that something below a provider changed on the host, so
// that the guest's caches are dropped.
type Changed struct {
	Dir  uint64 // Ino of the directory, for a name that appeared, vanished or now means another file
	Name string
	Ino  uint64 // for content or attributes of a file
	// Complete, in a Changed of its own, says that from now on every change is told of
	// names in a directory that the guest looks into, and of what these lead to. The guest
	// may then believe what it knows for longer.
	Complete bool
	// Missed takes that back: changes may go untold.
	Missed bool
}

// Watcher is a provider's root Node that reports changes made behind the server's back.
// It calls changed until ctx ends and then returns.
type Watcher interface {
	Watch(ctx context.Context, changed func(Changed)) error
}

// Bounds on names and values, those of Linux.
const (
	MaxName  = 255   // bytes in a name, NAME_MAX
	MaxPath  = 4095  // bytes in the target of a symbolic link, PATH_MAX without its NUL
	MaxXattr = 65536 // bytes in an attribute's value, XATTR_SIZE_MAX
)

// Unsupported is a Node without any operation: each fails as on a file system that
// does not have it. Embed it in a Node.
type Unsupported struct{}

func (Unsupported) Attr(context.Context) (Attr, error)            { return Attr{}, syscall.ENOSYS }
func (Unsupported) SetAttr(context.Context, Change) (Attr, error) { return Attr{}, syscall.EPERM }
func (Unsupported) Readlink(context.Context) (string, error)      { return "", syscall.EINVAL }
func (Unsupported) Open(context.Context, int) (File, error)       { return nil, syscall.EACCES }
func (Unsupported) Lookup(context.Context, string) (Node, error)  { return nil, syscall.ENOENT }
func (Unsupported) OpenDir(context.Context) (Dir, error)          { return nil, syscall.ENOTDIR }
func (Unsupported) Create(context.Context, string, int, fs.FileMode) (Node, File, error) {
	return nil, nil, syscall.EROFS
}
func (Unsupported) Mkdir(context.Context, string, fs.FileMode) (Node, error) {
	return nil, syscall.EROFS
}
func (Unsupported) Mknod(context.Context, string, fs.FileMode) (Node, error) {
	return nil, syscall.EROFS
}
func (Unsupported) Symlink(context.Context, string, string) (Node, error) {
	return nil, syscall.EROFS
}
func (Unsupported) Link(context.Context, string, Node) (Node, error) { return nil, syscall.EROFS }
func (Unsupported) Unlink(context.Context, string) error             { return syscall.EROFS }
func (Unsupported) Rmdir(context.Context, string) error              { return syscall.EROFS }
func (Unsupported) Rename(context.Context, string, Node, string, uint32) error {
	return syscall.EROFS
}
func (Unsupported) GetXattr(context.Context, string) ([]byte, error) { return nil, syscall.ENOTSUP }
func (Unsupported) SetXattr(context.Context, string, []byte, int) error {
	return syscall.ENOTSUP
}
func (Unsupported) ListXattr(context.Context) ([]string, error) { return nil, nil }
func (Unsupported) RemoveXattr(context.Context, string) error   { return syscall.ENOTSUP }
func (Unsupported) StatFS(context.Context) (StatFS, error)      { return StatFS{}, nil }
func (Unsupported) Release()                                    {}

// UnsupportedFile is a File that can only be closed. Embed it in a File.
type UnsupportedFile struct{}

func (UnsupportedFile) ReadAt(context.Context, []byte, int64) (int, error) {
	return 0, syscall.EBADF
}
func (UnsupportedFile) WriteAt(context.Context, []byte, int64) (int, error) {
	return 0, syscall.EBADF
}
func (UnsupportedFile) Attr(context.Context) (Attr, error) { return Attr{}, syscall.ENOSYS }
func (UnsupportedFile) SetAttr(context.Context, Change) (Attr, error) {
	return Attr{}, syscall.EPERM
}
func (UnsupportedFile) Sync(context.Context, bool) error { return nil }
func (UnsupportedFile) Allocate(context.Context, uint32, int64, int64) error {
	return syscall.ENOTSUP
}
func (UnsupportedFile) Seek(context.Context, int64, int) (int64, error) {
	return 0, syscall.EINVAL
}
func (UnsupportedFile) Flush(context.Context) error { return nil }
func (UnsupportedFile) Close() error                { return nil }

var (
	_ Node = Unsupported{}
	_ File = UnsupportedFile{}
)
