package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// applyDir turns a directory into a tar stream, so that it meets the same checks as everything else.
func (b *builder) applyDir(ctx context.Context, t *tree) (SourceInfo, error) {
	dir := b.spec.Source.Ref
	info := SourceInfo{Kind: KindDir, Ref: dir}
	task := b.progress.Start("reading directory", 0)
	defer task.Done()
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() { // ends with the walk or when the reader below is closed; waited for below
		err := tarDir(ctx, dir, w)
		w.CloseWithError(err)
		written <- err
	}()
	aerr := t.applyLayer(ctx, "directory "+dir, &taskReader{ctx: ctx, r: r, task: task}, false)
	r.CloseWithError(io.ErrClosedPipe)
	if werr := <-written; werr != nil && !errors.Is(werr, io.ErrClosedPipe) {
		return info, fmt.Errorf("reading %s: %w", dir, werr)
	}
	return info, aerr
}

// tarDir never follows a symlink and opens everything beneath the one directory handle.
func tarDir(ctx context.Context, dir string, w io.Writer) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	out := tar.NewWriter(w)
	seen := map[[2]uint64]string{} // device and inode of files with several names
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		info, err := root.Lstat(filepath.FromSlash(name))
		if err != nil {
			return err
		}
		return tarFile(out, root, dir, name, info, seen)
	})
	if err != nil {
		return err
	}
	return out.Close()
}

func tarFile(out *tar.Writer, root *os.Root, dir, name string, info fs.FileInfo, seen map[[2]uint64]string) error {
	if info.Mode().Type() == fs.ModeSocket {
		return nil // means nothing without the process behind it
	}
	target := ""
	if info.Mode().Type() == fs.ModeSymlink {
		var err error
		if target, err = root.Readlink(name); err != nil {
			return err
		}
	}
	hdr, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	hdr.Name, hdr.Uname, hdr.Gname = name, "", ""
	var st unix.Stat_t
	full := filepath.Join(dir, filepath.FromSlash(name))
	if err := unix.Lstat(full, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: full, Err: err}
	}
	if info.Mode().IsRegular() && st.Nlink > 1 {
		key := [2]uint64{uint64(st.Dev), st.Ino}
		if first, ok := seen[key]; ok {
			return out.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: first})
		}
		seen[key] = name
	}
	if err := addXattrs(hdr, full); err != nil {
		return err
	}
	if err := out.WriteHeader(hdr); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if n, err := io.Copy(out, io.LimitReader(f, hdr.Size)); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	} else if n != hdr.Size {
		return fmt.Errorf("%s: it shrank while it was read", name)
	}
	return nil
}

// addXattrs copies extended attributes into PAX records. A file system without them has none.
func addXattrs(hdr *tar.Header, path string) error {
	size, err := unix.Llistxattr(path, nil)
	if err != nil || size == 0 {
		return nil
	}
	list := make([]byte, size)
	if size, err = unix.Llistxattr(path, list); err != nil {
		return fmt.Errorf("%s: reading extended attributes: %w", path, err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(list[:size]), "\x00"), "\x00") {
		if name == "" || strings.ContainsRune(name, '=') {
			continue // PAX records cannot hold it
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return fmt.Errorf("%s: reading extended attribute %s: %w", path, name, err)
		}
		if hdr.PAXRecords == nil {
			hdr.PAXRecords = map[string]string{}
		}
		hdr.PAXRecords[xattrPrefix+name] = string(value[:n])
	}
	return nil
}
