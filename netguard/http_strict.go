package netguard

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// strict stands between the guest and net/http's HTTP/1 server and lets only
// bytes pass that it has read as HTTP itself: a head as a whole, then a body up to
// its end. In place of a head that is refused the server is given a request that
// stands for it, so that the refusal is answered in its turn; nothing comes after it.
//
// One goroutine reads at a time, as the server has it; the rest is for its handlers.
type strict struct {
	src   io.Reader
	tls   bool
	limit int // of a head, in bytes

	buf   []byte // read from src, not yet passed on
	seen  int    // of buf, while a head is looked for
	ready int    // of buf: a head that has been judged
	left  int64  // of a body
	chunk chunkScan
	state strictState

	mu    sync.Mutex
	heads []*violation // of the heads passed on; nil for a good one. At most two: the server reads ahead by a byte
	bad   *violation   // in a body, or after an upgrade
	raw   bool         // upgraded
}

type strictState uint8

const (
	atHead strictState = iota
	atBody
	atChunks
	atUpgrade // what comes now must wait for the answer
	atEnd
)

// standIn is the request that the server sees in place of one that is refused.
const standIn = "GET / HTTP/1.1\r\nHost: refused.invalid\r\nConnection: close\r\n\r\n"

// headSize is the first size of the buffer for heads, in bytes.
const headSize = 4 << 10

// next is the judgement of the head that the server has just read.
func (s *strict) next() *violation {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.heads) == 0 {
		return &violation{status: http.StatusBadRequest, reason: "the request was not understood"}
	}
	v := s.heads[0]
	s.heads = s.heads[1:]
	return v
}

// broken is what was wrong after the head, or nil.
func (s *strict) broken() *violation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bad
}

// upgrade lets everything pass from now on, unless something came too early.
func (s *strict) upgrade() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bad != nil {
		return s.bad
	}
	s.raw = true
	return nil
}

func (s *strict) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for s.ready == 0 {
		switch s.state {
		case atEnd:
			return 0, io.EOF
		case atBody:
			return s.body(p)
		case atChunks:
			return s.chunks(p)
		case atUpgrade:
			if n, err := s.upgraded(p); n > 0 || err != nil {
				return n, err
			}
			continue
		}
		if err := s.head(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.buf[:s.ready])
	s.ready -= n
	s.drop(n)
	return n, nil
}

func (s *strict) drop(n int) {
	s.buf = s.buf[:copy(s.buf, s.buf[n:])]
	if len(s.buf) == 0 && cap(s.buf) > 4*headSize {
		s.buf = nil // a connection that waits need not keep what one large head took
	}
}

// head reads until the head is complete or refused.
func (s *strict) head() error {
	for {
		end, v := s.look()
		if v != nil {
			s.refuse(v)
			return nil
		}
		if end > 0 {
			s.judge(end)
			return nil
		}
		if err := s.more(); err != nil {
			if len(s.buf) > 0 && errors.Is(err, io.EOF) {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
}

// look finds the end of the head in buf, or 0 if it has not come yet. It need not come
// for what is wrong to show.
func (s *strict) look() (int, *violation) {
	wrong := func(status int, reason string) (int, *violation) {
		return 0, &violation{status: status, reason: reason}
	}
	for ; s.seen < len(s.buf); s.seen++ {
		i, b := s.seen, s.buf[s.seen]
		after := i > 0 && s.buf[i-1] == '\r'
		switch {
		case i >= s.limit:
			return wrong(http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("the head of the request has more than %d bytes", s.limit))
		case b == '\n' && !after:
			return wrong(http.StatusBadRequest, "a line of the head ends with a bare LF")
		case b != '\n' && after:
			return wrong(http.StatusBadRequest, "the head holds a bare CR")
		case b == 0:
			return wrong(http.StatusBadRequest, "the head holds a NUL")
		case b == '\n' && i >= 3 && s.buf[i-2] == '\n':
			return i + 1, nil
		case b == '\n' && i == 1:
			return wrong(http.StatusBadRequest, "the request begins with an empty line")
		}
	}
	return 0, nil
}

func (s *strict) judge(end int) {
	f, v := checkHead(s.buf[:end], s.tls)
	if v != nil {
		s.refuse(v)
		return
	}
	s.pass(nil)
	s.seen, s.ready = 0, end
	switch {
	case f.upgrade:
		s.state = atUpgrade
	case f.length == chunked:
		s.state, s.chunk = atChunks, chunkScan{limit: s.limit}
	case f.length > 0:
		s.state, s.left = atBody, f.length
	default:
		s.state = atHead
	}
}

func (s *strict) refuse(v *violation) {
	s.pass(v)
	s.buf = append(s.buf[:0], standIn...)
	s.ready, s.state = len(standIn), atEnd
}

func (s *strict) pass(v *violation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heads = append(s.heads, v)
}

func (s *strict) spoil(reason string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = atEnd
	s.bad = &violation{status: http.StatusBadRequest, reason: reason}
	return s.bad
}

// more reads from the guest into buf.
func (s *strict) more() error {
	if len(s.buf) == cap(s.buf) {
		grown := make([]byte, len(s.buf), min(max(headSize, 2*cap(s.buf)), s.limit+headSize))
		copy(grown, s.buf)
		s.buf = grown
	}
	n, err := s.src.Read(s.buf[len(s.buf):cap(s.buf)])
	s.buf = s.buf[:len(s.buf)+n]
	if n > 0 {
		return nil
	}
	return err
}

// take gives out what is buffered, or reads past the buffer.
func (s *strict) take(p []byte) (int, error) {
	if len(s.buf) > 0 {
		return copy(p, s.buf), nil
	}
	return s.src.Read(p)
}

func (s *strict) body(p []byte) (int, error) {
	buffered := len(s.buf) > 0
	n, err := s.take(p[:min(int64(len(p)), s.left)])
	if buffered {
		s.drop(n)
	}
	if s.left -= int64(n); s.left == 0 {
		s.state = atHead
	}
	return n, err
}

func (s *strict) chunks(p []byte) (int, error) {
	buffered := len(s.buf) > 0
	n, err := s.take(p)
	used, wrong := s.chunk.scan(p[:n])
	if wrong != nil {
		return 0, s.spoil(wrong.Error())
	}
	if buffered {
		s.drop(used)
	} else if used < n {
		s.buf = append(s.buf, p[used:n]...)
	}
	if s.chunk.state == chunkEnd {
		s.state = atHead
	}
	return used, err
}

// upgraded passes on what comes once the upgrade is made. Before, there is nothing
// that a client may send (RFC 6455, 4.1): it would be taken for a request by one
// reader and for the new protocol by another.
func (s *strict) upgraded(p []byte) (int, error) {
	s.mu.Lock()
	raw := s.raw
	s.mu.Unlock()
	if raw {
		buffered := len(s.buf) > 0
		n, err := s.take(p)
		if buffered {
			s.drop(n)
		}
		return n, err
	}
	if len(s.buf) == 0 {
		if err := s.more(); err != nil {
			return 0, err
		}
	}
	s.mu.Lock()
	raw = s.raw
	s.mu.Unlock()
	if !raw {
		return 0, s.spoil("bytes were sent after an upgrade was asked for and before it was answered")
	}
	return 0, nil
}
