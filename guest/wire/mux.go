package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
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
	return yamux.Client(&guard{conn: conn}, muxConfig())
}

// Server returns the guest's end.
func Server(conn io.ReadWriteCloser) (*yamux.Session, error) {
	return yamux.Server(&guard{conn: conn, accept: true}, muxConfig())
}

func muxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false // a local byte stream needs none, and an idle guest stays idle
	c.MaxStreamWindowSize = window
	// A paused or starved VM is not a broken one.
	c.ConnectionWriteTimeout = 2 * time.Minute
	c.StreamOpenTimeout = 2 * time.Minute
	c.StreamCloseTimeout = time.Minute
	c.LogOutput = io.Discard
	return c
}

// Header of a yamux frame: version, type, 16-bit flags, 32-bit stream id,
// 32-bit length (github.com/hashicorp/yamux/blob/master/spec.md).
const (
	muxData         = 0
	muxWindowUpdate = 1
	muxGoAway       = 3
	muxSYN          = 1
)

// guard sits below yamux. It refuses what yamux would take from a peer without
// a bound (pings are answered each by a goroutine, unasked streams are queued)
// and joins a frame's header and body into one write, since each write to a
// virtio port is a notification of the other side.
type guard struct {
	conn   io.ReadWriteCloser
	accept bool // the peer may open streams

	// Reader state: used by yamux's one receiving goroutine.
	head []byte
	body uint32

	// Writer state: used by yamux's one sending goroutine.
	out  []byte
	want int // bytes of body that must follow before out is written
}

func (g *guard) Read(p []byte) (int, error) {
	n, err := g.conn.Read(p)
	if cerr := g.check(p[:n]); cerr != nil {
		return 0, cerr
	}
	return n, err
}

func (g *guard) check(p []byte) error {
	for len(p) > 0 {
		if g.body > 0 {
			skip := min(uint32(len(p)), g.body)
			g.body -= skip
			p = p[skip:]
			continue
		}
		take := min(muxHeader-len(g.head), len(p))
		g.head = append(g.head, p[:take]...)
		p = p[take:]
		if len(g.head) < muxHeader {
			return nil
		}
		version, kind, flags, length := g.head[0], g.head[1], binary.BigEndian.Uint16(g.head[2:]), binary.BigEndian.Uint32(g.head[8:])
		g.head = g.head[:0]
		switch {
		case version != 0:
			return fmt.Errorf("multiplexer frame of version %d: %w", version, ErrProtocol)
		case kind == muxData && length <= window:
			g.body = length
		case kind == muxWindowUpdate, kind == muxGoAway:
		default:
			return fmt.Errorf("multiplexer frame of type %d and length %d: %w", kind, length, ErrProtocol)
		}
		if flags&muxSYN != 0 && !g.accept {
			return fmt.Errorf("stream opened by the peer: %w", ErrProtocol)
		}
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
		return g.conn.Write(p)
	}
	g.out = append(g.out, p...)
	g.want -= len(p)
	if g.want > 0 {
		return len(p), nil
	}
	if _, err := g.conn.Write(g.out); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (g *guard) Close() error { return g.conn.Close() }
