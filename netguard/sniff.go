package netguard

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// maxSniff bounds what is read before it is known what is spoken, in bytes: a
// ClientHello has one or two KiB, and the largest that TLS stacks send stay below 16.
const maxSniff = 16 << 10

type sniffedProtocol int

const (
	sniffedHTTP sniffedProtocol = iota + 1 // HTTP/1, or HTTP/2 by its preface
	sniffedTLS
	sniffedSSH
)

// sniffed is what a flow turned out to be.
type sniffed struct {
	protocol sniffedProtocol
	hello    *clientHello // of TLS
	head     []byte       // what was read
	conn     net.Conn     // gives head first
}

// host is what the client says whom it is talking to, to tell names of one address
// apart. It decides nothing else: handlers judge the whole request.
func (s *sniffed) host() string {
	if s.hello != nil {
		return canonicalName(s.hello.serverName)
	}
	_, rest, ok := bytes.Cut(bytes.ToLower(s.head), []byte("\nhost:"))
	if !ok {
		return ""
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	host := string(bytes.TrimSpace(line))
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return canonicalName(host)
}

// errSilent is a client that closed the connection without a byte.
var errSilent = errors.New("the client closed the connection before it sent anything")

const http2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// sniff reads until it is known what the client speaks, or timeout is over. The
// time is for all of it: a client that sends a byte a second does not get more.
func sniff(conn net.Conn, timeout time.Duration) (*sniffed, error) {
	if err := conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return nil, fmt.Errorf("the connection is gone: %w", err)
	}
	buf := make([]byte, 0, 2048)
	for {
		if len(buf) == cap(buf) {
			buf = append(make([]byte, 0, min(2*cap(buf), maxSniff)), buf...)
		}
		n, err := conn.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		s, more, serr := recognise(buf)
		switch {
		case serr != nil:
			return nil, serr
		case !more:
			if err := conn.SetReadDeadline(time.Time{}); err != nil {
				return nil, fmt.Errorf("the connection is gone: %w", err)
			}
			s.head, s.conn = buf, &replayConn{Conn: conn, head: buf}
			return s, nil
		case len(buf) == maxSniff:
			return nil, fmt.Errorf("after %d bytes it is not clear what the client speaks", maxSniff)
		case errors.Is(err, io.EOF) && len(buf) == 0:
			return nil, errSilent
		case isTimeout(err):
			return nil, fmt.Errorf("the client sent %d bytes in %s, too few to tell what it speaks", len(buf), timeout)
		case err != nil:
			return nil, fmt.Errorf("the client ended the connection after %d bytes, too few to tell what it speaks", len(buf))
		}
	}
}

// recognise looks at the first bytes of a client. more says that they are too few.
func recognise(b []byte) (s *sniffed, more bool, err error) {
	switch {
	case len(b) == 0:
		return nil, true, nil
	case b[0] == recordHandshake:
		hello, more, err := parseClientHello(b)
		if err != nil {
			return nil, false, fmt.Errorf("malformed TLS ClientHello: %w", err)
		}
		return &sniffed{protocol: sniffedTLS, hello: hello}, more, nil
	case hasPrefixOrIs(b, "SSH-"):
		return &sniffed{protocol: sniffedSSH}, len(b) < len("SSH-"), nil
	case hasPrefixOrIs(b, http2Preface):
		return &sniffed{protocol: sniffedHTTP}, len(b) < len(http2Preface), nil
	}
	more, err = requestLine(b)
	return &sniffed{protocol: sniffedHTTP}, more, err
}

// hasPrefixOrIs says whether b begins with prefix or is the beginning of it.
func hasPrefixOrIs(b []byte, prefix string) bool {
	n := min(len(b), len(prefix))
	return string(b[:n]) == prefix[:n]
}

// maxMethod is longer than any registered method of HTTP, in bytes.
const maxMethod = 32

// requestLine looks for an HTTP/1 request line: method, target, version. It is
// generous, since the HTTP handler is strict and has better answers.
func requestLine(b []byte) (more bool, err error) {
	method := bytes.IndexByte(b, ' ')
	if method < 0 {
		method = len(b)
	}
	if method == 0 || method > maxMethod || bytes.ContainsFunc(b[:method], func(r rune) bool { return !isTokenRune(r) }) {
		return false, fmt.Errorf("the client speaks neither HTTP nor TLS nor SSH: it began with %q", b[:min(len(b), 16)])
	}
	end := bytes.IndexByte(b, '\n')
	switch {
	case end < 0 && len(b) >= maxSniff:
		return false, nil // a very long target, for the handler to refuse
	case end < 0:
		return true, nil
	case !bytes.Contains(b[method:end], []byte(" HTTP/1.")):
		return false, fmt.Errorf("the client speaks neither HTTP nor TLS nor SSH: it began with %q", b[:min(end, 16)])
	}
	return false, nil
}

// isTokenRune is for the characters of a token (RFC 9110, 5.6.2).
func isTokenRune(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
		return true
	}
	return r < 0x80 && bytes.ContainsRune([]byte("!#$%&'*+-.^_`|~"), r)
}

// replayConn gives bytes that were read already once more.
type replayConn struct {
	net.Conn
	head []byte
}

// Read implements net.Conn.
func (c *replayConn) Read(p []byte) (int, error) {
	if len(c.head) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.head)
	if c.head = c.head[n:]; len(c.head) == 0 {
		c.head = nil
	}
	return n, nil
}

// NetConn is the connection underneath.
func (c *replayConn) NetConn() net.Conn { return c.Conn }

// CloseWrite ends the direction to the guest.
func (c *replayConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}
