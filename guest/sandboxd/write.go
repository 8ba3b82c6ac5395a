//go:build linux

package sandboxd

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// write replaces or extends a file with what the host sends. Whatever fails,
// the old content stays: new content goes to a temporary file beside the
// target, is synced, and takes its name.
func (f *files) write(stream net.Conn, m *wire.Write) *wire.Error {
	acc, err := accountOf(m.User)
	if err != nil {
		return badRequest("%v", err)
	}
	path, old, err := target(m.Path)
	if err != nil {
		return errnoError(m.Path, err)
	}
	switch {
	case old != nil && old.IsDir():
		return errnoError(m.Path, unix.EISDIR)
	case old != nil && m.IfAbsent:
		return errnoError(m.Path, unix.EEXIST)
	case old != nil && old.Mode()&(fs.ModeNamedPipe|fs.ModeSocket) != 0:
		return badRequest("%s is not a regular file", m.Path)
	}
	if m.Parents && old == nil {
		if err := mkdirAll(filepath.Dir(path), 0o755, acc); err != nil {
			return errnoError(filepath.Dir(m.Path), err)
		}
	}
	w, err := openWriter(path, old, m, acc)
	if err != nil {
		return asError(m.Path, err)
	}
	defer w.discard()
	if wire.SendReply(stream, nil, nil) != nil {
		return nil
	}
	n, err := wire.NewDataReader(stream).WriteTo(w.f)
	if err == nil {
		f.commit.Lock()
		err = w.finish(m.IfSHA256, m.IfAbsent)
		f.commit.Unlock()
	}
	if err != nil {
		_ = wire.SendReply(stream, nil, asError(m.Path, err))
		return nil
	}
	_ = wire.SendReply(stream, wire.Written{Bytes: n, Created: old == nil}, nil)
	return nil
}

func asError(path string, err error) *wire.Error {
	var werr *wire.Error
	if errors.As(err, &werr) {
		return werr
	}
	return errnoError(path, err)
}

// target follows symbolic links, so that a link stays a link and the file that
// it names is replaced. The file need not exist.
func target(path string) (string, fs.FileInfo, error) {
	for range 40 { // as many as the kernel follows, path_resolution(7)
		st, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return path, nil, nil
		}
		if err != nil || st.Mode()&fs.ModeSymlink == 0 {
			return path, st, err
		}
		link, err := os.Readlink(path)
		if err != nil {
			return "", nil, err
		}
		if !filepath.IsAbs(link) {
			dir, err := filepath.EvalSymlinks(filepath.Dir(path))
			if err != nil {
				return "", nil, err
			}
			link = filepath.Join(dir, link)
		}
		path = link
	}
	return "", nil, unix.ELOOP
}

// writer is a file being written: a temporary one that finish gives its name,
// or, for appending and for what cannot be replaced (devices, /proc), itself.
type writer struct {
	f    *os.File
	path string
	temp string // empty: in place
}

func openWriter(path string, old fs.FileInfo, m *wire.Write, acc *account) (*writer, error) {
	mode := fs.FileMode(0o644)
	if m.Mode != nil {
		mode = fs.FileMode(*m.Mode & 0o777)
	}
	if m.Append {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NONBLOCK, mode)
		if err != nil {
			return nil, err
		}
		w := &writer{f: f, path: path}
		if old == nil {
			if err := f.Chown(int(acc.uid), int(acc.gid)); err != nil {
				f.Close()
				return nil, err
			}
		}
		return w, nil
	}
	if old != nil && (!old.Mode().IsRegular() || inKernel(path)) {
		return openInPlace(path, m.IfSHA256)
	}
	w, err := openTemp(path)
	if err != nil {
		return nil, err
	}
	uid, gid := acc.uid, acc.gid
	bits := uint32(mode)
	if old != nil {
		st := old.Sys().(*syscall.Stat_t)
		uid, gid = st.Uid, st.Gid
		if m.Mode == nil {
			bits = st.Mode & 0o7777
		}
	}
	if m.Mode != nil {
		bits = *m.Mode & 0o7777
	}
	// Owner first: changing it clears setuid.
	if err := errors.Join(w.f.Chown(int(uid), int(gid)), unix.Fchmod(int(w.f.Fd()), bits)); err != nil {
		w.discard()
		return nil, err
	}
	return w, nil
}

// inKernel reports whether path is one of the kernel's own files, which take their
// content in place.
func inKernel(path string) bool {
	return strings.HasPrefix(path, "/proc/") || strings.HasPrefix(path, "/sys/")
}

// openInPlace opens a file that cannot be replaced. What it holds is compared now,
// since it is gone when the new content comes.
func openInPlace(path, ifSHA256 string) (*writer, error) {
	if ifSHA256 != "" {
		if err := sameContent(path, ifSHA256); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return &writer{f: f, path: path}, nil
}

func openTemp(path string) (*writer, error) {
	temp := filepath.Join(filepath.Dir(path), ".gondolin-"+rand.Text()[:12]+".tmp")
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	return &writer{f: f, path: path, temp: temp}, nil
}

// finish makes the written bytes the file's content. The caller holds the
// commit lock.
func (w *writer) finish(ifSHA256 string, ifAbsent bool) error {
	if ifSHA256 != "" && w.temp != "" {
		if err := sameContent(w.path, ifSHA256); err != nil {
			return err
		}
	}
	if err := w.f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	if err := w.f.Close(); err != nil {
		return err
	}
	if w.temp == "" {
		return nil
	}
	flags := uint(0)
	if ifAbsent {
		flags = unix.RENAME_NOREPLACE
	}
	if err := unix.Renameat2(unix.AT_FDCWD, w.temp, unix.AT_FDCWD, w.path, flags); err != nil {
		return err
	}
	w.temp = ""
	return syncDir(filepath.Dir(w.path))
}

// discard closes the file and removes it if it did not get its name.
func (w *writer) discard() {
	w.f.Close()
	if w.temp != "" {
		_ = os.Remove(w.temp)
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

// sameContent compares a file's digest; a missing file has none.
func sameContent(path, want string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return errors.Join(err, &wire.Error{Code: wire.CodeInvalid, Path: path, Msg: "not a regular file, so it has no digest to compare"})
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want {
		return &wire.Error{Code: wire.CodeChanged, Path: path, Msg: "the file's content has the SHA-256 digest " + got + ", not " + want + "; read it again"}
	}
	return nil
}
