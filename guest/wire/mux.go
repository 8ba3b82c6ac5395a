package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/yamux"
)

// Errors of the protocol.
var (
	// ErrProtocol: the peer sent what the protocol does not allow.
	ErrProtocol = errors.New("protocol violation")
	// ErrTooLarge: a message or frame exceeds its bound.
	ErrTooLarge = errors.New("too large")
)

// window is the flow-control window of one stream and so the most that a
// stream's unread data takes in the memory of either side.
const window = 512 << 10

// Client returns the host's end of the stream multiplexer on conn.
func Client(conn io.ReadWriteCloser) (*yamux.Session, error) {
	return yamux.Client(newGuard(conn), muxConfig(requestLinger))
}

// MaxDials bounds the streams of PortIngress that are open at once, on both sides: what one
// holds unread is at most a window.
const MaxDials = 64

// Server returns the guest's end.
func Server(conn io.ReadWriteCloser) (*yamux.Session, error) {
	return server(conn, muxConfig(requestLinger))
}

// DialClient and DialServer are the two ends on PortIngress.
func DialClient(conn io.ReadWriteCloser) (*yamux.Session, error) {
	return yamux.Client(newGuard(conn), muxConfig(dialLinger))
}

// DialServer returns the guest's end.
func DialServer(conn io.ReadWriteCloser) (*yamux.Session, error) {
	return server(conn, muxConfig(dialLinger))
}

func server(conn io.ReadWriteCloser, c *yamux.Config) (*yamux.Session, error) {
	g := newGuard(conn)
	g.accept = true
	return yamux.Server(g, c)
}

// How long a side that has closed a stream waits for the other to close it too, before it
// is cut off.
const (
	// The host closes a stream when it has what it wants, and the guest then too: who is
	// still waiting for the other after this time waits in vain.
	requestLinger = 5 * time.Second
	// In a TCP connection one direction may end long before the other.
	dialLinger = time.Minute
)

func muxConfig(linger time.Duration) *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false // a local byte stream needs none, and an idle guest stays idle
	c.MaxStreamWindowSize = window
	// After its own time yamux breaks off one stream in the middle and goes on with the others. The
	// guard's deadline ends the connection, which both sides notice.
	c.ConnectionWriteTimeout = 24 * time.Hour
	c.StreamOpenTimeout = writeTimeout
	c.StreamCloseTimeout = linger
	c.LogOutput = io.Discard
	return c
}

// Header of a yamux frame: version, type, 16-bit flags, 32-bit stream id,
// 32-bit length (github.com/hashicorp/yamux/blob/master/spec.md).
const (
	muxData         = 0
	muxWindowUpdate = 1
	muxSYN          = 1
)

// writeTimeout is how long a peer may read nothing while something waits to be
// sent to it. A starved VM is not a broken one, so it is long.
const writeTimeout = 20 * time.Second

// guard sits below yamux. It refuses what yamux would take from a peer without
// a bound (pings are answered each by a goroutine, unasked streams are queued),
// hands it whole frames only, since yamux locks a stream while it reads the rest
// of a frame for it, and joins a frame's header and body into one write, since
// each write to a virtio port is a notification of the other side.
type guard struct {
	conn   io.ReadWriteCloser
	accept bool // the peer may open streams

	// Reader state: used by yamux's one receiving goroutine.
	in    *bufio.Reader
	frame []byte // of the frame under way, what yamux has not taken yet
	buf   []byte

	// Writer state: used by yamux's one sending goroutine.
	out  []byte
	want int // bytes of body that must follow before out is written
}

func newGuard(conn io.ReadWriteCloser) *guard {
	return &guard{conn: conn, in: bufio.NewReaderSize(conn, 4096), buf: make([]byte, muxHeader, 64<<10)}
}

func (g *guard) Read(p []byte) (int, error) {
	if len(g.frame) == 0 {
		if err := g.readFrame(); err != nil {
			return 0, err
		}
	}
	n := copy(p, g.frame)
	g.frame = g.frame[n:]
	return n, nil
}

// readFrame reads the next frame into buf.
func (g *guard) readFrame() error {
	head := g.buf[:muxHeader]
	if _, err := io.ReadFull(g.in, head); err != nil {
		return err
	}
	version, kind, flags, length := head[0], head[1], binary.BigEndian.Uint16(head[2:]), binary.BigEndian.Uint32(head[8:])
	switch {
	case version != 0:
		return fmt.Errorf("multiplexer frame of version %d: %w", version, ErrProtocol)
	case flags&muxSYN != 0 && !g.accept:
		return fmt.Errorf("stream opened by the peer: %w", ErrProtocol)
	case kind == muxWindowUpdate:
		g.frame = head
		return nil
	case kind != muxData || length > window:
		// Among them GoAway: the guest ends by powering off, the host by closing the port.
		return fmt.Errorf("multiplexer frame of type %d and length %d: %w", kind, length, ErrProtocol)
	}
	g.buf = slices.Grow(g.buf[:muxHeader], int(length))
	g.frame = g.buf[:muxHeader+int(length)]
	if _, err := io.ReadFull(g.in, g.frame[muxHeader:]); err != nil {
		g.frame = nil
		return noEOF(err)
	}
	return nil
}

func (g *guard) Write(p []byte) (int, error) {
	if g.want == 0 && len(p) == muxHeader && p[1] == muxData {
		if n := binary.BigEndian.Uint32(p[8:]); n > 0 {
			g.out = append(g.out[:0], p...)
			g.want = int(n)
			return len(p), nil
		}
	}
	if g.want == 0 {
		return g.send(p)
	}
	g.out = append(g.out, p...)
	g.want -= len(p)
	if g.want > 0 {
		return len(p), nil
	}
	if _, err := g.send(g.out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// send writes p, within writeTimeout where the connection has deadlines.
func (g *guard) send(p []byte) (int, error) {
	if d, ok := g.conn.(interface{ SetWriteDeadline(time.Time) error }); ok {
		if err := d.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return 0, err
		}
	}
	n, err := g.conn.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("the peer has not read for %v: %w", writeTimeout, err)
	}
	return n, err
}

func (g *guard) Close() error { return g.conn.Close() }
