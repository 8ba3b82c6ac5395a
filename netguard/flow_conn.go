package netguard

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// guestConn is our end of a TCP connection of the guest's. It counts, gives errors of the
// standard library instead of the stack's, and can be reset. Close sends what is
// written and a FIN and does not wait; the goroutine that owns the connection then calls
// linger, so that even a closed one is somebody's until nothing is left of it.
type guestConn struct {
	*gonet.TCPConn
	wq *waiter.Queue
	ep tcpip.Endpoint

	sent, received atomic.Int64 // bytes from and to the guest
	closed         atomic.Bool

	writeMu sync.Mutex
	budget  int // memory for what the guest has not acknowledged, in bytes
	average int // size of the last writes
	size    int // of the send buffer
}

// segmentCost is what the stack keeps for each write beside its bytes. It does not
// count this against the send buffer: 1 MiB in single bytes would hold 1 GiB.
const segmentCost = 1024

func newGuestConn(wq *waiter.Queue, ep tcpip.Endpoint, send, receive int) *guestConn {
	so := ep.SocketOptions()
	so.SetSendBufferSize(int64(send), true)
	if receive < maxBuffer {
		so.SetReceiveBufferSize(int64(receive), true) // and it grows no more
	}
	so.SetKeepAlive(true)
	so.SetDelayOption(false)
	// Only a wrong option could fail here, and then its default holds.
	_ = ep.SetSockOpt(ptr(tcpip.KeepaliveIdleOption(keepaliveIdle)))
	_ = ep.SetSockOpt(ptr(tcpip.KeepaliveIntervalOption(keepaliveInterval)))
	_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount)
	return &guestConn{TCPConn: gonet.NewTCPConn(wq, ep), wq: wq, ep: ep, budget: send, size: send, average: send}
}

// Read implements net.Conn.
func (c *guestConn) Read(p []byte) (int, error) {
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	n, err := c.TCPConn.Read(p)
	c.sent.Add(int64(n))
	return n, c.convert(err)
}

// Write implements net.Conn.
func (c *guestConn) Write(p []byte) (int, error) {
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	c.fit(len(p))
	n, err := c.TCPConn.Write(p)
	c.received.Add(int64(n))
	return n, c.convert(err)
}

// fit sizes the send buffer by the writes, so that what it holds costs at most the
// budget. Where tiny writes have to wait for the guest, the next ones come together.
func (c *guestConn) fit(n int) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	c.average += (min(n, c.budget) - c.average) / 8
	want := max(64, c.budget/(c.average+segmentCost)*c.average+c.average)
	if want = min(want, c.budget); want < c.size*3/4 || want > c.size*5/4 || want == c.budget && c.size != want {
		c.size = want
		c.ep.SocketOptions().SetSendBufferSize(int64(want), true)
	}
}

// CloseWrite sends a FIN after what is written.
func (c *guestConn) CloseWrite() error { return c.convert(c.TCPConn.CloseWrite()) }

// Close implements net.Conn.
func (c *guestConn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	_ = c.TCPConn.CloseWrite()                 // fails only if the connection is gone
	_ = c.TCPConn.SetDeadline(time.Unix(1, 0)) // for a Read or Write that waits
	return nil
}

// abort resets the connection: the guest gets an RST.
func (c *guestConn) abort() {
	c.closed.Store(true)
	c.ep.Abort()
}

// linger closes the connection and returns when the guest has got everything and
// its own FIN has come, or when it is reset: after patience if the guest does not read, at
// once if somebody aborts.
func (c *guestConn) linger(patience time.Duration) {
	_ = c.Close()
	defer c.ep.Close()
	entry, news := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	c.wq.EventRegister(&entry)
	defer c.wq.EventUnregister(&entry)
	// Not all that happens is told.
	look := time.NewTicker(time.Second)
	defer look.Stop()
	end := time.Now().Add(patience)
	for finAcked := false; ; {
		// What still comes from the guest goes nowhere: left unread, it would reset the
		// connection before the guest has read ours.
		_, err := c.ep.Read(io.Discard, tcpip.ReadOptions{})
		switch state := tcp.EndpointState(c.ep.State()); {
		case state == tcp.StateTimeWait || state == tcp.StateClose || state == tcp.StateError:
			return
		case state == tcp.StateFinWait2 && !finAcked:
			finAcked = true
			end = earlier(end, time.Now().Add(finTimeout))
		}
		if !time.Now().Before(end) {
			c.ep.Abort()
			return
		}
		if err == nil {
			continue
		}
		select {
		case <-news:
		case <-look.C:
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// isTimeout tells a deadline of the stack's from its other errors.
func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// convert gives the stack's errors in terms of the standard library.
func (c *guestConn) convert(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	if c.closed.Load() {
		return net.ErrClosed
	}
	if isTimeout(err) {
		return &net.OpError{Op: "guest", Net: "tcp", Addr: c.RemoteAddr(), Err: os.ErrDeadlineExceeded}
	}
	var op *net.OpError
	if errors.As(err, &op) {
		if known, ok := stackErrors[op.Err.Error()]; ok {
			return &net.OpError{Op: op.Op, Net: op.Net, Source: op.Source, Addr: op.Addr, Err: known}
		}
	}
	return err
}

// stackErrors are the texts by which gonet gives the stack's errors.
var stackErrors = map[string]error{
	(&tcpip.ErrConnectionReset{}).String():      syscall.ECONNRESET,
	(&tcpip.ErrConnectionAborted{}).String():    syscall.ECONNABORTED,
	(&tcpip.ErrAborted{}).String():              syscall.ECONNABORTED,
	(&tcpip.ErrClosedForSend{}).String():        syscall.EPIPE,
	(&tcpip.ErrClosedForReceive{}).String():     net.ErrClosed,
	(&tcpip.ErrTimeout{}).String():              syscall.ETIMEDOUT,
	(&tcpip.ErrNotConnected{}).String():         syscall.ENOTCONN,
	(&tcpip.ErrInvalidEndpointState{}).String(): net.ErrClosed,
	(&tcpip.ErrDestinationRequired{}).String():  syscall.ENOTCONN,
	(&tcpip.ErrNoBufferSpace{}).String():        syscall.ENOBUFS,
	(&tcpip.ErrHostUnreachable{}).String():      syscall.EHOSTUNREACH,
	(&tcpip.ErrNetworkUnreachable{}).String():   syscall.ENETUNREACH,
	(&tcpip.ErrConnectionRefused{}).String():    syscall.ECONNREFUSED,
	(&tcpip.ErrBadAddress{}).String():           syscall.EADDRNOTAVAIL,
}
