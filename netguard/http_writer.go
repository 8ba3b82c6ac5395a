package netguard

import (
	"net"
	"sync"
	"time"
)

// webBuffer is the size of the buffers between guest and server, in bytes: a
// frame's worth at the guest's MTU.
const webBuffer = 64 << 10

// Where more than fewRequests are under way the buffers are small: a guest that reads none
// of its answers fills all of them.
const (
	smallWebBuffer = 8 << 10
	fewRequests    = 32
)

// webBytes is a buffer from one of the pools.
type webBytes struct{ b []byte }

var (
	webBuffers      = sync.Pool{New: func() any { return &webBytes{make([]byte, webBuffer)} }}
	smallWebBuffers = sync.Pool{New: func() any { return &webBytes{make([]byte, smallWebBuffer)} }}
)

// takeBuffer gives one that fits how many requests are under way; give takes it back.
func takeBuffer(requests int) *webBytes {
	if requests > fewRequests {
		return smallWebBuffers.Get().(*webBytes)
	}
	return webBuffers.Get().(*webBytes)
}

func (b *webBytes) give() {
	if len(b.b) == webBuffer {
		webBuffers.Put(b)
	} else {
		smallWebBuffers.Put(b)
	}
}

// webWriter gathers what the HTTP server writes while the guest is still being
// sent what came before, so that the many small writes of chunks and HTTP/2 frames
// reach a guest in few large ones. It holds up to two buffers, and none while it
// has nothing to send.
type webWriter struct {
	sink     func([]byte) error
	requests func() int // under way

	mu      sync.Mutex
	change  sync.Cond
	pending *webBytes // what comes next; nil if nothing
	n       int
	busy    bool
	closed  bool
	err     error
	done    chan struct{}
}

// newWebWriter starts the goroutine that writes; finish ends it and waits.
func newWebWriter(requests func() int, sink func([]byte) error) *webWriter {
	w := &webWriter{sink: sink, requests: requests, done: make(chan struct{})}
	w.change.L = &w.mu
	go w.run()
	return w
}

// Write takes p over, and waits while the buffer is full. The error is that of an
// earlier write.
func (w *webWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	total := 0
	for {
		if w.err != nil {
			return total, w.err
		}
		if w.closed {
			return total, net.ErrClosed
		}
		if len(p) == 0 {
			return total, nil
		}
		if w.pending == nil {
			w.pending = takeBuffer(w.requests())
		}
		if w.n == len(w.pending.b) {
			w.change.Wait()
			continue
		}
		n := copy(w.pending.b[w.n:], p)
		w.n, p, total = w.n+n, p[n:], total+n
		w.change.Broadcast()
	}
}

func (w *webWriter) run() {
	defer close(w.done)
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for w.n == 0 && !w.closed && w.err == nil {
			w.change.Wait()
		}
		if w.n == 0 || w.err != nil {
			if w.pending != nil {
				w.pending.give()
				w.pending = nil
			}
			return
		}
		buf, n := w.pending, w.n
		w.pending, w.n, w.busy = nil, 0, true
		w.change.Broadcast()
		w.mu.Unlock()
		err := w.sink(buf.b[:n])
		buf.give()
		w.mu.Lock()
		w.busy = false
		if err != nil && w.err == nil {
			w.err = err
		}
		w.change.Broadcast()
	}
}

// drain waits until all is written, or writing has failed.
func (w *webWriter) drain() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for (w.n > 0 || w.busy) && w.err == nil {
		w.change.Wait()
	}
	return w.err
}

// fail makes every write fail from now on.
func (w *webWriter) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	w.change.Broadcast()
}

// finish writes what is left and ends the goroutine.
func (w *webWriter) finish() {
	w.mu.Lock()
	w.closed = true
	w.change.Broadcast()
	w.mu.Unlock()
	<-w.done
}

// corked gathers the records of one TLS write into one write to the guest: crypto/tls
// makes a write of each 16 KiB.
type corked struct {
	net.Conn
	// For the handshake: whose it is, and why it was refused.
	flow    *Flow
	refused string

	mu   sync.Mutex
	held []byte
	cork bool
}

// corkSize is a full buffer in TLS records, in bytes.
const corkSize = webBuffer + 1<<10

func (c *corked) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.cork || len(c.held)+len(p) > corkSize {
		if err := c.flush(); err != nil {
			return 0, err
		}
		return c.Conn.Write(p)
	}
	c.held = append(c.held, p...)
	return len(p), nil
}

func (c *corked) flush() error {
	if len(c.held) == 0 {
		return nil
	}
	_, err := c.Conn.Write(c.held)
	c.held = c.held[:0]
	return err
}

var corks = sync.Pool{New: func() any { b := make([]byte, 0, corkSize); return &b }}

// write calls f, whose writes go out together.
func (c *corked) write(f func() error) error {
	buf := corks.Get().(*[]byte)
	c.mu.Lock()
	c.held, c.cork = (*buf)[:0], true
	c.mu.Unlock()
	err := f()
	c.mu.Lock()
	defer c.mu.Unlock()
	if ferr := c.flush(); err == nil {
		err = ferr
	}
	*buf = c.held[:0]
	c.held, c.cork = nil, false
	corks.Put(buf)
	return err
}

// timedWrite bounds each write by the time that a guest may take to make room.
func timedWrite(conn net.Conn, idle time.Duration, b []byte) error {
	if err := conn.SetWriteDeadline(time.Now().Add(idle)); err != nil {
		return err
	}
	_, err := conn.Write(b)
	return err
}
