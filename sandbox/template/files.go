package template

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
)

const (
	memoryName = "memory"
	stateName  = "state"
	diskName   = "disk"

	// maxState bounds a device state, in bytes; a real one has half a MiB.
	maxState = 64 << 20
)

// Files are a machine in a directory, with what is known of each file.
type Files struct {
	Memory File  `json:"memory"`
	State  File  `json:"state"`
	Disk   *File `json:"disk,omitempty"`
}

// File is one of them.
type File struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"` // of a memory or disk: see digest
}

// Write writes a machine's files into a directory and sees them onto the disk.
func (t *Template) Write(ctx context.Context, dir string) (f Files, err error) {
	if f.Memory, err = writeBlocks(ctx, filepath.Join(dir, memoryName), t.memory); err != nil {
		return f, err
	}
	if t.disk != nil {
		disk, err := WriteDisk(ctx, dir, t.disk)
		if err != nil {
			return f, err
		}
		f.Disk = &disk
	}
	f.State = File{int64(len(t.state)), sum(t.state)}
	return f, writeSynced(filepath.Join(dir, stateName), t.state)
}

// WriteDisk writes a disk alone.
func WriteDisk(ctx context.Context, dir string, disk *os.File) (File, error) {
	return writeBlocks(ctx, filepath.Join(dir, diskName), disk)
}

// Read loads a machine from a directory, if its files are what f says, and seals its memory.
// The disk goes into the empty file that newDisk makes.
func Read(ctx context.Context, dir string, f Files, newDisk func() (*os.File, error)) (*Template, error) {
	if f.State.Bytes > maxState {
		return nil, fmt.Errorf("a state of %d bytes", f.State.Bytes)
	}
	state, err := os.ReadFile(filepath.Join(dir, stateName))
	if err != nil {
		return nil, err
	}
	if sum(state) != f.State.SHA256 {
		return nil, fmt.Errorf("%s does not match its digest", stateName)
	}
	memory, err := Anonymous("gondolin-template", 0)
	if err != nil {
		return nil, err
	}
	t := &Template{memory: memory, state: state}
	err = readBlocks(ctx, memory, filepath.Join(dir, memoryName), f.Memory)
	if err == nil && f.Disk != nil {
		if t.disk, err = newDisk(); err == nil {
			err = ReadDisk(ctx, dir, *f.Disk, t.disk)
		}
	}
	if err == nil {
		err = seal(t.memory)
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// ReadDisk reads a disk alone into an empty file.
func ReadDisk(ctx context.Context, dir string, f File, into *os.File) error {
	return readBlocks(ctx, into, filepath.Join(dir, diskName), f)
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func sum(b []byte) string {
	d := sha256.Sum256(b)
	return hex.EncodeToString(d[:])
}

// block is the unit in which memories and disks are copied: what is all zero is left out.
const block = 64 << 10

// digest is the digest of a memory or disk: each block that is not all zero, after its position.
type digest struct{ hash.Hash }

func newDigest() digest { return digest{sha256.New()} }

func (d digest) add(pos int64, b []byte) {
	var at [8]byte
	binary.BigEndian.PutUint64(at[:], uint64(pos))
	d.Write(at[:])
	d.Write(b)
}

func (d digest) String() string { return hex.EncodeToString(d.Sum(nil)) }

// writeBlocks copies a memory or disk to a new file.
func writeBlocks(ctx context.Context, path string, from *os.File) (File, error) {
	st, err := from.Stat()
	if err != nil {
		return File{}, err
	}
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return File{}, err
	}
	d, err := copyBlocks(ctx, out, from, st.Size())
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return File{}, err
	}
	return File{st.Size(), d}, nil
}

// copyOf copies a disk to an anonymous file.
func copyOf(ctx context.Context, disk *os.File) (*os.File, error) {
	st, err := disk.Stat()
	if err != nil {
		return nil, err
	}
	f, err := Anonymous("gondolin-disk", st.Size())
	if err != nil {
		return nil, err
	}
	if _, err := copyBlocks(ctx, f, disk, st.Size()); err != nil {
		f.Close()
		return nil, fmt.Errorf("copying the machine's disk: %w", err)
	}
	return f, nil
}

// readBlocks reads a memory or disk into an empty file and checks it.
func readBlocks(ctx context.Context, into *os.File, path string, want File) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if st.Size() != want.Bytes {
		return fmt.Errorf("%s has %d bytes, not %d", filepath.Base(path), st.Size(), want.Bytes)
	}
	d, err := copyBlocks(ctx, into, in, want.Bytes)
	if err == nil && d != want.SHA256 {
		err = fmt.Errorf("%s does not match its digest", filepath.Base(path))
	}
	return err
}

// copyBlocks copies the data of src to dst, which is empty, and returns its digest.
func copyBlocks(ctx context.Context, dst, src *os.File, size int64) (string, error) {
	d := newDigest()
	err := copyData(ctx, dst, src, size, d.add)
	return d.String(), err
}

// copyData copies the data of src to dst, which is empty, and shows each block to see.
func copyData(ctx context.Context, dst, src *os.File, size int64, see func(pos int64, b []byte)) error {
	if err := dst.Truncate(size); err != nil {
		return err
	}
	buf := make([]byte, block)
	zero := make([]byte, block)
	for pos := int64(0); ; {
		data, hole, err := extent(src, pos, size)
		if err != nil || data >= size {
			return err
		}
		for pos = data / block * block; pos < hole; pos += block {
			if err := ctx.Err(); err != nil {
				return err
			}
			b := buf[:min(block, size-pos)]
			if _, err := src.ReadAt(b, pos); err != nil {
				return err
			}
			if string(b) == string(zero[:len(b)]) {
				continue
			}
			if see != nil {
				see(pos, b)
			}
			if _, err := dst.WriteAt(b, pos); err != nil {
				return err
			}
		}
	}
}
