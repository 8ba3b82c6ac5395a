//go:build linux

package sandboxd

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// files answers the requests that work on files. They act as root.
type files struct {
	// commit makes "compare, then replace" one step for all writers that come
	// through the agent.
	commit sync.Mutex
}

func (f *files) answer(ctx context.Context, stream net.Conn, req *wire.Request) {
	switch req.Op {
	case wire.OpStat:
		call(stream, req, func(m *wire.Path) (any, *wire.Error) {
			info, err := stat(m.Path, m.NoFollow)
			if err != nil {
				return nil, errnoError(m.Path, err)
			}
			return info, nil
		})
	case wire.OpMkdir:
		call(stream, req, mkdir)
	case wire.OpRename:
		call(stream, req, rename)
	case wire.OpRemove:
		call(stream, req, remove)
	case wire.OpReadDir:
		serve(stream, req, func(m *wire.Path) *wire.Error { return readDir(ctx, stream, m) })
	case wire.OpRead:
		serve(stream, req, func(m *wire.Read) *wire.Error { return readFile(stream, m) })
	case wire.OpWrite:
		serve(stream, req, func(m *wire.Write) *wire.Error { return f.write(stream, m) })
	case wire.OpGlob:
		serve(stream, req, func(m *wire.Glob) *wire.Error { return glob(watched(ctx, stream), stream, m) })
	case wire.OpGrep:
		serve(stream, req, func(m *wire.Grep) *wire.Error { return grep(watched(ctx, stream), stream, m) })
	case wire.OpPack:
		serve(stream, req, func(m *wire.Path) *wire.Error { return pack(stream, m) })
	case wire.OpUnpack:
		serve(stream, req, func(m *wire.Unpack) *wire.Error { return unpack(stream, m) })
	default:
		_ = wire.SendReply(stream, nil, badRequest("unknown operation %q", req.Op))
	}
}

// watched returns a context that ends when the host closes the stream.
func watched(ctx context.Context, stream net.Conn) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		<-closed(stream)
		cancel()
	}()
	return ctx
}

func stat(path string, nofollow bool) (wire.FileInfo, error) {
	var info fs.FileInfo
	var err error
	if nofollow {
		info, err = os.Lstat(path)
	} else {
		info, err = os.Stat(path)
	}
	if err != nil {
		return wire.FileInfo{}, err
	}
	return describe(filepath.Base(path), path, info), nil
}

// describe turns what lstat says of the file at path into a message.
func describe(name, path string, info fs.FileInfo) wire.FileInfo {
	out := wire.FileInfo{Name: name, Size: info.Size(), Mode: uint32(info.Mode().Perm()), MtimeNS: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		out.UID, out.GID, out.Mode = st.Uid, st.Gid, st.Mode&0o7777
	}
	switch m := info.Mode(); {
	case m.IsDir():
		out.Type = "dir"
	case m&fs.ModeSymlink != 0:
		out.Type = "symlink"
		out.Target, _ = os.Readlink(path)
	case m&fs.ModeNamedPipe != 0:
		out.Type = "pipe"
	case m&fs.ModeSocket != 0:
		out.Type = "socket"
	case m&fs.ModeDevice != 0:
		out.Type = "device"
	default:
		out.Type = "file"
	}
	return out
}

func mkdir(m *wire.Path) (any, *wire.Error) {
	mode := fs.FileMode(0o755)
	if m.Mode != nil {
		mode = fs.FileMode(*m.Mode & 0o777)
	}
	acc, err := accountOf(m.User)
	if err != nil {
		return nil, badRequest("%v", err)
	}
	if m.Recursive {
		err = mkdirAll(m.Path, mode, acc)
	} else if err = os.Mkdir(m.Path, mode); err == nil {
		err = os.Chown(m.Path, int(acc.uid), int(acc.gid))
	}
	if err != nil {
		return nil, errnoError(m.Path, err)
	}
	return nil, nil
}

// mkdirAll makes a directory and its missing parents, owned by acc.
func mkdirAll(path string, mode fs.FileMode, acc *account) error {
	st, err := os.Stat(path)
	if err == nil {
		if !st.IsDir() {
			return unix.ENOTDIR
		}
		return nil
	}
	if parent := filepath.Dir(path); parent != path {
		if err := mkdirAll(parent, mode, acc); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, mode); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	return os.Chown(path, int(acc.uid), int(acc.gid))
}

func rename(m *wire.Rename) (any, *wire.Error) {
	flags := uint(unix.RENAME_NOREPLACE)
	if m.Replace {
		flags = 0
	}
	err := unix.Renameat2(unix.AT_FDCWD, m.From, unix.AT_FDCWD, m.To, flags)
	if errors.Is(err, unix.EXDEV) {
		return nil, &wire.Error{Code: wire.CodeErrno, Errno: "EXDEV", Path: m.From, Msg: "source and target are on different file systems; copy and remove instead"}
	}
	if err != nil {
		path := m.From
		if errors.Is(err, unix.EEXIST) {
			path = m.To
		}
		return nil, errnoError(path, err)
	}
	return nil, nil
}

func remove(m *wire.Path) (any, *wire.Error) {
	if filepath.Clean(m.Path) == "/" {
		return nil, badRequest("the root directory cannot be removed")
	}
	if _, err := os.Lstat(m.Path); err != nil {
		return nil, errnoError(m.Path, err)
	}
	var err error
	if m.Recursive {
		err = os.RemoveAll(m.Path)
	} else {
		err = os.Remove(m.Path)
	}
	if errors.Is(err, unix.ENOTEMPTY) {
		return nil, &wire.Error{Code: wire.CodeErrno, Errno: "ENOTEMPTY", Path: m.Path, Msg: "directory not empty; remove it recursively"}
	}
	if err != nil {
		return nil, errnoError(m.Path, err)
	}
	return nil, nil
}

// readFile sends a range of a file. A pipe or socket could wait for ever and
// is refused; a device is read as far as it goes.
func readFile(stream net.Conn, m *wire.Read) *wire.Error {
	f, err := os.OpenFile(m.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return errnoError(m.Path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return errnoError(m.Path, err)
	}
	info := describe(filepath.Base(m.Path), m.Path, st)
	switch info.Type {
	case "dir":
		return errnoError(m.Path, unix.EISDIR)
	case "pipe", "socket":
		return badRequest("%s is a %s, not a file", m.Path, info.Type)
	}
	if m.Offset > 0 {
		if _, err := f.Seek(m.Offset, io.SeekStart); err != nil {
			return errnoError(m.Path, err)
		}
	}
	if wire.SendReply(stream, info, nil) != nil {
		return nil
	}
	src := io.Reader(f)
	if m.Limit > 0 {
		src = io.LimitReader(f, m.Limit)
	}
	_ = wire.WriteEnd(stream, wire.End{Err: sendData(stream, m.Path, src)})
	return nil
}

// sendData sends r as frames and returns what failed in reading it. When the
// host has closed the stream there is nobody to tell.
func sendData(w io.Writer, path string, r io.Reader) *wire.Error {
	var src *wire.SourceError
	if errors.As(wire.SendData(w, r), &src) {
		return errnoError(path, src.Err)
	}
	return nil
}
