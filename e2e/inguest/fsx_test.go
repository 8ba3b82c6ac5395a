//go:build linux

package inguest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// maxModel bounds the file of the random operations.
const maxModel = 256 << 10

// Whatever is done to a file in whatever order, it holds what it would hold in memory
// (after fsx, the file system exerciser).
func TestRandomOperationsKeepTheContent(t *testing.T) {
	dir := mount(t)
	rapid.Check(t, func(t *rapid.T) {
		path := filepath.Join(dir, "f")
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { f.Close(); os.Remove(path) }()
		m := &model{}
		at := rapid.IntRange(0, maxModel-1)
		size := rapid.IntRange(1, 40000)
		check := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				b := bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, size.Draw(t, "size"))
				off := at.Draw(t, "at")
				_, err := f.WriteAt(b, int64(off))
				check(err)
				m.write(off, b)
			},
			"append": func(t *rapid.T) {
				if len(m.b) > maxModel {
					return
				}
				a, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
				check(err)
				b := bytes.Repeat([]byte{'a'}, size.Draw(t, "size"))
				_, err = a.Write(b)
				check(err)
				check(a.Close())
				m.write(len(m.b), b)
			},
			"truncate": func(t *rapid.T) {
				n := at.Draw(t, "size")
				check(f.Truncate(int64(n)))
				m.truncate(n)
			},
			"punch": func(t *rapid.T) {
				off, n := at.Draw(t, "at"), size.Draw(t, "size")
				err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n))
				if err == unix.EOPNOTSUPP {
					return
				}
				check(err)
				m.zero(off, n)
			},
			"map": func(t *rapid.T) {
				if len(m.b) == 0 {
					return
				}
				off := rapid.IntRange(0, len(m.b)-1).Draw(t, "at")
				mem, err := unix.Mmap(int(f.Fd()), 0, len(m.b), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
				check(err)
				n := copy(mem[off:], bytes.Repeat([]byte{'m'}, 5000))
				check(unix.Munmap(mem))
				m.write(off, bytes.Repeat([]byte{'m'}, n))
			},
			"sync":   func(*rapid.T) { check(f.Sync()) },
			"reopen": func(*rapid.T) { f.Close(); f, err = os.OpenFile(path, os.O_RDWR, 0); check(err) },
			"copy": func(t *rapid.T) {
				if len(m.b) == 0 {
					return
				}
				n := rapid.IntRange(1, min(len(m.b), 40000)).Draw(t, "size")
				to := int64(len(m.b) + 10)
				from := int64(0)
				done := 0
				for done < n {
					k, err := unix.CopyFileRange(int(f.Fd()), &from, int(f.Fd()), &to, n-done, 0)
					check(err)
					if k == 0 {
						t.Fatal("copy_file_range does not go on")
					}
					done += k
				}
				m.write(len(m.b)+10, bytes.Clone(m.b[:n]))
				if len(m.b) > 2*maxModel {
					check(f.Truncate(maxModel))
					m.truncate(maxModel)
				}
			},
			"": func(t *rapid.T) {
				b, err := os.ReadFile(path)
				check(err)
				if !bytes.Equal(b, m.b) {
					t.Fatalf("the file has %d bytes and other content than the model's %d", len(b), len(m.b))
				}
			},
		})
	})
}

type model struct{ b []byte }

func (m *model) truncate(n int) {
	if n < len(m.b) {
		m.b = m.b[:n]
		return
	}
	m.b = append(m.b, make([]byte, n-len(m.b))...)
}

func (m *model) write(off int, b []byte) {
	if end := off + len(b); end > len(m.b) {
		m.truncate(end)
	}
	copy(m.b[off:], b)
}

func (m *model) zero(off, n int) {
	if off < len(m.b) {
		clear(m.b[off:min(off+n, len(m.b))])
	}
}
