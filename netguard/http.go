package netguard

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gondolin-go/gondolin/netguard/ca"
	"github.com/gondolin-go/gondolin/netguard/policy"
	"github.com/gondolin-go/gondolin/netguard/secret"
)

// The bounds of HTTP towards one guest. What of the host's memory a guest can fill is
// maxRequests times the buffers of a request (some 200 KiB for the first fewRequests, and
// then some 30 KiB), and the windows of HTTP/2.
const (
	// maxRequests are under way at once; more are answered 503.
	maxRequests = 256
	// headTime is how long the head of a request may take to come.
	headTime = 30 * time.Second
	// maxStreams of one HTTP/2 connection are open at once (RFC 9113, 6.5.2
	// recommends at least 100). Streams that the guest resets count until their handler has
	// ended, and net/http ends a connection that goes on nevertheless.
	maxStreams = 100
	// fewConns of HTTP/2 may have answers that wait for the guest outside of maxRequests.
	fewConns = 8
	// connWindow and streamWindow bound what of an upload waits for the server on
	// one connection and one stream, in bytes. The way to the guest is short.
	connWindow   = 512 << 10
	streamWindow = 128 << 10
	// frameSize is the largest HTTP/2 frame that is read, in bytes: the least that a
	// server may allow.
	frameSize = 16 << 10
	// pingAfter is how long a peer of HTTP/2 may be silent before it is asked.
	pingAfter = 60 * time.Second
)

// enter takes a slot for a request. Where there is none it gives the refusal to answer
// with, and nothing where too many are answered so already.
func (p *proxy) enter() (leave func(), full *refusal) {
	select {
	case p.slots <- struct{}{}:
		return func() { <-p.slots }, nil
	default:
	}
	select {
	case p.full <- struct{}{}:
		return func() { <-p.full }, &refusal{status: http.StatusServiceUnavailable, rule: "limit", retry: time.Second,
			reason: fmt.Sprintf("%d requests of this session are under way, which is the most", maxRequests), remedy: "wait and try again"}
	default:
		return nil, nil
	}
}

// crowded says whether answers have to be taken by the guest while their requests hold their
// slots. Otherwise net/http keeps the end of an answer, and all of its request, until the
// guest has given the stream a window: maxStreams on each connection.
func (p *proxy) crowded() bool { return p.h2.Load() > fewConns }

// underWay is how many requests are.
func (p *proxy) underWay() int { return len(p.slots) }

// proxyDeps is what the HTTP pipeline needs of its Guard.
type proxyDeps struct {
	Policy   func() *policy.Policy // the one in force
	Limiter  *policy.Limiter
	Secrets  *secret.Set // nil: none
	CA       *ca.CA      // nil: TLS is refused
	Dialer   Dialer
	Recorder Recorder
	Asker    Asker // nil: what a human would have to allow is refused
	Hooks    Hooks
	Limits   Limits
	Upstream Upstream
	Log      *slog.Logger
}

// proxy serves the HTTP of one session's guest: it ends TLS, judges each request
// and passes it on. Its methods are called by the goroutines of flows; it has none of
// its own, and keeps connections to servers until close.
type proxy struct {
	policy   func() *policy.Policy
	limiter  *policy.Limiter
	secrets  *secret.Set
	ca       *ca.CA
	recorder Recorder
	asker    Asker
	hooks    Hooks
	limits   Limits
	log      *slog.Logger

	tls   *tls.Config // towards the guest
	up    *upstreams
	slots chan struct{} // a request each
	full  chan struct{} // a request each that is told that there is no slot
	h2    atomic.Int32  // connections of HTTP/2

	mu     sync.Mutex
	active map[*exchange]struct{}
}

func newProxy(d proxyDeps) *proxy {
	if d.Limits.HeaderBytes == 0 {
		d.Limits.HeaderBytes = 64 << 10
	}
	if d.Limits.Idle == 0 {
		d.Limits.Idle = 5 * time.Minute
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	p := &proxy{
		policy: d.Policy, limiter: d.Limiter, secrets: d.Secrets, ca: d.CA, recorder: d.Recorder,
		asker: d.Asker, hooks: d.Hooks, limits: d.Limits, log: d.Log,
		slots:  make(chan struct{}, maxRequests),
		full:   make(chan struct{}, maxRequests),
		active: map[*exchange]struct{}{},
	}
	p.tls = p.guestTLS()
	p.up = newUpstreams(d.Dialer, d.Upstream.TLS, d.Limits)
	return p
}

// close ends the connections to servers. The flows must have ended.
func (p *proxy) close() { p.up.close() }

// policyChanged breaks off the requests that the policy in force does not allow, open
// WebSockets among them.
func (p *proxy) policyChanged() {
	p.mu.Lock()
	var gone []*exchange
	for x := range p.active {
		gone = append(gone, x)
	}
	p.mu.Unlock()
	for _, x := range gone {
		x.rejudge()
	}
}

// serveHTTP serves plaintext HTTP/1 and HTTP/2. It returns when the connection is
// over, and closes it.
func (p *proxy) serveHTTP(ctx context.Context, f *Flow, conn net.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := conn.SetReadDeadline(time.Now().Add(headTime)); err != nil {
		return // it is closed already
	}
	h2, in, err := startsHTTP2(conn)
	if err != nil {
		return // it said nothing
	}
	c := &webConn{Conn: conn, flow: f, in: in}
	c.out = newWebWriter(p.underWay, func(b []byte) error { return timedWrite(conn, p.limits.Idle, b) })
	p.serveConn(ctx, c, h2)
}

// serveConn runs net/http's server on one connection, and returns when its
// handlers have.
func (p *proxy) serveConn(ctx context.Context, c *webConn, h2 bool) {
	defer c.out.finish()
	c.over = make(chan struct{})
	c.host, c.port = c.flow.Host(), c.flow.Dst.Port()
	if host, err := policy.ParseHost(c.host); err == nil {
		c.host = host.String()
	}
	var handlers gate
	defer handlers.close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	s := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if handlers.enter() {
				defer handlers.leave()
				p.serveRequest(c, w, r)
			}
		}),
		Protocols:         new(http.Protocols),
		ReadHeaderTimeout: headTime,
		IdleTimeout:       p.limits.Idle,
		MaxHeaderBytes:    p.limits.HeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerConnection: connWindow,
			MaxReceiveBufferPerStream:     streamWindow,
			MaxReadFrameSize:              frameSize,
			SendPingTimeout:               pingAfter,
		},
		ErrorLog:    log.New(&logWriter{p.log, c.flow.ID}, "", 0),
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed {
				c.release()
			}
		},
	}
	if h2 {
		s.Protocols.SetUnencryptedHTTP2(true) // TLS, if any, has ended before
		p.h2.Add(1)
		defer p.h2.Add(-1)
	} else {
		s.Protocols.SetHTTP1(true)
		c.strict = &strict{src: c.in, tls: c.tls, limit: p.limits.HeaderBytes}
		c.in = c.strict
	}
	stop := context.AfterFunc(ctx, c.abort)
	defer stop()
	// Its error is always that of the second Accept.
	_ = s.Serve(&oneConn{conn: c})
}

// oneConn is a listener of one connection, that ends with it.
type oneConn struct {
	conn *webConn
	once sync.Once
}

func (l *oneConn) Accept() (conn net.Conn, err error) {
	l.once.Do(func() { conn = l.conn })
	if conn != nil {
		return conn, nil
	}
	<-l.conn.over
	return nil, io.EOF
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

// gate waits for handlers: net/http does not, for those of HTTP/2.
type gate struct {
	mu     sync.RWMutex
	closed bool
}

func (g *gate) enter() bool {
	g.mu.RLock()
	if g.closed {
		g.mu.RUnlock()
		return false
	}
	return true
}

func (g *gate) leave() { g.mu.RUnlock() }

// close waits for those that have entered, and lets nobody in any more.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

// logWriter takes the messages of net/http's server, which are about the guest's
// misbehaviour.
type logWriter struct {
	log  *slog.Logger
	flow uint64
}

func (w *logWriter) Write(b []byte) (int, error) {
	w.log.Debug("http server", "flow", w.flow, "message", string(b))
	return len(b), nil
}

// record keeps an event that changes nothing any more; the error of one that does is
// a refusal.
func (p *proxy) record(e Event) {
	if err := p.recorder.Record(e); err != nil {
		p.log.Error("recording an event", "flow", e.Flow, "err", err)
	}
}
