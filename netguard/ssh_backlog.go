package netguard

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

var errSSHBacklog = errors.New("too much was received that nobody takes")

// backlog bounds what an SSH connection has received and nobody has taken yet. The window
// of a channel does not: it counts bytes of data, and a packet with one byte of data
// costs some fifty in memory. So what comes in on the wire is counted, and no longer
// counts once it is read, or all readers wait and therefore nothing is left.
type backlog struct {
	all *atomic.Int64 // of the guard's connections

	mu      sync.Mutex
	readers int
	waiting int
	debt    int64
}

// join adds n readers.
func (b *backlog) join(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.readers += n
}

// leave takes away a reader that has seen the end.
func (b *backlog) leave() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.readers--
	b.settle()
}

func (b *backlog) wait() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting++
	b.settle()
}

// got ends a wait, with n bytes.
func (b *backlog) got(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting--
	b.add(-int64(n))
}

// settle forgets the debt when nobody has anything left to read. What arrives
// between a reader's being woken and its call of got is missed: a few packets.
func (b *backlog) settle() {
	if b.readers > 0 && b.waiting == b.readers {
		b.add(-b.debt)
	}
}

func (b *backlog) add(n int64) {
	n = max(n, -b.debt)
	b.debt += n
	b.all.Add(n)
}

// arrived counts what came in on the wire.
func (b *backlog) arrived(n int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.add(int64(n))
	if b.all.Load() > maxSSHBacklog {
		return errSSHBacklog
	}
	return nil
}

// close gives back what is left when the connection is over.
func (b *backlog) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.add(-b.debt)
}

// next receives from one of x/crypto/ssh's channels as a reader of b.
func next[T any](b *backlog, from <-chan T) (T, bool) {
	b.wait()
	v, ok := <-from
	b.got(0)
	return v, ok
}

// sshWire is a connection under SSH: it feeds a backlog and notes when something moved.
type sshWire struct {
	net.Conn
	backlog *backlog
	moved   *atomic.Int64 // in ns
	ended   atomic.Bool   // nothing more can be read
}

// Read implements net.Conn.
func (w *sshWire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if n > 0 {
		w.moved.Store(time.Now().UnixNano())
		if over := w.backlog.arrived(n); over != nil {
			w.ended.Store(true)
			return 0, over
		}
	}
	if err != nil {
		w.ended.Store(true)
	}
	return n, err
}

// Write implements net.Conn.
func (w *sshWire) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	if n > 0 {
		w.moved.Store(time.Now().UnixNano())
	}
	return n, err
}
