package images

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
)

// writeTar writes the merged tree in path order, so that equal trees give equal bytes.
func (t *tree) writeTar(ctx context.Context, w io.Writer, task Task) error {
	if err := t.spoolBuf.Flush(); err != nil {
		return fmt.Errorf("writing the spool file: %w", err)
	}
	out := tar.NewWriter(w)
	first := map[*inode]string{}
	var walk func(name string, n *inode) error
	walk = func(name string, n *inode) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if n.links > 1 && n.typ != tar.TypeDir {
			if target, ok := first[n]; ok {
				return out.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target})
			}
			first[n] = name
		}
		if err := out.WriteHeader(n.header(name)); err != nil {
			return fmt.Errorf("writing %q: %w", name, err)
		}
		if n.typ == tar.TypeReg {
			if _, err := io.Copy(out, io.NewSectionReader(t.spool, n.off, n.size)); err != nil {
				return fmt.Errorf("writing %q: %w", name, err)
			}
			task.Add(n.size)
		}
		for _, child := range slices.Sorted(maps.Keys(n.children)) {
			if err := walk(path.Join(name, child), n.children[child].inode); err != nil {
				return err
			}
		}
		return nil
	}
	if err := walk("./", t.root); err != nil {
		return err
	}
	return out.Close()
}

func (n *inode) header(name string) *tar.Header {
	h := &tar.Header{Typeflag: n.typ, Name: name, Linkname: n.target, Mode: n.mode, Uid: n.uid, Gid: n.gid, ModTime: n.mtime}
	if n.typ == tar.TypeReg {
		h.Size = n.size
	}
	if len(n.xattrs) > 0 {
		h.PAXRecords = map[string]string{}
		for k, v := range n.xattrs {
			h.PAXRecords[xattrPrefix+k] = v
		}
	}
	return h
}

// dataSize is the sum of the regular files, for progress.
func (t *tree) dataSize() (total int64, files int) {
	seen := map[*inode]bool{}
	var walk func(n *inode)
	walk = func(n *inode) {
		if seen[n] {
			return
		}
		seen[n] = true
		files++
		total += n.size
		for _, c := range n.children {
			walk(c.inode)
		}
	}
	walk(t.root)
	return total, files
}

// writeExt4 writes the tree as an ext4 file system. The writer makes a compact one without journal or
// free space: it is only ever mounted read-only.
func (t *tree) writeExt4(ctx context.Context, file string, p Progress) (err error) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("creating the root disk: %w", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("closing the root disk: %w", cerr)
		}
	}()
	size, _ := t.dataSize()
	task := p.Start("writing root disk", size)
	defer task.Done()

	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() { // ends when the tree is written or the reader below is closed; waited for below
		werr := t.writeTar(ctx, w, task)
		w.CloseWithError(werr)
		written <- werr
	}()
	cerr := convert(r, f, t.budget.limits.Bytes)
	r.CloseWithError(io.ErrClosedPipe)
	werr := <-written
	if cerr != nil {
		return fmt.Errorf("writing the root disk: %w", cerr)
	}
	if werr != nil {
		return fmt.Errorf("writing the root disk: %w", werr)
	}
	if err := padInodeBitmaps(f); err != nil {
		return fmt.Errorf("writing the root disk: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("writing the root disk: %w", err)
	}
	return nil
}

// padInodeBitmaps marks the bits behind the last inode of each group as used. The writer leaves them
// zero; no kernel minds, but e2fsck calls such a disk faulty, and nobody should have to wonder.
func padInodeBitmaps(f *os.File) error {
	const block, descriptor = 4096, 32
	le := binary.LittleEndian
	super := make([]byte, 1024)
	if _, err := f.ReadAt(super, 1024); err != nil {
		return fmt.Errorf("reading the superblock: %w", err)
	}
	blocks, perGroup, inodes := le.Uint32(super[4:]), le.Uint32(super[32:]), le.Uint32(super[40:])
	if perGroup == 0 || inodes == 0 || inodes%8 != 0 || inodes > block*8 {
		return fmt.Errorf("unexpected geometry: %d blocks and %d inodes a group", perGroup, inodes)
	}
	groups := (int64(blocks) + int64(perGroup) - 1) / int64(perGroup)
	table := make([]byte, groups*descriptor)
	if _, err := f.ReadAt(table, block); err != nil {
		return fmt.Errorf("reading the group descriptors: %w", err)
	}
	padding := bytes.Repeat([]byte{0xff}, block-int(inodes/8))
	for d := table; len(d) > 0; d = d[descriptor:] {
		if _, err := f.WriteAt(padding, int64(le.Uint32(d[4:]))*block+int64(inodes/8)); err != nil {
			return err
		}
	}
	return nil
}

// convert shields us from panics in the file system writer: its input is, in the end, a stranger's.
func convert(r io.Reader, w io.ReadWriteSeeker, limit int64) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the ext4 writer gave up: %v", p)
		}
	}()
	// Twice the contents' limit leaves room for block rounding and metadata of many small files.
	disk := min(max(2*limit, 1<<30), 16<<40)
	return tar2ext4.ConvertTarToExt4(r, w, tar2ext4.MaximumDiskSize(disk))
}
