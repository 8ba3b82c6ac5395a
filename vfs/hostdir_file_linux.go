package vfs

import (
	"context"
	"encoding/binary"
	"io"
	"io/fs"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

var (
	_ File = (*hostFile)(nil)
	_ Dir  = (*hostDir)(nil)
)

// hostFile is an open regular file.
type hostFile struct {
	node *hostNode
	fd   int
}

// newFile makes a File of fd, which it owns from then on.
func (n *hostNode) newFile(fd int) *hostFile {
	file := &hostFile{node: n, fd: fd}
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	n.files = append(n.files, file)
	return file
}

func (f *hostFile) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		var n int
		err := again(func() (err error) {
			n, err = unix.Pread(f.fd, p[done:], off+int64(done))
			return err
		})
		if err != nil {
			return done, err
		}
		if n == 0 {
			break // the end of the file
		}
		done += n
	}
	return done, nil
}

// WriteAt leaves O_APPEND to the host's kernel, which ignores the offset.
func (f *hostFile) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		var n int
		err := again(func() (err error) {
			n, err = unix.Pwrite(f.fd, p[done:], off+int64(done))
			return err
		})
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

func (f *hostFile) Attr(context.Context) (Attr, error) { return f.node.attr(f.fd) }

func (f *hostFile) SetAttr(_ context.Context, c Change) (Attr, error) {
	return f.node.change(f.fd, c, func(size int64) error { return unix.Ftruncate(f.fd, size) })
}

func (f *hostFile) Sync(_ context.Context, dataOnly bool) error {
	if dataOnly {
		return again(func() error { return unix.Fdatasync(f.fd) })
	}
	return again(func() error { return unix.Fsync(f.fd) })
}

func (f *hostFile) Allocate(_ context.Context, mode uint32, off, size int64) error {
	return again(func() error { return unix.Fallocate(f.fd, mode, off, size) })
}

func (f *hostFile) Seek(_ context.Context, off int64, whence int) (int64, error) {
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, syscall.EINVAL
	}
	return unix.Seek(f.fd, off, whence)
}

// Flush reports what a close(2) would: file systems such as NFS tell only then that a write failed.
func (f *hostFile) Flush(context.Context) error {
	fd, err := unix.FcntlInt(uintptr(f.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil // no descriptor to spare is no failed write
	}
	if err := unix.Close(fd); err != nil && err != syscall.EINTR {
		return err
	}
	return nil
}

func (f *hostFile) Close() error {
	fs := f.node.fs
	fs.mu.Lock()
	f.node.files = slices.DeleteFunc(f.node.files, func(o *hostFile) bool { return o == f })
	fs.mu.Unlock()
	return unix.Close(f.fd)
}

// hostDir is an open directory. Its positions are the host's d_off cookies. It keeps no
// entries between calls, so that many open directories cost nothing but descriptors.
type hostDir struct {
	node *hostNode
	fd   int

	mu sync.Mutex
	at uint64 // the descriptor's position
}

// direntBuf are the buffers for getdents64, of 64 KiB: some 2000 names.
var direntBuf = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

func (d *hostDir) Entries(_ context.Context, pos uint64, most int) ([]DirEntry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	store := direntBuf.Get().(*[]byte)
	defer direntBuf.Put(store)
	// About as much as is asked for: what does not fit is read again.
	buf := (*store)[:min(len(*store), max(4<<10, most*48))]
	for {
		if d.at != pos {
			if _, err := unix.Seek(d.fd, int64(pos), io.SeekStart); err != nil {
				return nil, err
			}
			d.at = pos
		}
		var n int
		err := again(func() (err error) {
			n, err = unix.Getdents(d.fd, buf)
			return err
		})
		if n == 0 || err == syscall.ENOENT { // the latter in a directory that was removed
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		out, last := d.parse(buf[:n], most)
		d.at = last.Next
		if len(out) > 0 {
			return out, nil
		}
		pos = last.Next // nothing but "." and ".."
	}
}

// parse decodes up to most records of linux_dirent64, and the position of the last in buf.
func (d *hostDir) parse(buf []byte, most int) (out []DirEntry, last DirEntry) {
	f := d.node.fs
	for len(buf) > 19 {
		size := int(binary.NativeEndian.Uint16(buf[16:]))
		rec := buf[:size]
		buf = buf[size:]
		last.Next = binary.NativeEndian.Uint64(rec[8:])
		name := rec[19:]
		if i := slices.Index(name, 0); i >= 0 {
			name = name[:i]
		}
		if string(name) == "." || string(name) == ".." || len(out) == most {
			continue
		}
		e := DirEntry{Name: string(name), Ino: binary.NativeEndian.Uint64(rec), Next: last.Next}
		typ := uint32(rec[18]) << 12
		if typ == 0 { // DT_UNKNOWN
			if st, err := statAt(d.fd, e.Name); err == nil {
				typ = uint32(st.Mode) & unix.S_IFMT
			}
		}
		e.Type = goMode(typ) & fs.ModeType
		out = append(out, e)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range out {
		key := hostKey{d.node.key.dev, out[i].Ino}
		if n := f.nodes[key]; n != nil {
			out[i].Ino = n.num
		} else {
			out[i].Ino = f.number(key, false)
		}
	}
	return out, last
}

func (d *hostDir) Sync(context.Context) error {
	return again(func() error { return unix.Fsync(d.fd) })
}

func (d *hostDir) Close() error { return unix.Close(d.fd) }
