package vfs

import (
	"context"
	"syscall"
	"time"
)

func now() time.Time { return time.Now() }

// memFile is an open file in memory.
type memFile struct {
	n           *memNode
	read, write bool
	appends     bool
}

var _ File = (*memFile)(nil)

// open makes an open file; m.mu is held.
func (n *memNode) open(flags int) (*memFile, error) {
	if !n.mode.IsRegular() {
		return nil, notRegular(n)
	}
	if n.gone {
		return nil, syscall.ESTALE
	}
	f := &memFile{n: n, appends: flags&syscall.O_APPEND != 0}
	switch flags & syscall.O_ACCMODE {
	case syscall.O_RDONLY:
		f.read = true
	case syscall.O_WRONLY:
		f.write = true
	case syscall.O_RDWR:
		f.read, f.write = true, true
	default:
		return nil, syscall.EINVAL
	}
	if flags&syscall.O_TRUNC != 0 {
		if err := n.resize(0, now()); err != nil {
			return nil, err
		}
	}
	n.opens++
	return f, nil
}

func (n *memNode) Open(_ context.Context, flags int) (File, error) {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	f, err := n.open(flags)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (f *memFile) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if !f.read {
		return 0, syscall.EBADF
	}
	if off < 0 {
		return 0, syscall.EINVAL
	}
	f.n.m.mu.RLock()
	defer f.n.m.mu.RUnlock()
	return f.n.data.read(p, off), nil
}

func (f *memFile) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	if !f.write {
		return 0, syscall.EBADF
	}
	n := f.n
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	if f.appends {
		off = n.data.size
	}
	if addOverflows(off, int64(len(p))) {
		return 0, syscall.EINVAL
	}
	if off+int64(len(p)) > maxMemFile {
		return 0, syscall.EFBIG
	}
	if err := n.m.charge(n.data.cost(off, int64(len(p)))); err != nil {
		return 0, err
	}
	n.data.write(p, off)
	t := now()
	n.mtime, n.ctime = t, t
	return len(p), nil
}

func (f *memFile) Attr(ctx context.Context) (Attr, error) { return f.n.Attr(ctx) }

func (f *memFile) SetAttr(ctx context.Context, c Change) (Attr, error) {
	if c.Size != nil && !f.write {
		return Attr{}, syscall.EINVAL // as ftruncate(2)
	}
	return f.n.SetAttr(ctx, c)
}

func (f *memFile) Sync(context.Context, bool) error { return nil }
func (f *memFile) Flush(context.Context) error      { return nil }

func (f *memFile) Allocate(_ context.Context, mode uint32, off, size int64) error {
	switch {
	case !f.write:
		return syscall.EBADF
	case size <= 0 || addOverflows(off, size):
		return syscall.EINVAL
	case off+size > maxMemFile:
		return syscall.EFBIG
	}
	n := f.n
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	end := off + size
	switch mode {
	case 0, FallocKeepSize:
		if err := n.reserve(off, min(end, n.limitFor(mode, end))); err != nil {
			return err
		}
	case FallocPunchHole | FallocKeepSize:
		_ = n.m.charge(-n.data.punch(off, min(end, maxMemFile)))
	case FallocZeroRange, FallocZeroRange | FallocKeepSize:
		_ = n.m.charge(-n.data.punch(off, end))
		if err := n.reserve(off, min(end, n.limitFor(mode, end))); err != nil {
			return err
		}
	default:
		return syscall.ENOTSUP
	}
	if mode&FallocKeepSize == 0 {
		n.data.size = max(n.data.size, end)
	}
	t := now()
	n.mtime, n.ctime = t, t
	return nil
}

// limitFor is how far space is reserved: behind the end of a file that keeps its
// size nothing is kept, since a read finds zeros there anyhow.
func (n *memNode) limitFor(mode uint32, end int64) int64 {
	if mode&FallocKeepSize != 0 {
		return n.data.size
	}
	return end
}

// reserve makes every chunk of the range exist.
func (n *memNode) reserve(off, end int64) error {
	if end <= off {
		return nil
	}
	if end-off > n.m.opts.MaxBytes {
		return syscall.ENOSPC // before its chunks are counted
	}
	if err := n.m.charge(n.data.cost(off, end-off)); err != nil {
		return err
	}
	for off < end {
		from := off % memChunk
		k := min(end-off, memChunk-from)
		n.data.grow(off/memChunk, int(from+k))
		off += k
	}
	return nil
}

func (f *memFile) Seek(_ context.Context, off int64, whence int) (int64, error) {
	n := f.n
	n.m.mu.RLock()
	defer n.m.mu.RUnlock()
	if off < 0 || off >= n.data.size {
		return 0, syscall.ENXIO
	}
	switch whence {
	case SeekData:
		if at := n.data.seekData(off); at >= 0 {
			return at, nil
		}
		return 0, syscall.ENXIO
	case SeekHole:
		return n.data.seekHole(off), nil
	}
	return 0, syscall.EINVAL
}

func (f *memFile) Close() error {
	f.n.m.mu.Lock()
	defer f.n.m.mu.Unlock()
	f.n.opens--
	f.n.drop()
	return nil
}
