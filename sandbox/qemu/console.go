package qemu

import (
	"io"
	"strings"
	"sync"
)

// consoleBytes is how much of the end of the console is kept, tailLine how much
// of a line an error shows.
const (
	consoleBytes = 64 << 10
	tailLine     = 200
)

// console keeps the end of what a machine and QEMU itself print.
type console struct {
	mu    sync.Mutex
	buf   []byte
	alive chan struct{} // closed at the first byte of the guest
	once  sync.Once
}

func newConsole() *console { return &console{alive: make(chan struct{})} }

// drain reads r to its end.
func (c *console) drain(r io.Reader, guest bool) {
	var b [4096]byte
	for {
		n, err := r.Read(b[:])
		if n > 0 {
			if guest {
				c.once.Do(func() { close(c.alive) })
			}
			c.mu.Lock()
			c.buf = append(c.buf, b[:n]...)
			if over := len(c.buf) - consoleBytes; over > 0 {
				c.buf = append(c.buf[:0], c.buf[over:]...)
			}
			c.mu.Unlock()
		}
		if err != nil {
			return
		}
	}
}

// tail returns the last lines, printable and without control characters: the
// guest wrote them, and they end up on a terminal and in a model's context.
func (c *console) tail(lines int) string {
	c.mu.Lock()
	text := string(c.buf)
	c.mu.Unlock()
	text = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case r < ' ' || r >= 0x7f && r < 0xa0 || r == '\ufffd':
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, ""))
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	all = all[max(len(all)-lines, 0):]
	for i, line := range all {
		if len(line) > tailLine {
			all[i] = strings.ToValidUTF8(line[:tailLine], "") + "…"
		}
	}
	return strings.Join(all, "\n")
}
