package vfs

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"sync"
	"syscall"
)

// FromFSOptions shape FromFS; the zero value is useful.
type FromFSOptions struct {
	// UID and GID own every file.
	UID, GID uint32
	// MaxBuffered bounds the memory, in bytes, that open files take together which can
	// neither be read at a position nor sought (those of a zip archive): they are kept
	// whole while they are open. 0 means 64 MiB; beyond it an open fails with ENOMEM.
	MaxBuffered int64
}

// FromFS returns the root of f, read-only: embed.FS, zip.Reader, fstest.MapFS or
// whatever else there is. Symbolic links show as such where f is an fs.ReadLinkFS,
// and as what they lead to elsewhere. A path keeps its inode number; the table of
// these grows with the number of files that were looked at, and so is bounded by f.
// f has to bear calls from several goroutines. For a directory of the host there is
// HostDir: os.DirFS leaves the directory by a link that takes the place of one of
// its directories at the right moment.
func FromFS(f fs.FS, o FromFSOptions) Node {
	if o.MaxBuffered <= 0 {
		o.MaxBuffered = 64 << 20
	}
	return (&fromFS{fs: f, opts: o, inos: map[string]uint64{}}).node(".")
}

type fromFS struct {
	fs   fs.FS
	opts FromFSOptions

	mu       sync.Mutex
	inos     map[string]uint64
	buffered int64
}

func (f *fromFS) node(p string) fromNode { return fromNode{f: f, path: p} }

func (f *fromFS) ino(p string) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, ok := f.inos[p]
	if !ok {
		n = uint64(len(f.inos) + 1)
		f.inos[p] = n
	}
	return n
}

func (f *fromFS) charge(n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n > f.opts.MaxBuffered-f.buffered {
		return syscall.ENOMEM
	}
	f.buffered += n
	return nil
}

func (f *fromFS) attr(p string, info fs.FileInfo) Attr {
	a := Attr{
		Ino: f.ino(p), Nlink: 1, UID: f.opts.UID, GID: f.opts.GID, BlockSize: 4096,
		Size: info.Size(), Blocks: (info.Size() + 511) / 512,
		Atime: info.ModTime(), Mtime: info.ModTime(), Ctime: info.ModTime(),
	}
	perm := info.Mode().Perm() &^ 0o222
	if perm == 0 { // an fs.FS need not know of permissions
		perm = 0o444
	}
	if info.IsDir() {
		a.Nlink, perm = 2, perm|0o111
	}
	a.Mode = info.Mode().Type() | perm
	return a
}

// fromNode is a path in an fs.FS. What changes it is refused by Unsupported.
type fromNode struct {
	Unsupported
	f    *fromFS
	path string
}

func (n fromNode) Attr(context.Context) (Attr, error) {
	info, err := fs.Lstat(n.f.fs, n.path)
	if err != nil {
		return Attr{}, err
	}
	return n.f.attr(n.path, info), nil
}

func (fromNode) SetAttr(context.Context, Change) (Attr, error)       { return Attr{}, syscall.EROFS }
func (fromNode) Unlink(context.Context, string) error                { return syscall.EROFS }
func (fromNode) SetXattr(context.Context, string, []byte, int) error { return syscall.EROFS }

func (n fromNode) Readlink(context.Context) (string, error) { return fs.ReadLink(n.f.fs, n.path) }

func (n fromNode) Lookup(_ context.Context, name string) (Node, error) {
	p := path.Join(n.path, name)
	if !fs.ValidPath(p) { // names that are not UTF-8, for one
		return nil, syscall.ENOENT
	}
	if _, err := fs.Lstat(n.f.fs, p); err != nil {
		return nil, err
	}
	return n.f.node(p), nil
}

func (n fromNode) StatFS(context.Context) (StatFS, error) {
	return StatFS{BlockSize: 4096, MaxName: MaxName}, nil
}

func (n fromNode) OpenDir(context.Context) (Dir, error) {
	list, err := fs.ReadDir(n.f.fs, n.path)
	if err != nil {
		return nil, err
	}
	return fromDir{n, list}, nil
}

// fromDir is a directory as it was when it was opened; a position is an index.
type fromDir struct {
	n    fromNode
	list []fs.DirEntry
}

func (d fromDir) Entries(_ context.Context, pos uint64, most int) ([]DirEntry, error) {
	var out []DirEntry
	for i := pos; i < uint64(len(d.list)) && len(out) < most; i++ {
		e := d.list[i]
		out = append(out, DirEntry{Name: e.Name(), Ino: d.n.f.ino(path.Join(d.n.path, e.Name())), Type: e.Type(), Next: i + 1})
	}
	return out, nil
}

func (fromDir) Sync(context.Context) error { return nil }
func (fromDir) Close() error               { return nil }

func (n fromNode) Open(_ context.Context, flags int) (File, error) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY || flags&syscall.O_TRUNC != 0 {
		return nil, syscall.EROFS
	}
	// Not through a link: its target is for the guest's kernel to find, in the guest.
	info, err := fs.Lstat(n.f.fs, n.path)
	switch {
	case err != nil:
		return nil, err
	case info.Mode()&fs.ModeSymlink != 0:
		return nil, syscall.ELOOP
	case !info.Mode().IsRegular():
		return nil, syscall.EACCES
	}
	file, err := n.f.fs.Open(n.path)
	if err != nil {
		return nil, err
	}
	out := &fromFile{n: n, file: file}
	switch r := file.(type) {
	case io.ReaderAt:
		out.at = r
	case io.ReadSeeker:
		out.at = &seekAt{r: r}
	default:
		if err := out.buffer(); err != nil {
			return nil, errors.Join(err, file.Close())
		}
	}
	return out, nil
}

// fromFile is an open file of an fs.FS.
type fromFile struct {
	UnsupportedFile
	n    fromNode
	file fs.File
	at   io.ReaderAt
	held int64 // bytes of buffer
}

// buffer reads the whole file.
func (f *fromFile) buffer() error {
	info, err := f.file.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	if err := f.n.f.charge(size); err != nil {
		return err
	}
	f.held = size
	b := make([]byte, size)
	k, err := io.ReadFull(f.file, b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.Join(err, f.n.f.charge(-size))
	}
	f.at = bufferAt(b[:k])
	return nil
}

func (f *fromFile) Attr(context.Context) (Attr, error) {
	info, err := f.file.Stat()
	if err != nil {
		return Attr{}, err
	}
	return f.n.f.attr(f.n.path, info), nil
}

func (f *fromFile) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	k, err := f.at.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return k, err
}

func (f *fromFile) Close() error {
	return errors.Join(f.n.f.charge(-f.held), f.file.Close())
}

// bufferAt reads from memory.
type bufferAt []byte

func (b bufferAt) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(b)) {
		return 0, io.EOF
	}
	return copy(p, b[off:]), nil
}

// seekAt reads at positions of what has only one.
type seekAt struct {
	mu sync.Mutex
	r  io.ReadSeeker
}

func (s *seekAt) ReadAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.r.Seek(off, io.SeekStart); err != nil {
		return 0, err
	}
	n, err := io.ReadFull(s.r, p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}
