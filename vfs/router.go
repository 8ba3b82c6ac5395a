package vfs

import (
	"context"
	"io/fs"
	"syscall"
	"time"
)

// routerRoot is the directory that holds the mounts' roots. The server looks names
// in it up itself, since they lead to other providers; nothing in it can be changed.
type routerRoot struct {
	Unsupported
	mounts []*mount
	born   time.Time
}

func (r routerRoot) Attr(context.Context) (Attr, error) {
	return Attr{
		Ino: rootIno, Mode: fs.ModeDir | 0o755, Nlink: uint32(2 + len(r.mounts)),
		BlockSize: 4096, Atime: r.born, Mtime: r.born, Ctime: r.born,
	}, nil
}

// rootIno is the root's inode number in its own space, mount 0.
const rootIno = 1

func (routerRoot) SetAttr(context.Context, Change) (Attr, error)              { return Attr{}, syscall.EROFS }
func (routerRoot) Unlink(context.Context, string) error                       { return syscall.EROFS }
func (routerRoot) SetXattr(context.Context, string, []byte, int) error        { return syscall.EROFS }
func (routerRoot) Rename(context.Context, string, Node, string, uint32) error { return syscall.EROFS }

func (routerRoot) StatFS(context.Context) (StatFS, error) {
	return StatFS{BlockSize: 4096, MaxName: MaxName}, nil
}

func (r routerRoot) OpenDir(context.Context) (Dir, error) { return routerDir(r), nil }

// routerDir lists the mounts.
type routerDir routerRoot

func (d routerDir) Entries(ctx context.Context, pos uint64, most int) ([]DirEntry, error) {
	var out []DirEntry
	for i, m := range d.mounts {
		if uint64(i) < pos || len(out) == most {
			continue
		}
		a, err := m.Root.Attr(ctx)
		if err != nil {
			return nil, err
		}
		out = append(out, DirEntry{Name: m.Name, Ino: a.Ino, Type: fs.ModeDir, Next: uint64(i + 1)})
	}
	return out, nil
}

func (routerDir) Sync(context.Context) error { return nil }
func (routerDir) Close() error               { return nil }
