package netguard

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

const (
	// connectTime bounds resolving, connecting and the TLS handshake together.
	connectTime = 30 * time.Second
	// maxIdle connections to servers are kept, and maxIdleEach to one, each for idleTime.
	maxIdle     = 64
	maxIdleEach = 16
	idleTime    = 60 * time.Second
	// continueTime is how long a server may think about `Expect: 100-continue` before
	// the body is sent all the same (RFC 9110, 10.1.1).
	continueTime = 2 * time.Second
	// serverWindow bounds what of an answer over HTTP/2 waits for the guest, in bytes, on
	// one connection and one stream. The way to servers is long: 1 MiB at 50 ms is
	// 20 MiB/s a stream.
	serverConnWindow   = 4<<20 - 1
	serverStreamWindow = 1 << 20
	// Connections after the first fewServers have smaller ones: a guest that reads nothing
	// fills the windows of all.
	fewServers  = 16
	smallWindow = 128 << 10
)

// upstreamKind is how a server is spoken to.
type upstreamKind uint8

const (
	upPlain upstreamKind = iota // HTTP/1
	upH2C                       // HTTP/2 without TLS: what the guest speaks is what the server has to
	upTLS                       // HTTP/2 or HTTP/1, as the server chooses
	upTLS1                      // for WebSockets
)

type upstreamKey struct {
	kind upstreamKind
	host string // canonical
	port uint16
}

// upstreams are the connections to servers. One that is open is used again for a
// request that the policy allows at the address at which the connection ends.
type upstreams struct {
	dialer     Dialer
	tls        *tls.Config
	transports [2][upTLS1 + 1]*http.Transport // of fewServers, and of those after them

	mu     sync.Mutex
	conns  map[upstreamKey][]*upstream
	open   int                           // in conns, or on their way there
	first  map[upstreamKey]chan struct{} // closed when the first connection of a key is made, or is not
	idle   int
	closed bool
}

// upstream is one connection.
type upstream struct {
	cc    *http.ClientConn
	key   upstreamKey
	addr  netip.Addr // invalid if a proxy's: then the name is all that is judged
	idle  bool
	timer *time.Timer
}

func newUpstreams(d Dialer, base *tls.Config, limits Limits) *upstreams {
	u := &upstreams{dialer: d, tls: serverTLS(base), conns: map[upstreamKey][]*upstream{}, first: map[upstreamKey]chan struct{}{}}
	for i := range len(u.transports) * len(u.transports[0]) {
		size, kind := i%2, i/2
		conn, stream := serverConnWindow, serverStreamWindow
		if size == 1 {
			conn, stream = smallWindow, smallWindow
		}
		t := &http.Transport{
			DialContext:            u.dialPlain,
			DialTLSContext:         u.dialTLS,
			DisableCompression:     true, // what the guest did not ask for it does not get
			ExpectContinueTimeout:  continueTime,
			MaxResponseHeaderBytes: int64(limits.HeaderBytes),
			WriteBufferSize:        16 << 10,
			ReadBufferSize:         8 << 10, // bodies are read past it
			Protocols:              new(http.Protocols),
			HTTP2: &http.HTTP2Config{
				MaxReceiveBufferPerConnection: conn,
				MaxReceiveBufferPerStream:     stream,
				SendPingTimeout:               pingAfter,
			},
		}
		t.Protocols.SetHTTP1(upstreamKind(kind) != upH2C)
		t.Protocols.SetHTTP2(upstreamKind(kind) == upTLS)
		t.Protocols.SetUnencryptedHTTP2(upstreamKind(kind) == upH2C)
		u.transports[size][kind] = t
	}
	return u
}

// judgeAddr says whether a request may go to an address; the zero Addr stands for
// "wherever the name leads".
type judgeAddr func(netip.Addr) policy.Decision

// get gives a connection on which one request is reserved, and whether it has been
// used before.
func (u *upstreams) get(ctx context.Context, key upstreamKey, judge judgeAddr, fresh bool) (c *upstream, reused bool, err error) {
	for waited := false; !fresh; waited = true {
		for _, c := range u.candidates(key) {
			if c.cc.Available() > 0 && judge(c.addr).Allowed() && c.cc.Reserve() == nil {
				u.take(c)
				return c, true, nil
			}
		}
		wait := u.claim(key)
		if wait == nil || waited {
			break // each for itself: what did not work for the first may take its time
		}
		// Somebody makes the first connection, which may bear more than one request.
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, false, context.Cause(ctx)
		}
	}
	c, err = u.dial(ctx, key, judge)
	u.settle(key)
	return c, false, err
}

// candidates are the usable connections, the latest used first.
func (u *upstreams) candidates(key upstreamKey) []*upstream {
	u.mu.Lock()
	defer u.mu.Unlock()
	list := slices.Clone(u.conns[key])
	slices.Reverse(list)
	return list
}

// claim makes the caller the one who makes the first connection, or gives what to
// wait for. Later ones are made without asking.
func (u *upstreams) claim(key upstreamKey) <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.conns[key]) > 0 {
		return nil
	}
	if first, ok := u.first[key]; ok {
		return first
	}
	u.first[key] = make(chan struct{})
	return nil
}

func (u *upstreams) settle(key upstreamKey) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if first, ok := u.first[key]; ok {
		close(first)
		delete(u.first, key)
	}
}

// dialing is what a dial of net/http's transport is for.
type dialing struct {
	target Target
	kind   upstreamKind
	addr   netip.Addr
}

type dialingKey struct{}

func (u *upstreams) dial(ctx context.Context, key upstreamKey, judge judgeAddr) (*upstream, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, connectTime, errConnectTime)
	defer cancel()
	var mu sync.Mutex
	var allowed []netip.Addr
	d := &dialing{kind: key.kind, target: Target{Host: key.host, Port: key.port}}
	d.target.Decide = func(a netip.Addr) policy.Decision {
		decision := judge(a)
		if decision.Allowed() {
			mu.Lock()
			defer mu.Unlock()
			allowed = append(allowed, a.Unmap())
		}
		return decision
	}
	scheme := "http"
	if key.kind >= upTLS {
		scheme = "https"
	}
	transport, done := u.opening(key.kind)
	defer done()
	cc, err := transport.NewClientConn(context.WithValue(ctx, dialingKey{}, d), scheme, net.JoinHostPort(key.host, strconv.Itoa(int(key.port))))
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			return nil, fmt.Errorf("%w (%w)", cause, err)
		}
		return nil, err
	}
	c := &upstream{cc: cc, key: key}
	mu.Lock()
	if slices.Contains(allowed, d.addr) {
		c.addr = d.addr
	}
	mu.Unlock()
	if err := cc.Reserve(); err != nil {
		cc.Close()
		return nil, fmt.Errorf("the connection ended at once: %w", err)
	}
	return c, u.add(c)
}

// opening gives what makes a connection, which counts until done as if it were made.
func (u *upstreams) opening(kind upstreamKind) (t *http.Transport, done func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	size := 0
	if u.open >= fewServers {
		size = 1
	}
	u.open++
	return u.transports[size][kind], func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.open--
	}
}

var errConnectTime = fmt.Errorf("there was no connection within %v", connectTime)

func (u *upstreams) dialPlain(ctx context.Context, _, _ string) (net.Conn, error) {
	d, ok := ctx.Value(dialingKey{}).(*dialing)
	if !ok {
		return nil, errors.New("a connection that nobody asked for")
	}
	conn, err := u.dialer.Dial(ctx, d.target)
	if err != nil {
		return nil, &connectError{err}
	}
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		d.addr = a.AddrPort().Addr().Unmap()
	}
	return conn, nil
}

// connectError is the Dialer's, which says by itself what failed on what.
type connectError struct{ error }

func (e *connectError) Unwrap() error { return e.error }

// add puts a new connection with the others and follows its state.
func (u *upstreams) add(c *upstream) error {
	u.mu.Lock()
	if u.closed {
		u.mu.Unlock()
		c.cc.Close()
		return net.ErrClosed
	}
	u.conns[c.key] = append(u.conns[c.key], c)
	u.open++
	u.mu.Unlock()
	c.cc.SetStateHook(func(*http.ClientConn) { u.changed(c) })
	return nil
}

// take marks a connection as used.
func (u *upstreams) take(c *upstream) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.wake(c)
	list := u.conns[c.key]
	if i := slices.Index(list, c); i >= 0 {
		u.conns[c.key] = append(slices.Delete(list, i, i+1), c)
	}
}

// wake and rest keep the count of idle ones; the lock is held.
func (u *upstreams) wake(c *upstream) {
	if c.idle {
		c.idle = false
		u.idle--
		c.timer.Stop()
	}
}

func (u *upstreams) rest(c *upstream) {
	if !c.idle {
		c.idle = true
		u.idle++
		c.timer = time.AfterFunc(idleTime, func() { u.expire(c) })
	}
}

// changed is told by net/http when a connection becomes free or ends.
func (u *upstreams) changed(c *upstream) {
	gone, free := c.cc.Err() != nil, c.cc.InFlight() == 0
	u.mu.Lock()
	each := 0
	for _, other := range u.conns[c.key] {
		if other.idle {
			each++
		}
	}
	switch {
	case gone:
		u.remove(c)
	case !free:
	case !slices.Contains(u.conns[c.key], c):
	case u.closed || u.idle >= maxIdle || each >= maxIdleEach:
		u.remove(c)
		gone = true
	default:
		u.rest(c)
	}
	u.mu.Unlock()
	if gone {
		c.cc.Close()
	}
}

func (u *upstreams) expire(c *upstream) {
	u.mu.Lock()
	idle := c.idle
	if idle {
		u.remove(c)
	}
	u.mu.Unlock()
	if idle {
		c.cc.Close()
	}
}

func (u *upstreams) remove(c *upstream) {
	u.wake(c)
	list := u.conns[c.key]
	if i := slices.Index(list, c); i >= 0 {
		list = slices.Delete(list, i, i+1)
		u.open--
	}
	if u.conns[c.key] = list; len(list) == 0 {
		delete(u.conns, c.key)
	}
}

// close ends all connections.
func (u *upstreams) close() {
	u.mu.Lock()
	u.closed = true
	var all []*upstream
	for _, list := range u.conns {
		all = append(all, list...)
	}
	for _, c := range all {
		u.remove(c)
	}
	u.mu.Unlock()
	for _, c := range all {
		c.cc.Close()
	}
}
