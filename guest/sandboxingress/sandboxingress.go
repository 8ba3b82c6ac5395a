//go:build linux

// Package sandboxingress connects the host to TCP servers of the guest: each stream that the host
// opens on the ingress port becomes a connection to a port of the guest's loopback, and nothing else can
// be asked for. sandboxd starts it when the host first needs it.
//
// Each stream has one goroutine for each direction, and the one that accepted it waits for
// both. A host that goes away ends them all; the next one begins with a handshake like that of the
// control port (package wire).
package sandboxingress

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/port"
	"github.com/gondolin-go/gondolin/guest/wire"
)

const (
	// dialTimeout is how long a connection on the loopback may take: a server whose queue is
	// full answers nothing.
	dialTimeout = 5 * time.Second
	// bufferSize fills what the port passes on in one piece.
	bufferSize = wire.MaxFrame
)

// Main serves the ingress port until that is impossible.
func Main(version string) {
	_ = os.WriteFile("/proc/self/comm", []byte("sandboxingress"), 0)
	err := run(version)
	fmt.Fprintf(os.Stderr, "gondolin: sandboxingress: %v\n", err)
	os.Exit(1)
}

func run(version string) error {
	p, err := port.WaitPolled(wire.PortIngress)
	if err != nil {
		return err
	}
	for {
		err := port.Greet(p, wire.Announce{Version: wire.Version, Agent: version}, func(*wire.Hello) error { return nil })
		if err == nil {
			err = serve(p)
		}
		if err != nil {
			return err
		}
	}
}

// serve answers one host until it closes the port.
func serve(conn io.ReadWriteCloser) error {
	mux, err := wire.DialServer(conn)
	if err != nil {
		return err
	}
	var streams sync.WaitGroup
	defer streams.Wait()
	defer mux.Close()
	places := make(chan struct{}, wire.MaxDials)
	for {
		stream, err := mux.AcceptStream()
		if err != nil {
			return nil // the port closed: wait for the next host
		}
		places <- struct{}{} // the host keeps below this
		streams.Go(func() {
			defer func() { <-places }()
			defer stream.Close()
			answer(stream)
		})
	}
}

// answer serves one stream.
func answer(stream net.Conn) {
	var req wire.Request
	var m wire.Dial
	_ = stream.SetReadDeadline(time.Now().Add(dialTimeout))
	if err := wire.ReadMessage(stream, &req); err != nil {
		return
	}
	_ = stream.SetReadDeadline(time.Time{})
	if err := wire.Unmarshal(req.Body, &m); req.Op != wire.OpDial || err != nil || m.Port == 0 {
		_ = wire.SendReply(stream, nil, &wire.Error{Code: wire.CodeInvalid, Msg: "only connections to a port are offered here"})
		return
	}
	conn, err := dial(m.Port)
	if err != nil {
		_ = wire.SendReply(stream, nil, dialError(err))
		return
	}
	defer conn.Close()
	if wire.SendReply(stream, nil, nil) != nil {
		return
	}
	join(stream, conn)
}

// dial connects to a port of the loopback, over IPv4 or else IPv6.
func dial(port uint16) (*net.TCPConn, error) {
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(int(port))), dialTimeout)
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func dialError(err error) *wire.Error {
	e := &wire.Error{Code: wire.CodeErrno, Errno: "ETIMEDOUT", Msg: "the server does not take the connection"}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		e.Errno, e.Msg = unix.ErrnoName(errno), errno.Error()
	}
	return e
}

// join moves bytes both ways until both directions have ended, or one has failed.
func join(stream net.Conn, conn *net.TCPConn) {
	var up sync.WaitGroup
	up.Go(func() {
		if _, err := io.CopyBuffer(conn, onlyReader{stream}, make([]byte, bufferSize)); err != nil {
			conn.Close() // the host broke off, or nobody reads: nothing more is wanted of it
			return
		}
		_ = conn.CloseWrite()
	})
	_, err := io.CopyBuffer(onlyWriter{stream}, prompt{conn}, make([]byte, bufferSize))
	_ = stream.Close()
	if err != nil {
		conn.Close()
		_ = stream.SetReadDeadline(time.Unix(1, 0))
	}
	up.Wait()
}

// prompt acknowledges what it reads at once. A server that writes an answer's head and its
// body one after the other, as Python's does, holds the body back until the head is acknowledged (RFC 896), which
// a receiver may delay: 40 ms on Linux.
type prompt struct{ conn *net.TCPConn }

func (p prompt) Read(b []byte) (int, error) {
	n, err := p.conn.Read(b)
	if n < len(b) && err == nil { // else more is there already
		if raw, rerr := p.conn.SyscallConn(); rerr == nil {
			_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) }) // tcp(7): until it is sent, not for good
		}
	}
	return n, err
}

// onlyReader and onlyWriter keep CopyBuffer from using another buffer than the one it is given.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)
