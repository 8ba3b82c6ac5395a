package netguard

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/netguard/ca"
	"github.com/gondolin-go/gondolin/netguard/policy"
	"github.com/gondolin-go/gondolin/netguard/secret"
)

// publicAddr is where the rig's names lead: an address that nothing blocks.
const publicAddr = "93.184.216.34"

// webRig is a proxy, a guest in front of it and servers behind it, without a stack.
type webRig struct {
	t       testing.TB
	p       *proxy
	ca      *ca.CA
	servers map[string]fakeServer // by host:port
	dials   atomic.Int32

	mu     sync.Mutex
	events []Event
	broken error // of the recorder
	flows  atomic.Uint64
	wg     sync.WaitGroup
	ctx    context.Context
}

// fakeServer is where the rig's Dialer really connects to, and what it lets the policy
// see.
type fakeServer struct {
	real  string
	addrs []string
}

type rigOptions struct {
	rules   []policy.Rule
	secrets []secret.Spec
	env     map[string]string
	hooks   Hooks
	asker   Asker
	limits  Limits
	roots   *x509.CertPool
}

func allowAll(hosts ...string) []policy.Rule {
	return []policy.Rule{{Name: "open", Action: policy.ActionAllow, Hosts: hosts, Ports: []string{"*"}}}
}

func newRig(t testing.TB, o rigOptions) *webRig {
	t.Helper()
	pol, err := policy.Compile(policy.Spec{Rules: o.rules})
	require.NoError(t, err)
	authority, err := ca.New(ca.Options{Session: "test"})
	require.NoError(t, err)
	r := &webRig{t: t, ca: authority, servers: map[string]fakeServer{}}
	var cancel context.CancelFunc
	r.ctx, cancel = context.WithCancel(context.Background())
	var set *secret.Set
	if len(o.secrets) > 0 {
		store, err := secret.Open(r.ctx, o.secrets, secret.Options{LookupEnv: func(k string) (string, bool) { v, ok := o.env[k]; return v, ok }})
		require.NoError(t, err)
		set, err = store.Session()
		require.NoError(t, err)
	}
	var current atomic.Pointer[policy.Policy]
	current.Store(pol)
	up := Upstream{}
	if o.roots != nil {
		up.TLS = &tls.Config{RootCAs: o.roots}
	}
	r.p = newProxy(proxyDeps{
		Policy: current.Load, Limiter: policy.NewLimiter(nil), Secrets: set, CA: authority, Dialer: r,
		Recorder: r, Asker: o.asker, Hooks: o.hooks, Limits: o.limits, Upstream: up, Log: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(func() {
		cancel()
		r.wg.Wait()
		r.p.close()
	})
	return r
}

func (r *webRig) Record(e Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken != nil {
		return r.broken
	}
	r.events = append(r.events, e)
	return nil
}

func (r *webRig) record() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Event(nil), r.events...)
}

// last waits for the event of a request's end.
func (r *webRig) last() Event {
	r.t.Helper()
	var e Event
	require.Eventually(r.t, func() bool {
		all := r.record()
		for i := len(all) - 1; i >= 0; i-- {
			if e = all[i]; e.Duration > 0 {
				return true
			}
		}
		return false
	}, 5*time.Second, time.Millisecond)
	return e
}

type addrConn struct {
	net.Conn
	addr net.Addr
}

func (c addrConn) RemoteAddr() net.Addr { return c.addr }

// Dial implements Dialer.
func (r *webRig) Dial(ctx context.Context, t Target) (net.Conn, error) {
	r.dials.Add(1)
	port := itoa(t.Port)
	s, ok := r.servers[net.JoinHostPort(t.Host, port)]
	if !ok {
		return nil, &DialError{Host: t.Host, Port: t.Port, Why: FailedNoSuchHost, Err: &net.DNSError{Name: t.Host, Err: "no such host", IsNotFound: true}}
	}
	for _, a := range s.addrs {
		addr := netip.MustParseAddr(a)
		d := t.Decide(addr)
		if !d.Allowed() {
			continue
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.real)
		if err != nil {
			return nil, err
		}
		return addrConn{conn, net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, t.Port))}, nil
	}
	return nil, &DialError{Host: t.Host, Port: t.Port, Why: FailedBlocked, Err: errors.New("blocked")}
}

func itoa(port uint16) string {
	b, _ := json.Marshal(port)
	return string(b)
}

// serve puts a server behind host:port.
func (r *webRig) serve(hostPort string, s *httptest.Server, addrs ...string) {
	if len(addrs) == 0 {
		addrs = []string{publicAddr}
	}
	r.servers[hostPort] = fakeServer{s.Listener.Addr().String(), addrs}
}

// open is a connection of the guest's to a name (or address) and port.
func (r *webRig) open(host string, port uint16, overTLS bool) net.Conn {
	r.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(r.t, err)
	defer l.Close()
	guest, err := net.Dial("tcp", l.Addr().String())
	require.NoError(r.t, err)
	conn, err := l.Accept()
	require.NoError(r.t, err)
	f := &Flow{ID: r.flows.Add(1), Conn: conn, Name: host, Dst: netip.AddrPortFrom(netip.MustParseAddr("198.19.0.7"), port)}
	if a, err := netip.ParseAddr(host); err == nil {
		f.Name, f.Dst = "", netip.AddrPortFrom(a, port)
	}
	r.wg.Add(1)
	go func() {
		defer r.wg.Done()
		if overTLS {
			r.p.serveTLS(r.ctx, f, conn)
		} else {
			r.p.serveHTTP(r.ctx, f, conn)
		}
	}()
	r.t.Cleanup(func() { guest.Close() })
	return guest
}

// trust is the guest's trust store.
func (r *webRig) trust() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(r.ca.PEM())
	return pool
}

// client is an ordinary HTTP client in the guest.
func (r *webRig) client() *http.Client {
	dial := func(overTLS bool) func(context.Context, string, string) (net.Conn, error) {
		return func(_ context.Context, _, addr string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			var n uint16
			if err := json.Unmarshal([]byte(port), &n); err != nil {
				return nil, err
			}
			return r.open(host, n, overTLS), nil
		}
	}
	t := &http.Transport{
		DialContext:           dial(false),
		TLSClientConfig:       &tls.Config{RootCAs: r.trust()},
		ForceAttemptHTTP2:     true,
		DisableCompression:    true,
		ExpectContinueTimeout: 5 * time.Second,
	}
	secure := dial(true)
	t.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := secure(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		host, _, _ := net.SplitHostPort(addr)
		c := t.TLSClientConfig.Clone()
		c.ServerName = host
		s := tls.Client(conn, c)
		return s, s.HandshakeContext(ctx)
	}
	r.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: 60 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// h1 makes a client that speaks HTTP/1 over TLS only.
func h1(c *http.Client) *http.Client {
	t := c.Transport.(*http.Transport)
	t.ForceAttemptHTTP2 = false
	t.TLSClientConfig.NextProtos = []string{"http/1.1"}
	return c
}

// raw sends bytes on a new plain connection and reads until it is closed.
func (r *webRig) raw(host string, request string) string {
	r.t.Helper()
	conn := r.open(host, 80, false)
	defer conn.Close()
	require.NoError(r.t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	_, err := io.WriteString(conn, request)
	require.NoError(r.t, err)
	answer, err := io.ReadAll(conn)
	if len(answer) == 0 {
		require.NoError(r.t, err)
	}
	return string(answer)
}

// refused reads the answer to a request that was refused.
func readRefusal(t testing.TB, resp *http.Response) refusalBody {
	t.Helper()
	defer resp.Body.Close()
	var b refusalBody
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &b), "%s", text)
	assert.Equal(t, "application/json", resp.Header.Get("Content-Type"))
	return b
}

func readBody(t testing.TB, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(b)
}

// plainServer and tlsServer are servers on loopback that end with the test.
func plainServer(t testing.TB, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func tlsServer(t testing.TB, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes that fail are part of the tests
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func rootsOf(s *httptest.Server) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return pool
}

func parseResponses(t testing.TB, text string) []*http.Response {
	t.Helper()
	var list []*http.Response
	in := bufio.NewReader(strings.NewReader(text))
	for {
		if _, err := in.Peek(1); err != nil {
			return list
		}
		resp, err := http.ReadResponse(in, nil)
		require.NoError(t, err, "%q", text)
		var body bytes.Buffer
		_, err = body.ReadFrom(resp.Body)
		require.NoError(t, err)
		resp.Body = io.NopCloser(&body)
		list = append(list, resp)
	}
}
