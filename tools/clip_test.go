package tools

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
)

func TestClipCutsBetweenLinesAndCharacters(t *testing.T) {
	c := newCapture(100)
	_, _ = io.WriteString(c, strings.Repeat("0123456\n", 100))
	got := c.clip(100)
	assert.Equal(t, strings.Repeat("0123456\n", 5), got.head)
	assert.Equal(t, strings.Repeat("0123456\n", 7), got.tail)
	assert.EqualValues(t, 800-12*8, got.cut)
	assert.EqualValues(t, 40, got.cutAt)
	c = newCapture(10)
	_, _ = io.WriteString(c, strings.Repeat("é", 50))
	assert.False(t, c.clip(9).replaced)
	c = newCapture(1000)
	_, _ = io.WriteString(c, "a\nprogress 1\rprogress 2\x1b[0m\r\n")
	assert.Equal(t, "progress 2[0m", c.lastLine())
}

// FuzzClip writes data in pieces and clips it to any room.
func FuzzClip(f *testing.F) {
	f.Add([]byte("hello\nworld\n"), 10, 8, 3)
	f.Add([]byte(strings.Repeat("é\n", 100)), 50, 20, 7)
	f.Add([]byte(strings.Repeat("\xff\xe2\x82", 100)), 64, 64, 1)
	f.Add([]byte(strings.Repeat("x", 1000)), 100, 0, 1000)
	f.Fuzz(func(t *testing.T, data []byte, room, clip, piece int) {
		room, clip, piece = 1+abs(room%5000), abs(clip%6000), 1+abs(piece%500)
		c := newCapture(room)
		for rest := data; len(rest) > 0; {
			n := min(piece, len(rest))
			_, _ = c.Write(rest[:n])
			rest = rest[n:]
		}
		got := c.clip(clip)
		if !utf8.ValidString(got.head) || !utf8.ValidString(got.tail) {
			t.Fatal("not UTF-8")
		}
		if cap(c.head)+cap(c.tail) > 8*room+1024 {
			t.Fatalf("%d bytes are held for a room of %d", cap(c.head)+cap(c.tail), room)
		}
		if got.cut == 0 {
			want, _ := validUTF8(data)
			if got.head != want || got.tail != "" {
				t.Fatalf("%q of %q", got.head, data)
			}
			return
		}
		if got.cut < 0 || int64(len(data)) <= min(int64(room), int64(clip)) {
			t.Fatalf("%d cut of %d in a room of %d", got.cut, len(data), clip)
		}
		end := got.cutAt + got.cut
		head, _ := validUTF8(data[:got.cutAt])
		tail, _ := validUTF8(data[end:])
		if got.head != head || got.tail != tail {
			t.Fatalf("head and tail are not those of the data")
		}
		if kept := int(got.cutAt) + len(data) - int(end); kept > clip {
			t.Fatalf("%d bytes kept where %d were asked", kept, clip)
		}
		if !bytes.HasPrefix(data, data[:got.cutAt]) {
			t.Fatal("cutAt is out of range")
		}
	})
}

// FuzzLine feeds lines of any length to the reader of messages.
func FuzzLine(f *testing.F) {
	f.Add([]byte("a\nbb\n\nccc"), 10)
	f.Add([]byte(strings.Repeat("x", 10000)+"\n{}"), 5)
	f.Fuzz(func(t *testing.T, data []byte, most int) {
		most = 1 + abs(most%5000)
		front := newFront(newRequests(10, 1e6), bytes.NewReader(data), io.Discard, most, discardLog, func(error) {})
		front.abandon()
		passed := make(chan int)
		go func() {
			n := 0
			p := make([]byte, most+100)
			for {
				k, err := front.messages().Read(p)
				if n += bytes.Count(p[:k], []byte("\n")); err != nil {
					passed <- n
					return
				}
			}
		}()
		_ = front.toServer.CloseWithError(front.readLines())
		if n := <-passed; n > bytes.Count(data, []byte("\n"))+1 {
			t.Fatalf("%d lines passed", n)
		}
	})
}

func TestNothingOfTheGuestSteersATerminalOrTurnsTheText(t *testing.T) {
	assert.Equal(t, "a[2Jb", printable("a\x1b[2J\u009b\u202e\x7fb\u2066"))
	assert.Equal(t, "grün ☂ 漢\u00a0字", printable("grün ☂ 漢\u00a0字"), "what can be read stays")
}
