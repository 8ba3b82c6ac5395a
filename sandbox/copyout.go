package sandbox

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// maxCopyEntries bounds the files of one CopyOut.
const maxCopyEntries = 2_000_000

// CopyOut copies a guest file or tree into the host directory dir, under its
// own base name. maxBytes bounds what it writes; 0 leaves a little of the disk's room free. A file that did not
// arrive whole is removed.
//
// The guest chooses every name and link target in what it sends: they are
// resolved beneath dir and cannot leave it, also not through a link that the
// copy itself made. A link that points out of dir, a device and a set-user-id
// bit do not arrive. What exists is replaced file by file.
func (s *client) CopyOut(ctx context.Context, path, dir string, maxBytes int64) error {
	defer s.use()()
	path = s.resolve(path)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("copying to the host: %w", err)
	}
	defer root.Close()
	st, err := s.request(ctx, wire.OpPack, path, wire.Path{Path: path}, nil)
	if err != nil {
		return err
	}
	defer st.Close()
	if maxBytes == 0 {
		maxBytes = spare(dir)
	}
	data := &fileReader{st: st, data: wire.NewDataReader(st), left: math.MaxInt64}
	u := unpacker{root: root, base: filepath.Base(path), left: maxBytes}
	if err := u.run(tar.NewReader(data)); err != nil {
		return fmt.Errorf("copying %s to the host: %w", path, err)
	}
	// The archive's end mark is not the end of the stream: a late error counts.
	_, err = io.Copy(io.Discard, data)
	return err
}

type unpacker struct {
	root *os.Root
	base string // the only name that may be made in root itself
	left int64  // bytes
}

func (u *unpacker) run(tr *tar.Reader) error {
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if n >= maxCopyEntries {
			return fmt.Errorf("more than %d files: %w", maxCopyEntries, ErrLimit)
		}
		if isSparse(h) {
			return fmt.Errorf("%q: holes in an archive are not taken: %w", h.Name, ErrInvalid)
		}
		if u.left -= h.Size; u.left < 0 {
			return fmt.Errorf("more bytes than allowed, or than the disk has room for: %w", ErrLimit)
		}
		if err := u.one(tr, h); err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
	}
}

// isSparse is for entries of which a few bytes become as many zeros as their header says. Our packer
// makes none.
func isSparse(h *tar.Header) bool {
	for name := range h.PAXRecords {
		if strings.HasPrefix(name, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

func (u *unpacker) one(r io.Reader, h *tar.Header) error {
	name := strings.TrimSuffix(h.Name, "/")
	if !filepath.IsLocal(name) {
		return fmt.Errorf("the name leaves the target directory: %w", ErrInvalid)
	}
	if first, _, _ := strings.Cut(name, "/"); first != u.base && u.base != "/" {
		return fmt.Errorf("the name is not below %q: %w", u.base, ErrInvalid)
	}
	if err := u.noLinkAbove(name); err != nil {
		return err
	}
	if parent := filepath.Dir(name); parent != "." {
		if err := u.root.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	mode := fs.FileMode(h.Mode & 0o777)
	switch h.Typeflag {
	case tar.TypeDir:
		if err := u.root.Mkdir(name, mode|0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	case tar.TypeReg:
		return u.file(r, name, mode)
	case tar.TypeSymlink:
		if filepath.IsAbs(h.Linkname) || climbsLater(h.Linkname) || !filepath.IsLocal(filepath.Join(filepath.Dir(name), h.Linkname)) {
			return nil
		}
		_ = u.root.Remove(name)
		return u.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		if err := u.noLinkAbove(h.Linkname); err != nil {
			return err
		}
		// A hard link to a symbolic link would move that to another depth.
		if st, err := u.root.Lstat(h.Linkname); err != nil || !st.Mode().IsRegular() {
			return fmt.Errorf("hard link to %q, which is no regular file of this copy: %w", h.Linkname, ErrInvalid)
		}
		_ = u.root.Remove(name)
		return u.root.Link(h.Linkname, name)
	}
	return nil
}

// noLinkAbove refuses a name that passes through a symbolic link: what a name
// says must be where it is.
func (u *unpacker) noLinkAbove(name string) error {
	if strings.Count(name, "/") > 255 {
		return fmt.Errorf("more than 255 directories deep: %w", ErrInvalid)
	}
	for dir := filepath.Dir(name); dir != "." && dir != "/"; dir = filepath.Dir(dir) {
		if st, err := u.root.Lstat(dir); err == nil && st.Mode()&fs.ModeSymlink != 0 {
			return fmt.Errorf("the name passes through the link %q: %w", dir, ErrInvalid)
		}
	}
	return nil
}

// climbsLater reports whether a link target has ".." behind another name, where
// what the name is decides where the target lies.
func climbsLater(target string) bool {
	leading := true
	for _, part := range strings.Split(target, "/") {
		if part == ".." && !leading {
			return true
		}
		leading = leading && (part == ".." || part == ".")
	}
	return false
}

func (u *unpacker) file(r io.Reader, name string, mode fs.FileMode) error {
	if err := u.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode|0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Close()); err != nil {
		err = errors.Join(err, u.root.Remove(name))
	}
	return err
}
