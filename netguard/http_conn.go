package netguard

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// webConn is the guest's connection as the HTTP servers see it: decrypted, read
// strictly, written in large pieces. The server's Close lets go of it; what is
// beneath is closed by the flow's goroutine, after the last byte has been written.
type webConn struct {
	net.Conn // TLS or plain
	flow     *Flow
	tls      bool
	host     string // canonical, as policy knows it
	port     uint16

	in     io.Reader
	strict *strict // in, for HTTP/1
	out    *webWriter

	over chan struct{} // closed when the server has let go
	once sync.Once
}

func (c *webConn) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *webConn) Write(p []byte) (int, error) { return c.out.Write(p) }

// Close waits for the guest to take what was written, for as long as a write may
// take.
func (c *webConn) Close() error {
	err := c.out.drain()
	c.release()
	return err
}

// CloseWrite tells the guest that nothing more comes, while it still sends.
func (c *webConn) CloseWrite() error {
	if err := c.out.drain(); err != nil {
		return err
	}
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// SetWriteDeadline serves to break off a response; how long the guest may take is
// the writer's own matter.
func (c *webConn) SetWriteDeadline(t time.Time) error {
	if t.IsZero() || time.Now().Before(t) {
		return nil
	}
	c.out.fail(os.ErrDeadlineExceeded)
	return c.Conn.SetWriteDeadline(t)
}

func (c *webConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// release ends the server's turn.
func (c *webConn) release() { c.once.Do(func() { close(c.over) }) }

// abort ends everything that reads or writes.
func (c *webConn) abort() {
	c.out.fail(net.ErrClosed)
	_ = closeNow(c.Conn) // it is over for whoever uses it, whatever it says
}

// closeNow closes without the farewell of TLS, for which the guest would have to
// read.
func closeNow(conn net.Conn) error {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	return conn.Close()
}

// preface is how HTTP/2 begins without TLS (RFC 9113, 3.4), up to where no HTTP/1
// client gets.
const preface = "PRI * HTTP/2.0"

// startsHTTP2 reads no more of the connection than tells the protocol, and gives a
// reader that begins with it.
func startsHTTP2(conn net.Conn) (bool, io.Reader, error) {
	head := make([]byte, 0, len(preface))
	for len(head) < len(preface) && bytes.HasPrefix([]byte(preface), head) {
		n, err := conn.Read(head[len(head):cap(head)])
		head = head[:len(head)+n]
		if err != nil {
			return false, nil, err
		}
	}
	return string(head) == preface, &replayed{head: head, Reader: conn}, nil
}

type replayed struct {
	head []byte
	io.Reader
}

func (r *replayed) Read(p []byte) (int, error) {
	if len(r.head) == 0 {
		return r.Reader.Read(p)
	}
	n := copy(p, r.head)
	r.head = r.head[n:]
	return n, nil
}
