package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/gondolin-go/gondolin/guest/wire"
	"github.com/gondolin-go/gondolin/sandbox/ingress"
)

const (
	// guestDialTimeout bounds the guest's answer to a dial.
	guestDialTimeout = 15 * time.Second
	// dialTimeout bounds a dial together with the opening of the port.
	dialTimeout = settleTimeout + guestDialTimeout
)

// dialer is the host's end of the ingress port, which is opened when it is first needed.
type dialer struct {
	under atomic.Int32 // dials under way
	mu    sync.Mutex   // held while the port or a stream is opened, which takes as long as the guest may take
	mux   *yamux.Session
}

// dialGuest connects to a TCP port of the guest's loopback. It returns when ctx ends, whatever
// the guest does.
func (s *Session) dialGuest(ctx context.Context, port uint16) (net.Conn, error) {
	// Who asks may go and ask again, as browsers do, while a guest keeps all of them waiting.
	if s.dialer.under.Add(1) > wire.MaxDials {
		s.dialer.under.Add(-1)
		return nil, fmt.Errorf("%d connections into the guest are being made: %w", wire.MaxDials, ingress.ErrBusy)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, dialTimeout, fmt.Errorf("the guest did not connect to its port %d within %v", port, dialTimeout))
	defer cancel()
	var conn net.Conn
	var err error
	done := make(chan struct{})
	if !s.work(func() {
		defer close(done)
		defer s.dialer.under.Add(-1)
		conn, err = s.dialPort(ctx, port)
	}) {
		s.dialer.under.Add(-1)
		return nil, s.closedError()
	}
	select {
	case <-done:
		return conn, err
	case <-ctx.Done():
		s.work(func() {
			if <-done; conn != nil {
				conn.Close()
			}
		})
		return nil, context.Cause(ctx)
	}
}

func (s *Session) dialPort(ctx context.Context, port uint16) (net.Conn, error) {
	stream, err := s.openIngress(ctx)
	if err != nil {
		return nil, err
	}
	c := &guestConn{Stream: stream, session: s}
	stop := context.AfterFunc(ctx, func() { _ = stream.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	_ = stream.SetDeadline(time.Now().Add(guestDialTimeout))
	if err = wire.SendRequest(stream, wire.OpDial, wire.Dial{Port: port}); err == nil {
		err = wire.ReadReply(stream, nil)
	}
	if err != nil {
		c.Close()
		return nil, dialFailure(port, err)
	}
	if !stop() {
		c.Close()
		return nil, context.Cause(ctx)
	}
	return c, stream.SetDeadline(time.Time{})
}

func dialFailure(port uint16, err error) error {
	var werr *wire.Error
	if !errors.As(err, &werr) {
		return fmt.Errorf("connecting to port %d of the guest: %w", port, err)
	}
	if werr.Errno == "ECONNREFUSED" {
		return fmt.Errorf("port %d of the guest: %w", port, ingress.ErrNobody)
	}
	return fmt.Errorf("connecting to port %d of the guest: %s", port, printable(werr.Msg))
}

// openIngress opens a stream on the ingress port.
func (s *Session) openIngress(ctx context.Context) (*yamux.Stream, error) {
	s.dialer.mu.Lock()
	defer s.dialer.mu.Unlock()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	mux, err := s.ingressMux()
	if err != nil {
		return nil, err
	}
	if mux.NumStreams() >= wire.MaxDials {
		return nil, fmt.Errorf("%d connections into the guest are open: %w", wire.MaxDials, ingress.ErrBusy)
	}
	stream, err := mux.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("opening a connection into the guest: %w", err)
	}
	return stream, nil
}

// ingressMux returns the multiplexer on the ingress port, and opens that if need be. The
// caller holds the dialer.
func (s *Session) ingressMux() (*yamux.Session, error) {
	if mux := s.dialer.mux; mux != nil && !mux.IsClosed() {
		return mux, nil
	}
	var served wire.Served
	ctx, end := context.WithCancelCause(s.life) // the request lasts as long as the part runs
	late := time.AfterFunc(settleTimeout, func() { end(errors.New("the guest does not answer")) })
	part, err := s.request(ctx, wire.OpServe, "", wire.Serve{Port: wire.PortIngress}, &served)
	late.Stop()
	if err != nil {
		end(nil)
		return nil, fmt.Errorf("starting the guest's side of ingress: %w", err)
	}
	mux, err := s.greetIngress(served.Before)
	if err != nil {
		end(nil)
		return nil, err
	}
	watching := s.work(func() {
		select {
		case <-s.life.Done():
		case <-mux.CloseChan():
		}
		mux.Close()
		end(nil)
	}) && s.work(func() {
		_ = wire.ReadReply(part, nil) // it has ended, or nobody knows any more
		mux.Close()
	})
	if !watching {
		mux.Close()
		end(nil)
		return nil, s.closedError()
	}
	s.dialer.mux = mux
	return mux, nil
}

// greetIngress opens the ingress port, which may have been open before.
func (s *Session) greetIngress(before bool) (*yamux.Session, error) {
	conn, err := s.connect(s.life, s.vm, wire.PortIngress, settleTimeout, before)
	if err != nil {
		return nil, fmt.Errorf("the guest's side of ingress: %w", err)
	}
	mux, err := wire.DialClient(conn)
	if err != nil {
		conn.Close()
	}
	return mux, err
}

// guestConn is a connection to a port of the guest.
type guestConn struct {
	*yamux.Stream
	session *Session
	once    sync.Once
}

// Close ends both directions, whatever the guest does.
func (c *guestConn) Close() error {
	c.once.Do(func() {
		_ = c.Stream.SetDeadline(time.Unix(1, 0))
		// It sends a frame, and the guest may read none.
		c.session.work(func() { _ = c.Stream.Close() })
	})
	return nil
}

// CloseWrite ends what the guest reads.
func (c *guestConn) CloseWrite() error { return c.Stream.Close() }
