//go:build linux

package sandboxd

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// pack sends a file or tree; see wire.PackTree.
func pack(stream net.Conn, m *wire.Path) *wire.Error {
	path := filepath.Clean(m.Path)
	if _, err := os.Lstat(path); err != nil {
		return errnoError(m.Path, err)
	}
	if wire.SendReply(stream, nil, nil) != nil {
		return nil
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(wire.PackTree(w, path)) }()
	werr := sendData(stream, m.Path, r)
	r.CloseWithError(errors.New("the host has closed the stream"))
	_ = wire.WriteEnd(stream, wire.End{Err: werr})
	return nil
}

// unpack writes a tar stream below a directory. Names cannot leave it: os.Root
// resolves them.
func unpack(stream net.Conn, m *wire.Unpack) *wire.Error {
	var owner *account
	if m.User != "" {
		acc, err := accountOf(m.User)
		if err != nil {
			return badRequest("%v", err)
		}
		owner = acc
	}
	if err := os.MkdirAll(m.Path, 0o755); err != nil {
		return errnoError(m.Path, err)
	}
	root, err := os.OpenRoot(m.Path)
	if err != nil {
		return errnoError(m.Path, err)
	}
	defer root.Close()
	if wire.SendReply(stream, nil, nil) != nil {
		return nil
	}
	data := wire.NewDataReader(stream)
	if err = unpackFrom(root, data, owner); err == nil {
		_, err = io.Copy(io.Discard, data) // what follows the archive's end mark
	}
	if err != nil {
		_ = wire.SendReply(stream, nil, asError(m.Path, err))
		return nil
	}
	_ = wire.SendReply(stream, nil, nil)
	return nil
}

func unpackFrom(root *os.Root, r io.Reader, owner *account) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := unpackOne(root, tr, h, owner); err != nil {
			return &wire.Error{Code: wire.CodeErrno, Errno: unix.ErrnoName(errnoOf(err)), Path: h.Name, Msg: err.Error()}
		}
	}
}

func unpackOne(root *os.Root, r io.Reader, h *tar.Header, owner *account) error {
	name := strings.TrimSuffix(h.Name, "/")
	if parent := filepath.Dir(name); parent != "." {
		if err := root.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	mode := fs.FileMode(h.Mode & 0o777)
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.Mkdir(name, mode|0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	case tar.TypeReg:
		_ = root.Remove(name)
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	case tar.TypeSymlink:
		_ = root.Remove(name)
		if err := root.Symlink(h.Linkname, name); err != nil {
			return err
		}
	case tar.TypeLink:
		_ = root.Remove(name)
		return root.Link(h.Linkname, name)
	default:
		return fmt.Errorf("entry of type %q is not supported", h.Typeflag)
	}
	uid, gid := h.Uid, h.Gid
	if owner != nil {
		uid, gid = int(owner.uid), int(owner.gid)
	}
	if err := root.Lchown(name, uid, gid); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeSymlink {
		return nil
	}
	if err := root.Chmod(name, mode); err != nil {
		return err
	}
	return root.Chtimes(name, h.ModTime, h.ModTime)
}
