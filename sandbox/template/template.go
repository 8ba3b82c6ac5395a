package template

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// Freeze makes a template of a machine's memory and state, both files the template's from now on,
// and of its writable disk, which may be nil and must not change. It seals the memory.
func Freeze(memory, state, disk *os.File) (*Template, error) {
	t := &Template{memory: memory, disk: disk}
	b, err := readState(state)
	if err == nil {
		t.state, err = b, seal(memory)
	}
	err = errors.Join(err, state.Close())
	if err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// CopyMemory returns a memory like t's that is not sealed. The caller closes it.
func (t *Template) CopyMemory(ctx context.Context) (*os.File, error) {
	st, err := t.memory.Stat()
	if err != nil {
		return nil, err
	}
	f, err := Anonymous("gondolin-memory", 0)
	if err != nil {
		return nil, err
	}
	if err := copyData(ctx, f, t.memory, st.Size(), nil); err != nil {
		f.Close()
		return nil, fmt.Errorf("copying a memory: %w", err)
	}
	return f, nil
}

// Memory is the sealed memory. It belongs to the template.
func (t *Template) Memory() *os.File { return t.memory }

// Disk is the machine's writable disk as it was, or nil. It belongs to the template.
func (t *Template) Disk() *os.File { return t.disk }

// State returns a new file that holds the device state, at its beginning. The caller closes it.
func (t *Template) State() (*os.File, error) {
	f, err := Anonymous("gondolin-state", 0)
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
	t, err := Read(ctx, dir, m.Files, func() (*os.File, error) { return Anonymous("gondolin-disk", 0) })
	if err == nil && t.disk != nil {
		err = seal(t.disk)
	}
	if err != nil && t != nil {
		t.Close()
		return nil, err
	}
	return t, err
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
