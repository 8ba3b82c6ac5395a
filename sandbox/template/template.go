package template

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
)

// Template is a machine's memory and device state, loaded and sealed. Machines
// cloned from it keep what they need when it is closed.
type Template struct {
	memory *os.File
	disk   *os.File // nil: the machine has none
	state  []byte
	more   atomic.Int32 // shares beside the first
}

// Memory is the sealed memory. It belongs to the template.
func (t *Template) Memory() *os.File { return t.memory }

// Disk is the machine's writable disk as it was, or nil. It belongs to the template.
func (t *Template) Disk() *os.File { return t.disk }

// State returns a new file that holds the device state, at its beginning. The caller closes it.
func (t *Template) State() (*os.File, error) {
	f, err := anonymous("gondolin-state", 0)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(t.state, 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("copying a template's state: %w", err)
	}
	return f, nil
}

// Share returns t for one more owner, who closes it too.
func (t *Template) Share() *Template {
	t.more.Add(1)
	return t
}

// Close releases the memory when it is the last owner's, and once the last machine that uses it has ended.
func (t *Template) Close() error {
	if t.more.Add(-1) >= 0 {
		return nil
	}
	err := t.memory.Close()
	if t.disk != nil {
		err = errors.Join(err, t.disk.Close())
	}
	return err
}

func (t *Template) seal() error {
	if t.disk != nil {
		if err := seal(t.disk); err != nil {
			return err
		}
	}
	return seal(t.memory)
}

func load(ctx context.Context, dir, key string) (*Template, error) {
	b, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		return nil, err
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", manifestName, err)
	}
	if m.Version != manifestVersion || m.Key != key {
		return nil, fmt.Errorf("it says to be version %d of %s", m.Version, short(m.Key))
	}
	if m.State.Bytes > maxState {
		return nil, fmt.Errorf("a state of %d bytes", m.State.Bytes)
	}
	state, err := os.ReadFile(filepath.Join(dir, stateName))
	if err != nil {
		return nil, err
	}
	if sum(state) != m.State.SHA256 {
		return nil, fmt.Errorf("%s does not match its digest", stateName)
	}
	memory, err := readBlocks(ctx, filepath.Join(dir, memoryName), m.Memory)
	if err != nil {
		return nil, err
	}
	t := &Template{memory: memory, state: state}
	if m.Disk != nil {
		t.disk, err = readBlocks(ctx, filepath.Join(dir, diskName), *m.Disk)
	}
	if err == nil {
		err = t.seal()
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func readState(f *os.File) ([]byte, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxState+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) == 0 || len(b) > maxState:
		return nil, fmt.Errorf("the machine's state has %d bytes", len(b))
	}
	return b, nil
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
func writeBlocks(ctx context.Context, path string, from *os.File) (file, error) {
	st, err := from.Stat()
	if err != nil {
		return file{}, err
	}
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return file{}, err
	}
	d, err := copyBlocks(ctx, out, from, st.Size())
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return file{}, err
	}
	return file{st.Size(), d}, nil
}

// copyOf copies a disk to an anonymous file.
func copyOf(ctx context.Context, disk *os.File) (*os.File, error) {
	st, err := disk.Stat()
	if err != nil {
		return nil, err
	}
	f, err := anonymous("gondolin-disk", st.Size())
	if err != nil {
		return nil, err
	}
	if _, err := copyBlocks(ctx, f, disk, st.Size()); err != nil {
		f.Close()
		return nil, fmt.Errorf("copying the machine's disk: %w", err)
	}
	return f, nil
}

// readBlocks reads a memory or disk into an anonymous file and checks it.
func readBlocks(ctx context.Context, path string, want file) (*os.File, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() != want.Bytes {
		return nil, fmt.Errorf("%s has %d bytes, not %d", filepath.Base(path), st.Size(), want.Bytes)
	}
	f, err := anonymous("gondolin-template", want.Bytes)
	if err != nil {
		return nil, err
	}
	d, err := copyBlocks(ctx, f, in, want.Bytes)
	if err == nil && d != want.SHA256 {
		err = fmt.Errorf("%s does not match its digest", filepath.Base(path))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// copyBlocks copies the data of src to dst, which is empty, and returns its digest.
func copyBlocks(ctx context.Context, dst, src *os.File, size int64) (string, error) {
	if err := dst.Truncate(size); err != nil {
		return "", err
	}
	d := newDigest()
	buf := make([]byte, block)
	zero := make([]byte, block)
	for pos := int64(0); ; {
		data, hole, err := extent(src, pos, size)
		if err != nil || data >= size {
			return d.String(), err
		}
		for pos = data / block * block; pos < hole; pos += block {
			if err := ctx.Err(); err != nil {
				return "", err
			}
			b := buf[:min(block, size-pos)]
			if _, err := src.ReadAt(b, pos); err != nil {
				return "", err
			}
			if string(b) == string(zero[:len(b)]) {
				continue
			}
			d.add(pos, b)
			if _, err := dst.WriteAt(b, pos); err != nil {
				return "", err
			}
		}
	}
}
