package vfs

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/gondolin-go/gondolin/guest/fsport"
)

// serve runs one connection. Its goroutines: this one reads the port; workers, as
// many as there is work for, run requests and write replies; one ends the connection with
// ctx; one ends interrupted requests; one per watching mount and one that sends what they report.
func (s *Server) serve(ctx context.Context, rw io.ReadWriteCloser) error {
	ctx, cancel := context.WithCancel(ctx)
	c := &conn{
		s: s, ctx: ctx, rw: rw, in: bufio.NewReaderSize(rw, 64<<10), jobs: map[uint64]*job{},
		hurry: make(chan struct{}, 1), deadline: func(time.Time) error { return nil },
	}
	c.work.L, c.room.L = &c.mu, &c.mu
	if d, ok := rw.(interface{ SetWriteDeadline(time.Time) error }); ok {
		c.deadline = d.SetWriteDeadline
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-ctx.Done()
		c.fail(context.Cause(ctx))
	}()
	impatient := make(chan struct{})
	go func() {
		defer close(impatient)
		c.endInterrupted()
	}()
	err := c.run()
	c.fail(err)
	cancel()
	<-ended
	<-impatient
	c.cancelAll()
	c.running.Wait()
	c.endWorld()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.why
}

// conn is one connection of the file port.
type conn struct {
	s        *Server
	ctx      context.Context
	rw       io.ReadWriteCloser
	in       *bufio.Reader // used by run only
	deadline func(time.Time) error

	slowUntil time.Time // until then every request gets a worker; used by run only

	writing sync.Mutex    // one frame at a time
	hurry   chan struct{} // stopped has its first job

	// The FUSE connection, from one FUSE_INIT to the next: set while no job runs.
	ps     *fuse.ProtocolServer
	raw    *raw
	notify *notifier

	running sync.WaitGroup // workers
	panics  int            // told to the log; guarded by mu

	mu      sync.Mutex
	work    sync.Cond       // the queue or the connection's state changed: for workers
	room    sync.Cond       // a job or the connection ended: for run
	queue   []*job          // waiting, in order
	jobs    map[uint64]*job // waiting or running, by their numbers
	workers int
	idle    int    // workers that wait for a job
	bytes   int    // of jobs
	stopped []*job // interrupted, in the order of until
	closed  bool
	why     error
}

// job is a request under way.
type job struct {
	in     frame
	buf    *[]byte // in's memory, to be put back into its pool
	weight int     // bytes of the request and its reply

	canceled chan struct{} // closed when the request shall end
	told     bool          // canceled is closed; guarded by conn.mu
	until    time.Time     // interrupted, and ends at this time at the latest
}

// fail ends the connection; the first reason stays.
func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.closed, c.why = true, err
	if errors.Is(err, ErrProtocol) {
		c.s.log.Warn("the guest broke the file protocol; its mounts are gone until it reconnects", "error", err)
	}
	_ = c.rw.Close()
	c.work.Broadcast()
	c.room.Broadcast()
}

// run begins the connection and reads it to its end.
func (c *conn) run() error {
	reset := c.s.resume.Swap(true)
	if err := c.deadline(time.Now().Add(c.s.opts.WriteTimeout)); err != nil {
		return err
	}
	if err := fsport.Begin(c.in, c.rw, reset); err != nil {
		return ended(err)
	}
	for {
		head, err := c.in.Peek(inHeader)
		if err != nil {
			if errors.Is(err, io.EOF) && len(head) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return ended(err)
		}
		n, ok := fsport.FrameLen(head, inHeader)
		if !ok {
			return fmt.Errorf("%w: frame of %d bytes (operation %d)", ErrProtocol, n, frame(head).opcode())
		}
		buf := getBuffer(n)
		f := frame((*buf)[:n])
		if _, err := io.ReadFull(c.in, f); err != nil {
			putBuffer(buf)
			return ended(err)
		}
		kept, err := c.take(f, buf)
		if !kept {
			putBuffer(buf)
		}
		if err != nil {
			return err
		}
	}
}

// ended is the result of a connection whose other side closed: none.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}

// take handles one frame, and says whether it kept the buffer.
func (c *conn) take(f frame, buf *[]byte) (bool, error) {
	if err := check(f); err != nil {
		var errno syscall.Errno
		if !errors.As(err, &errno) || errors.Is(err, ErrProtocol) {
			return false, err
		}
		return false, c.write(errorReply(make([]byte, outHeader), f, errno))
	}
	if f.opcode() == opInit {
		return false, c.init(f)
	}
	if c.ps == nil {
		return false, fmt.Errorf("%w: operation %d before FUSE_INIT", ErrProtocol, f.opcode())
	}
	switch f.opcode() {
	case opForget, opBatchForget:
		// At once and in order, as memory depends on them.
		c.handle(f, nil)
		return false, nil
	case opInterrupt:
		c.interrupt(f.u64(inHeader))
		return false, nil
	case opDestroy:
		return false, c.write(errorReply(make([]byte, outHeader), f, 0))
	}
	if c.inline(f) {
		return false, c.runInline(f)
	}
	return c.enqueue(f, buf)
}

const (
	// slowInline is how long a request may take that is run where it was read. It takes a few
	// microseconds; a provider that is slower gets workers again for inlineRest.
	slowInline = 500 * time.Microsecond
	inlineRest = time.Second
	// maxInline is the longest request that is run where it was read.
	maxInline = 64 << 10
)

// inline says whether to run f here and now: a worker costs the wake-up of a
// thread, which is a large part of the time that a small request takes. Only one that
// nothing else is under way with, so that a slow one holds up nobody.
func (c *conn) inline(f frame) bool {
	switch f.opcode() {
	case opLookup, opGetattr, opMkdir, opUnlink, opRmdir, opGetxattr, opCreate, opRelease, opReleasedir, opWrite:
	default:
		return false
	}
	if len(f) > maxInline || time.Now().Before(c.slowUntil) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.jobs) == 0
}

func (c *conn) runInline(f frame) error {
	out := getBuffer(replySize(f))
	defer putBuffer(out)
	began := time.Now()
	reply := c.handle(f, *out)
	if now := time.Now(); now.Sub(began) > slowInline {
		c.slowUntil = now.Add(inlineRest)
	}
	return c.answer(f, reply)
}

// enqueue hands f to the workers when the bounds allow it. While they do not, the
// port is not read, and in the end the guest's programs wait.
func (c *conn) enqueue(f frame, buf *[]byte) (bool, error) {
	j := &job{in: f, buf: buf, weight: cap(*buf) + bufferSize(replySize(f)), canceled: make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.closed && len(c.jobs) > 0 && (len(c.jobs) >= c.s.opts.MaxRequests || c.bytes+j.weight > c.s.opts.MaxBytes) {
		c.room.Wait()
	}
	if c.closed {
		return false, c.why
	}
	if c.jobs[f.unique()] != nil {
		return false, fmt.Errorf("%w: two requests numbered %d", ErrProtocol, f.unique())
	}
	c.jobs[f.unique()] = j
	c.bytes += j.weight
	c.queue = append(c.queue, j)
	// A worker that was woken counts as idle until it has taken its job.
	if len(c.queue) <= c.idle {
		c.work.Signal()
	} else if c.workers < c.s.opts.MaxWorkers {
		c.workers++
		c.running.Add(1)
		go c.worker()
	}
	return true, nil
}

// worker runs jobs until the connection ends.
func (c *conn) worker() {
	defer c.running.Done()
	for {
		j := c.next()
		if j == nil {
			return
		}
		out := getBuffer(replySize(j.in))
		reply := c.handle(j.in, *out)
		err := c.answer(j.in, reply)
		putBuffer(out)
		c.finish(j)
		if err != nil {
			c.fail(err)
		}
	}
}

func (c *conn) next() *job {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) == 0 && !c.closed {
		c.idle++
		c.work.Wait()
		c.idle--
	}
	if c.closed {
		return nil
	}
	j := c.queue[0]
	c.queue[0] = nil
	c.queue = c.queue[1:]
	return j
}

func (c *conn) finish(j *job) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.jobs, j.in.unique())
	c.bytes -= j.weight
	putBuffer(j.buf)
	c.room.Broadcast()
}

// handle lets go-fuse do f and returns the reply, in out.
func (c *conn) handle(f frame, out []byte) []byte {
	n, st := c.ps.HandleRequest([][]byte{f}, [][]byte{out})
	if st != fuse.OK || n < outHeader {
		if silent(f.opcode()) {
			return nil
		}
		return errorReply(out, f, syscall.EIO)
	}
	return out[:n]
}

// answer writes the reply to f, behind the notes of what f changed: in one piece, so that
// the guest has them when its kernel goes on.
func (c *conn) answer(f frame, reply []byte) error {
	if notes := c.raw.notes.take(f.unique()); len(notes) > 0 {
		reply = append(notes, reply...)
	}
	return c.write(reply)
}

// write sends frames. A guest that does not read it for WriteTimeout is given up.
func (c *conn) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.deadline(time.Now().Add(c.s.opts.WriteTimeout)); err != nil {
		return err
	}
	_, err := c.rw.Write(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the guest has not read from the file port for %v: %w", c.s.opts.WriteTimeout, err)
	}
	return ended(err)
}

// init begins a new world: what an earlier kernel, or an earlier mount, had open
// and knew is let go of.
func (c *conn) init(f frame) error {
	c.cancelAll()
	c.mu.Lock()
	for len(c.jobs) > 0 && !c.closed {
		c.room.Wait()
	}
	closed, why := c.closed, c.why
	c.mu.Unlock()
	if closed {
		return why
	}
	c.endWorld()
	c.raw = newRaw(c.ctx, c.s, c.canceled)
	c.ps = fuse.NewProtocolServer(c.raw, c.fuseOptions())
	out := make([]byte, outHeader+outMost)
	reply := c.handle(f, out)
	if len(reply) >= outHeader+initOutLeast {
		// go-fuse computes these from the host's page size and limits; the guest has others.
		binary.LittleEndian.PutUint32(reply[outHeader+20:], fsport.MaxData)
		binary.LittleEndian.PutUint16(reply[outHeader+28:], fsport.MaxData/4096)
	}
	if err := c.write(reply); err != nil {
		return err
	}
	c.notify = startNotifier(c)
	if c.s.opts.Ready != nil {
		c.s.opts.Ready()
	}
	return nil
}

// initOutLeast is the size of struct fuse_init_out up to max_pages: max_write is at
// 20, max_pages at 28.
const initOutLeast = 32

// endWorld closes and releases all that the FUSE connection held. No job runs.
func (c *conn) endWorld() {
	if c.raw == nil {
		return
	}
	if c.notify != nil {
		c.notify.stop()
	}
	c.raw.t.clear(c.guard)
	c.raw, c.ps, c.notify = nil, nil, nil
}

// guard runs f and keeps a provider's panic from taking the host along.
func (c *conn) guard(f func()) {
	defer func() {
		if p := recover(); p != nil {
			c.panicked(p)
		}
	}()
	f()
}

// maxPanics is how many panics of a connection are logged: a guest that finds a way
// to cause them must not fill the log.
const maxPanics = 5

func (c *conn) panicked(p any) fuse.Status {
	c.mu.Lock()
	c.panics++
	n := c.panics
	c.mu.Unlock()
	if n <= maxPanics {
		c.s.log.Error("a file provider panicked", "panic", p, "stack", string(debug.Stack()))
	}
	return fuse.EIO
}
