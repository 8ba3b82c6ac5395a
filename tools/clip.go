package tools

import (
	"bytes"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// capture keeps the beginning and the end of a stream of any length in bounded
// memory: 40 % of the room for the head, 60 % for the tail, because a command's
// last words tell most. It is an io.Writer that never fails.
type capture struct {
	mu    sync.Mutex
	room  int
	head  []byte
	tail  []byte // at most twice its share; cut back when that is full
	total int64
}

func newCapture(room int) *capture { return &capture{room: max(room, 1)} }

func headShare(room int) int { return room * 2 / 5 }

// Write implements io.Writer.
func (c *capture) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(p)
	c.total += int64(n)
	if free := headShare(c.room) - len(c.head); free > 0 {
		k := min(free, len(p))
		c.head = append(c.head, p[:k]...)
		p = p[k:]
	}
	share := c.room - headShare(c.room)
	if len(p) >= share {
		c.tail = append(c.tail[:0], p[len(p)-share:]...)
		return n, nil
	}
	if len(c.tail)+len(p) > 2*share {
		keep := copy(c.tail, c.tail[len(c.tail)-share:])
		c.tail = c.tail[:keep]
	}
	c.tail = append(c.tail, p...)
	return n, nil
}

// bytes is how much was written.
func (c *capture) bytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total
}

// lastLine is the last line with something on it, for people to watch.
func (c *capture) lastLine() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := c.tail
	if len(last) == 0 {
		last = c.head
	}
	last = bytes.TrimRight(last[max(0, len(last)-1024):], " \t\r\n")
	if i := bytes.LastIndexAny(last, "\r\n"); i >= 0 {
		last = last[i+1:]
	}
	return short(printable(string(last)), 200)
}

// clipped is what fits of a stream.
type clipped struct {
	head, tail string // valid UTF-8; tail is empty when nothing was cut
	cut        int64  // bytes between them
	cutAt      int64  // where they begin
	replaced   bool   // bytes that are not UTF-8 became U+FFFD
}

// clip gives the stream in at most room bytes of it. Cuts fall between
// characters, and between lines where one ends nearby.
func (c *capture) clip(room int) clipped {
	c.mu.Lock()
	defer c.mu.Unlock()
	tail := c.tail[max(0, len(c.tail)-(c.room-headShare(c.room))):]
	if kept := int64(len(c.head) + len(c.tail)); kept == c.total && c.total <= int64(room) {
		text, replaced := validUTF8(append(bytes.Clone(c.head), c.tail...))
		return clipped{head: text, replaced: replaced, cutAt: c.total}
	}
	room = max(min(room, c.room), 0)
	head := cutEnd(c.head[:min(len(c.head), headShare(room))])
	tail = cutStart(tail[max(0, len(tail)-(room-headShare(room))):])
	r := clipped{cutAt: int64(len(head)), cut: c.total - int64(len(head)) - int64(len(tail))}
	var a, b bool
	r.head, a = validUTF8(head)
	r.tail, b = validUTF8(tail)
	r.replaced = a || b
	return r
}

// text joins head and tail with the note of the cut between them.
func (c clipped) text(note string) string {
	if c.cut == 0 {
		return c.head
	}
	var b strings.Builder
	b.WriteString(c.head)
	if c.head != "" && !strings.HasSuffix(c.head, "\n") {
		b.WriteByte('\n')
	}
	b.WriteString(note)
	b.WriteByte('\n')
	b.WriteString(c.tail)
	return b.String()
}

// cutEnd shortens b to a character's end, and to a line's end if the last line
// begins in its last quarter.
func cutEnd(b []byte) []byte {
	if i := bytes.LastIndexByte(b, '\n'); i >= 0 && i+1 >= len(b)*3/4 {
		return b[:i+1]
	}
	return wholeRunes(b)
}

// cutStart is cutEnd for the other end.
func cutStart(b []byte) []byte {
	if i := bytes.IndexByte(b, '\n'); i >= 0 && i < len(b)/4 {
		return b[i+1:]
	}
	for i := 0; i < min(len(b), utf8.UTFMax-1); i++ {
		if utf8.RuneStart(b[i]) {
			return b[i:]
		}
	}
	return b
}

// wholeRunes drops the beginning of a character from the end of b.
func wholeRunes(b []byte) []byte {
	for i := len(b) - 1; i >= max(0, len(b)-utf8.UTFMax+1); i-- {
		if utf8.RuneStart(b[i]) {
			if !utf8.FullRune(b[i:]) {
				return b[:i]
			}
			break
		}
	}
	return b
}

func validUTF8(b []byte) (string, bool) {
	if utf8.Valid(b) {
		return string(b), false
	}
	return strings.ToValidUTF8(string(b), "\uFFFD"), true
}

// printable takes out of one line what is not to be seen: control characters, C1 among them, and
// what turns the direction of writing.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// printableLines is printable for text of several lines.
func printableLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	for i, line := range lines {
		lines[i] = printable(strings.ReplaceAll(line, "\t", " "))
	}
	return strings.Join(lines, "\n")
}
