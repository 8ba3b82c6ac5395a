//go:build linux

package sandboxd

import (
	"sort"
	"sync"
	"time"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// Bounds of a spool, in bytes.
const (
	minSpool     = 64 << 10
	maxSpool     = 64 << 20
	defaultSpool = 1 << 20
)

// maxUnacked bounds the pieces of output that wait for an acknowledgement, since
// a piece of one byte takes two hundred.
const maxUnacked = 16 * wire.AckFrames

// spool holds the output of one process between its pipes and its readers.
// Both streams share it in the order in which they were read, so that one
// position names a place in the output.
//
// With a blocking spool a full one stops the process until the host has
// acknowledged output; otherwise the oldest output makes room. What background
// children write after the process has ended never pushes out output that was
// not acknowledged.
type spool struct {
	mu       sync.Mutex
	size     int
	blocking bool
	retain   bool // keep acknowledged output as long as there is room
	chunks   []*entry
	start    int64 // position of the oldest byte kept
	end      int64
	floor    int64 // acknowledged
	final    int64 // end of the process's own output, set when it has ended
	finished bool
	dropped  bool          // abandoned: discard everything
	wake     chan struct{} // closed when something changes; nil when nobody waits
}

type entry struct {
	kind  wire.Kind
	off   int64
	chunk *wire.Chunk
	taken bool // a reader sends from it: nothing may be appended
}

func (e *entry) end() int64 { return e.off + int64(len(e.chunk.Payload())) }

func newSpool(size int, blocking, retain bool) *spool {
	if size == 0 {
		size = defaultSpool
	}
	return &spool{size: min(max(size, minSpool), maxSpool), blocking: blocking, retain: retain}
}

// chunkPool holds empty chunks of full size.
var chunkPool = sync.Pool{New: func() any { return wire.NewChunk(wire.MaxFrame) }}

// small is the payload below which a chunk is copied to a place of its own
// size, so that many short writes do not each hold a full buffer.
const small = wire.MaxFrame / 4

// add appends a chunk's payload and takes the chunk over. It blocks while a
// blocking spool is full.
func (s *spool) add(kind wire.Kind, c *wire.Chunk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(c.Payload())
	for s.fullLocked(n) {
		s.waitLocked(nil, nil)
	}
	if s.finished && s.blocking && s.floor < s.final {
		recycle(c) // of a background child, and the command's own output waits yet
		return
	}
	if s.dropped {
		s.start, s.end = s.end+int64(n), s.end+int64(n)
		recycle(c)
		return
	}
	s.trimLocked(n)
	defer s.wakeLocked()
	if n < small {
		if last := s.last(); last != nil && !last.taken && last.kind == kind && len(last.chunk.Space()) >= n {
			last.chunk.Append(c.Payload())
			s.end += int64(n)
			recycle(c)
			return
		}
		own := wire.NewChunk(max(n, 64))
		own.Append(c.Payload())
		recycle(c)
		c = own
	}
	s.chunks = append(s.chunks, &entry{kind: kind, off: s.end, chunk: c})
	s.end += int64(n)
}

// fullLocked reports whether the writer must wait before it adds n bytes.
func (s *spool) fullLocked(n int) bool {
	if !s.blocking || s.finished || s.dropped || s.end == s.floor {
		return false
	}
	unacked := len(s.chunks) - sort.Search(len(s.chunks), func(i int) bool { return s.chunks[i].end() > s.floor })
	return int(s.end-s.floor)+n > s.size || unacked >= maxUnacked
}

func (s *spool) last() *entry {
	if len(s.chunks) == 0 {
		return nil
	}
	return s.chunks[len(s.chunks)-1]
}

// trimLocked drops the oldest chunks until n more bytes fit, or all that may go.
// Each entry counts with its overhead, so that one-byte writes are bounded too.
func (s *spool) trimLocked(n int) {
	const overhead = 128
	for len(s.chunks) > 0 {
		first := s.chunks[0]
		full := int(s.end-s.start)+n+overhead*len(s.chunks) > s.size+s.size/2 || int(s.end-s.start)+n > s.size
		acked := first.end() <= s.floor
		if acked && !s.retain {
			full = true
		}
		ended := s.finished && s.floor >= s.final // only background children write yet
		if !full || (s.blocking && !acked && !ended) {
			return
		}
		s.start = first.end()
		s.chunks[0] = nil
		s.chunks = s.chunks[1:]
		if acked { // nobody sends from it any more
			recycle(first.chunk)
		}
	}
	s.chunks = nil
}

func recycle(c *wire.Chunk) {
	if cap(c.Payload()) != wire.MaxFrame {
		return
	}
	c.Reset()
	chunkPool.Put(c)
}

// ack records that the host has taken output up to position n.
func (s *spool) ack(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > s.end || n <= s.floor {
		return
	}
	s.floor = n
	s.trimLocked(0)
	s.wakeLocked()
}

// finish says that the process has ended and its output is complete.
func (s *spool) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finished, s.final = true, s.end
	s.wakeLocked()
}

// abandon discards what is there and what will come.
func (s *spool) abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropped = true
	s.chunks, s.start = nil, s.end
	s.wakeLocked()
}

// next returns the chunk that holds position pos, waiting for one. It returns
// nil when the process has ended and pos is at the end of its output, or when stop closes.
func (s *spool) next(pos int64, stop <-chan struct{}) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if pos < s.start {
			pos = s.start
		}
		if s.finished && pos >= s.final {
			return nil
		}
		if pos < s.end {
			i := sort.Search(len(s.chunks), func(i int) bool { return s.chunks[i].end() > pos })
			s.chunks[i].taken = true
			return s.chunks[i]
		}
		if s.dropped || !s.waitLocked(stop, nil) {
			return nil
		}
	}
}

// copyFrom copies up to limit bytes from pos on, waiting up to wait for some. A negative pos means
// the newest limit bytes. It returns the position of the first byte returned.
func (s *spool) copyFrom(pos int64, limit int, wait time.Duration, stop <-chan struct{}) ([]byte, int64) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if pos < 0 {
		pos = max(s.end-int64(limit), 0)
	}
	for pos >= s.end && !s.finished && !s.dropped {
		if !s.waitLocked(stop, timer.C) {
			break
		}
	}
	pos = min(max(pos, s.start), s.end)
	out := make([]byte, 0, min(int64(limit), s.end-pos))
	first := pos
	i := sort.Search(len(s.chunks), func(i int) bool { return s.chunks[i].end() > pos })
	for ; i < len(s.chunks) && len(out) < limit; i++ {
		e := s.chunks[i]
		part := e.chunk.Payload()[pos-e.off:]
		part = part[:min(len(part), limit-len(out))]
		out = append(out, part...)
		pos += int64(len(part))
	}
	return out, first
}

// position returns the end of the output.
func (s *spool) position() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.end
}

// clamp returns the nearest position to pos whose output is still there.
func (s *spool) clamp(pos int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return min(max(pos, s.start), s.end)
}

// held returns how many bytes the spool keeps.
func (s *spool) held() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.end - s.start
}

// waitLocked releases the lock until something changes; false when stop closed
// or the timeout came first.
func (s *spool) waitLocked(stop <-chan struct{}, timeout <-chan time.Time) bool {
	if s.wake == nil {
		s.wake = make(chan struct{})
	}
	wake := s.wake
	s.mu.Unlock()
	defer s.mu.Lock()
	select {
	case <-wake:
		return true
	case <-stop:
	case <-timeout:
	}
	return false
}

func (s *spool) wakeLocked() {
	if s.wake != nil {
		close(s.wake)
		s.wake = nil
	}
}
