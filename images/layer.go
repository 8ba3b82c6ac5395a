package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
	xattrPrefix    = "SCHILY.xattr."
	// maxXattrs is what ext4 can hold for one file beside the inode: one block.
	maxXattrs = 4000
)

// devices are the character devices that real images carry. The guest mounts a devtmpfs over /dev, so
// they are dropped; every other node is refused.
var devices = map[string][2]int64{
	"dev/null": {1, 3}, "dev/zero": {1, 5}, "dev/full": {1, 7}, "dev/random": {1, 8}, "dev/urandom": {1, 9},
	"dev/tty": {5, 0}, "dev/console": {5, 1}, "dev/ptmx": {5, 2},
}

// applyLayer lays one tar stream over the tree. What it is called only serves the errors. Whiteouts are
// interpreted for OCI layers only; in a plain archive ".wh.x" is a file like any other.
func (t *tree) applyLayer(ctx context.Context, name string, r io.Reader, whiteouts bool) error {
	t.layer++
	counted := &budgetReader{ctx: ctx, r: r, b: &t.budget}
	archive := tar.NewReader(counted)
	last := ""
	for {
		hdr, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return unreadable(ctx, name, last, err)
		}
		last = hdr.Name
		if err := t.applyEntry(hdr, archive, whiteouts); err != nil {
			return fmt.Errorf("%s: entry %q refused: %w", name, printable(hdr.Name), err)
		}
	}
	// What follows the end mark is padding; it is read so that the digest covers the whole layer.
	if _, err := io.Copy(io.Discard, counted); err != nil {
		return fmt.Errorf("%s: reading to the end: %w", name, err)
	}
	return nil
}

// unreadable says why a stream gave no further entry; not every reason is the archive's fault.
func unreadable(ctx context.Context, name, last string, err error) error {
	var over limitError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("reading %s: %w", name, ctx.Err())
	case errors.As(err, &over):
		return fmt.Errorf("%s: %w", name, err)
	case last == "":
		return fmt.Errorf("%s is no tar archive (plain, or packed by gzip, zstd or xz), or a damaged one: %w", name, err)
	}
	return fmt.Errorf("%s: damaged or hostile archive after entry %q: %w", name, printable(last), err)
}

func printable(name string) string {
	if len(name) > 200 {
		return name[:200] + "..."
	}
	return name
}

// budgetReader charges the unpacked stream to the tree's budget and stops with the context.
type budgetReader struct {
	ctx context.Context
	r   io.Reader
	b   *budget
}

func (c *budgetReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	if limit := c.b.addBytes(int64(n)); limit != nil {
		return 0, limit
	}
	return n, err
}

func (t *tree) applyEntry(hdr *tar.Header, body io.Reader, whiteouts bool) error {
	switch hdr.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	}
	parts, err := cleanName(hdr.Name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if hdr.Typeflag != tar.TypeDir {
			return errors.New("only a directory can be the root")
		}
		return setMeta(t.root, hdr)
	}
	base := parts[len(parts)-1]
	if whiteouts && strings.HasPrefix(base, whiteoutPrefix) {
		return t.applyWhiteout(parts[:len(parts)-1], base)
	}
	if drop, err := checkNode(hdr, parts); drop || err != nil {
		return err
	}
	if err := t.budget.addEntry(len(base) + len(hdr.Linkname) + paxLen(hdr)); err != nil {
		return err
	}
	parent, err := t.dir(parts[:len(parts)-1], true)
	if err != nil {
		return fmt.Errorf("resolving its directory: %w", err)
	}
	return t.place(parent, base, hdr, body)
}

// place makes the entry itself, whose directory is known.
func (t *tree) place(parent *inode, base string, hdr *tar.Header, body io.Reader) error {
	switch hdr.Typeflag {
	case tar.TypeDir:
		n := parent.children[base].inode
		if n == nil || n.typ != tar.TypeDir {
			n = newDir(0)
		}
		if err := setMeta(n, hdr); err != nil {
			return err
		}
		if parent.children[base].inode == n {
			parent.children[base] = dirent{n, t.layer}
			return nil
		}
		parent.link(base, n, t.layer)
		return nil
	case tar.TypeLink:
		target, err := t.linkTarget(hdr.Linkname)
		if err != nil {
			return err
		}
		if parent.children[base].inode == target {
			parent.children[base] = dirent{target, t.layer}
			return nil
		}
		parent.link(base, target, t.layer)
		return nil
	case tar.TypeSymlink:
		if hdr.Linkname == "" || len(hdr.Linkname) >= maxPath || strings.IndexByte(hdr.Linkname, 0) >= 0 {
			return fmt.Errorf("symlink target of %d bytes is empty, too long or contains NUL", len(hdr.Linkname))
		}
		n := &inode{typ: tar.TypeSymlink, target: hdr.Linkname}
		if err := setMeta(n, hdr); err != nil {
			return err
		}
		parent.link(base, n, t.layer)
		return nil
	case tar.TypeFifo:
		n := &inode{typ: tar.TypeFifo}
		if err := setMeta(n, hdr); err != nil {
			return err
		}
		parent.link(base, n, t.layer)
		return nil
	}
	n := &inode{typ: tar.TypeReg}
	if err := setMeta(n, hdr); err != nil {
		return err
	}
	if err := t.store(n, hdr.Size, body); err != nil {
		return err
	}
	parent.link(base, n, t.layer)
	return nil
}

// store appends a file's contents to the spool. The stream's own bytes were charged while reading; a
// sparse entry hands out more than the stream holds, and that is charged here before it is written.
func (t *tree) store(n *inode, size int64, body io.Reader) error {
	if size < 0 || size > t.budget.limits.Bytes {
		return fmt.Errorf("too big: it claims %d bytes and the limit is %s", size, FormatBytes(t.budget.limits.Bytes))
	}
	before := t.budget.bytes
	n.off, n.size = t.spoolOff, size
	written, err := io.Copy(&spoolWriter{t: t, charged: before}, io.LimitReader(body, size))
	t.spoolOff += written
	if err != nil {
		return fmt.Errorf("storing its contents: %w", err)
	}
	if written != size {
		return fmt.Errorf("it claims %d bytes and holds %d", size, written)
	}
	return nil
}

// spoolWriter writes to the spool and keeps the budget at least as high as what was written.
type spoolWriter struct {
	t       *tree
	charged int64
	written int64
}

func (s *spoolWriter) Write(p []byte) (int, error) {
	s.written += int64(len(p))
	// budgetReader counts in tar blocks read ahead, so streamed contents never come up short here.
	if short := s.charged + s.written - s.t.budget.bytes; short > 0 {
		if err := s.t.budget.addBytes(short); err != nil {
			return 0, err
		}
	}
	return s.t.spoolBuf.Write(p)
}

func (t *tree) linkTarget(name string) (*inode, error) {
	parts, err := cleanName(name)
	if err != nil {
		return nil, fmt.Errorf("hard link to %q: %w", printable(name), err)
	}
	if len(parts) == 0 {
		return nil, fmt.Errorf("hard link to %q: a directory cannot be hard linked", printable(name))
	}
	parent, err := t.dir(parts[:len(parts)-1], false)
	if err != nil {
		return nil, fmt.Errorf("hard link to %q: resolving its directory: %w", printable(name), err)
	}
	target := parent.children[parts[len(parts)-1]].inode
	switch {
	case target == nil:
		return nil, fmt.Errorf("hard link to %q: there is no such file in the image", printable(name))
	case target.typ == tar.TypeDir:
		return nil, fmt.Errorf("hard link to %q: a directory cannot be hard linked", printable(name))
	}
	return target, nil
}

func (t *tree) applyWhiteout(dir []string, base string) error {
	parent, err := t.dir(dir, false)
	switch {
	case base == whiteoutOpaque:
		if err == nil {
			parent.pruneLower(t.layer)
		}
		return nil
	case strings.HasPrefix(base, whiteoutMeta):
		return nil // bookkeeping of old storage drivers
	}
	hidden := strings.TrimPrefix(base, whiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." {
		return fmt.Errorf("path traversal: a whiteout of %q", hidden)
	}
	if err == nil {
		parent.whiteout(hidden, t.layer)
	}
	return nil
}

// checkNode refuses what must not come from an image; drop means that the entry is silently left out.
func checkNode(hdr *tar.Header, parts []string) (drop bool, err error) {
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, tar.TypeGNUSparse, tar.TypeCont:
		return false, nil
	case tar.TypeChar:
		want, ok := devices[strings.Join(parts, "/")]
		if ok && want == [2]int64{hdr.Devmajor, hdr.Devminor} {
			return true, nil
		}
		return false, fmt.Errorf("device node %d:%d: only the standard character devices of /dev may appear in an image",
			hdr.Devmajor, hdr.Devminor)
	case tar.TypeBlock:
		return false, fmt.Errorf("block device node %d:%d: devices may not appear in an image", hdr.Devmajor, hdr.Devminor)
	}
	return false, fmt.Errorf("unknown kind of entry %q", hdr.Typeflag)
}

func paxLen(hdr *tar.Header) int {
	n := 0
	for k, v := range hdr.PAXRecords {
		n += len(k) + len(v)
	}
	return n
}

func setMeta(n *inode, hdr *tar.Header) error {
	if hdr.Uid < 0 || hdr.Gid < 0 || int64(hdr.Uid) > 1<<32-1 || int64(hdr.Gid) > 1<<32-1 {
		return fmt.Errorf("owner %d:%d is out of range", hdr.Uid, hdr.Gid)
	}
	xattrs, err := keepXattrs(hdr.PAXRecords)
	if err != nil {
		return err
	}
	n.mode, n.uid, n.gid, n.mtime, n.xattrs = hdr.Mode&0o7777, hdr.Uid, hdr.Gid, hdr.ModTime, xattrs
	return nil
}
