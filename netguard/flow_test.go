package netguard

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/netguard/ca"
	"github.com/gondolin-go/gondolin/netguard/policy"
)

// recorded keeps events, and fails when it is told to.
type recorded struct {
	mu     sync.Mutex
	events []Event
	fail   bool
}

func (r *recorded) Record(e Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail {
		return errors.New("the disk is full")
	}
	r.events = append(r.events, e)
	return nil
}

func (r *recorded) all() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Event(nil), r.events...)
}

// mappedGuest has a guest with one map to a server, under pg.internal:5432.
func mappedGuest(t testing.TB, to string, o Options) *testGuest {
	t.Helper()
	if o.Policy == nil {
		o.Policy = allowing(t, "pg.internal")
	}
	o.Maps = []Map{{Host: "pg.internal", Port: 5432, To: to}}
	return newTestGuest(t, o)
}

func dialMapped(t testing.TB, g *testGuest) net.Conn {
	t.Helper()
	conn, err := g.DialTCP("pg.internal", 5432)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// expectEcho sends text and expects it back.
func expectEcho(t testing.TB, conn net.Conn, text string) {
	t.Helper()
	_, err := conn.Write([]byte(text))
	require.NoError(t, err)
	got := make([]byte, len(text))
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
	_, err = io.ReadFull(conn, got)
	require.NoError(t, err)
	assert.Equal(t, text, string(got))
}

// expectReset expects the connection to be reset, and soon.
func expectReset(t testing.TB, conn net.Conn) {
	t.Helper()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
	_, err := io.Copy(io.Discard, conn)
	assert.ErrorContains(t, err, "reset")
}

func idle(g *testGuest) func() bool { return func() bool { return g.Guard.Stats().Flows == 0 } }

func TestHTTPPassesFromTheGuestToAServer(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Method, r.Host)
	}))
	defer server.Close()
	port := server.Listener.Addr().(*net.TCPAddr).Port
	g := newTestGuest(t, Options{
		Policy:   allowing(t, "web.example"),
		Upstream: Upstream{Hosts: map[string]netip.Addr{"web.example": netip.MustParseAddr("127.0.0.1")}},
	})
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, a string) (net.Conn, error) { return g.Dial(ctx, "tcp4", a) }}}
	defer client.CloseIdleConnections()
	resp, err := client.Get(fmt.Sprintf("http://web.example:%d/", port))
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, fmt.Sprintf("GET web.example:%d", port), string(body))
}

func TestAMappedConnectionIsRecordedWithItsBytes(t *testing.T) {
	r := &recorded{}
	g := mappedGuest(t, echoServer(t), Options{Recorder: r})
	conn := dialMapped(t, g)
	expectEcho(t, conn, "hello")
	conn.Close()
	require.Eventually(t, func() bool { return len(r.all()) == 2 }, 5*time.Second, 10*time.Millisecond)
	begin, end := r.all()[0], r.all()[1]
	assert.Equal(t, "allow", begin.Verdict)
	assert.Equal(t, "test", begin.Rule)
	assert.Equal(t, begin.Flow, end.Flow)
	assert.Equal(t, []any{"tcp", "pg.internal", uint16(5432), int64(5), int64(5)}, []any{end.Protocol, end.Host, end.Port, end.Sent, end.Received})
	require.Eventually(t, idle(g), 5*time.Second, 10*time.Millisecond)
}

func TestAMapLeadsToAUnixSocketAndPassesHalfCloses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		all, _ := io.ReadAll(c) // until the guest's FIN
		fmt.Fprintf(c, "%d bytes", len(all))
	}()
	defer func() { l.Close(); <-done }()
	g := mappedGuest(t, "unix:"+path, Options{})
	conn := dialMapped(t, g)
	_, err = conn.Write(make([]byte, 100_000))
	require.NoError(t, err)
	require.NoError(t, conn.(interface{ CloseWrite() error }).CloseWrite())
	got, err := io.ReadAll(conn)
	require.NoError(t, err)
	assert.Equal(t, "100000 bytes", string(got))
}

func TestAMapWithoutARuleIsRefused(t *testing.T) {
	g := mappedGuest(t, echoServer(t), Options{Policy: mustPolicy(t, policy.Rule{Action: policy.ActionAllow, Hosts: []string{"pg.internal"}, Ports: []string{"5432"}})})
	expectReset(t, dialMapped(t, g))
	assert.Equal(t, "tcp", g.Guard.Denials(0)[0].Protocol)
}

func TestAConnectionThatCannotBeRecordedIsRefused(t *testing.T) {
	touched := make(chan struct{}, 1)
	g := mappedGuest(t, tcpServer(t, func(net.Conn) { touched <- struct{}{} }), Options{Recorder: &recorded{fail: true}})
	expectReset(t, dialMapped(t, g))
	assert.Empty(t, touched)
	assert.Contains(t, g.Guard.Denials(0)[0].Reason, "cannot be recorded")
}

func TestMistakesInMapsAreAllReported(t *testing.T) {
	_, err := New(Options{Maps: []Map{
		{"a", 1, "127.0.0.1:1"}, {"A.", 1, "127.0.0.1:1"}, {"", 1, "x:1"}, {"b", 0, "x:1"}, {"c", 1, "x"}, {"d", 1, "x:99999"}, {"e", 1, "unix:s"}, {"f", 53, "x:1"},
	}})
	for _, want := range []string{"map 2", "twice", "map 3", "map 4", "port is missing", "map 5", "neither", "map 6", "65535", "map 7", "absolute", "map 8", "DNS"} {
		assert.ErrorContains(t, err, want)
	}
	_, err = New(Options{DNS: "magic"})
	assert.ErrorContains(t, err, "magic")
}

func TestTheQuotaOfARuleEndsAConnection(t *testing.T) {
	rule := policy.Rule{
		Name: "db", Action: policy.ActionAllow, Protocols: []policy.Protocol{policy.TCP}, Hosts: []string{"pg.internal"}, Ports: []string{"5432"},
		Quota: &policy.Quota{Bytes: 64 << 10, Requests: 2},
	}
	g := mappedGuest(t, echoServer(t), Options{Policy: mustPolicy(t, rule)})
	conn := dialMapped(t, g)
	expectEcho(t, conn, "hello")
	_, _ = conn.Write(make([]byte, 200_000))
	expectReset(t, conn)
	assert.GreaterOrEqual(t, int64(g.Guard.Used("db").Bytes), int64(64<<10))
	expectReset(t, dialMapped(t, g))
	denials := g.Guard.Denials(0)
	assert.Contains(t, denials[len(denials)-1].Reason, "64KiB")
}

func TestHoleARuleAddedLaterLeavesFlowsAlone(t *testing.T) {
	r := &recorded{}
	g := mappedGuest(t, echoServer(t), Options{Recorder: r})
	conn := dialMapped(t, g)
	expectEcho(t, conn, "hello")
	g.Guard.SetPolicy(allowing(t, "pg.internal", "other.example"))
	expectEcho(t, conn, "still there")
	g.Guard.SetPolicy(allowing(t, "other.example"))
	expectReset(t, conn)
	assert.Contains(t, g.Guard.Denials(0)[0].Reason, "the policy has changed")
	_, err := g.DialTCP("pg.internal", 5432)
	assert.Error(t, err)
}

func TestHoleAnEmptyAllowlistAllowsAll(t *testing.T) {
	g := newTestGuest(t, Options{Upstream: Upstream{Look: forbiddenLook(t)}})
	_, err := g.Lookup("any.example", dns.TypeA)
	assert.ErrorContains(t, err, "NXDOMAIN")
	for _, port := range []uint16{22, 80, 443, 5432} {
		_, err = g.DialTCP("93.184.216.34", port)
		assert.ErrorContains(t, err, "refused")
	}
	_, err = g.DialTCP("ok.localhost", 80)
	assert.Error(t, err, "loopback of the guest is not that of the host")
}

func TestHoleADenyRuleBypassedByConnectingToTheAddress(t *testing.T) {
	g := newTestGuest(t, Options{
		Policy: mustPolicy(t,
			policy.Rule{Action: policy.ActionDeny, Hosts: []string{"evil.example"}},
			policy.Rule{Action: policy.ActionAllow, Hosts: []string{"*"}, Ports: []string{"*"}}),
		Upstream: Upstream{Look: looking("93.184.216.34")},
		DNS:      DNSTrusted,
	})
	_, err := g.Lookup("evil.example", dns.TypeA)
	assert.Error(t, err)
	_, err = g.DialTCP("93.184.216.34", 443)
	assert.ErrorContains(t, err, "refused")
}

func TestHoleOneAllowedNameOpensASharedAddress(t *testing.T) {
	g := newTestGuest(t, Options{Policy: allowing(t, "ok.example"), Upstream: Upstream{Look: looking("93.184.216.34")}, DNS: DNSTrusted})
	conn, err := g.DialTCP("ok.example", 80)
	require.NoError(t, err)
	defer conn.Close()
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
	answer := make([]byte, 64)
	n, err := conn.Read(answer)
	require.NoError(t, err)
	assert.Regexp(t, `^HTTP/1.1 4`, string(answer[:n]))
}

func TestNamesOfOneAddressAreToldApartByWhatTheClientSays(t *testing.T) {
	f := &openFlow{names: []string{"b.example", "a.example"}}
	assert.Equal(t, []string{"b.example", "a.example"}, f.hosts())
	f.identify("a.example")
	assert.Equal(t, "a.example", f.Name)
	f = &openFlow{names: []string{"b.example", "a.example"}}
	f.identify("evil.example")
	assert.Equal(t, "b.example", f.Name, "which the handler then finds is not what the client says")
}

func TestHoleAFlowHooksErrorFailsOpen(t *testing.T) {
	for name, hook := range map[string]func(context.Context, *Flow) error{
		"error": func(context.Context, *Flow) error { return errors.New("not today") },
		"panic": func(context.Context, *Flow) error { panic("oh") },
	} {
		g := mappedGuest(t, echoServer(t), Options{Hooks: Hooks{OnFlow: hook}})
		expectReset(t, dialMapped(t, g))
		assert.Contains(t, g.Guard.Denials(0)[0].Reason, "hook", name)
	}
}

type answering struct {
	yes bool
	err error
}

func (a answering) Ask(context.Context, policy.Decision) (bool, error) { return a.yes, a.err }

func TestWithoutAHumansYesNothingPasses(t *testing.T) {
	ask := mustPolicy(t, policy.Rule{Name: "ask", Action: policy.ActionAsk, Protocols: []policy.Protocol{policy.TCP}, Hosts: []string{"pg.internal"}, Ports: []string{"5432"}})
	server := echoServer(t)
	for _, a := range []Asker{nil, answering{}, answering{yes: true, err: errors.New("nobody there")}} {
		g := mappedGuest(t, server, Options{Policy: ask, Asker: a})
		expectReset(t, dialMapped(t, g))
	}
	g := mappedGuest(t, server, Options{Policy: ask, Asker: answering{yes: true}})
	expectEcho(t, dialMapped(t, g), "hello")
}

func TestHolePort22IsAcceptedAndThenSilent(t *testing.T) {
	g := newTestGuest(t, Options{Policy: mustPolicy(t, policy.Rule{Action: policy.ActionAllow, Hosts: []string{"ok.example"}})})
	_, err := g.DialTCP("ok.example", 22)
	assert.ErrorContains(t, err, "refused")
}

func TestUnknownProtocolsAreResetWithAReason(t *testing.T) {
	g := newTestGuest(t, Options{Policy: allowing(t, "ok.example"), Limits: Limits{Sniff: 300 * time.Millisecond}})
	for _, text := range []string{"EHLO there\r\n", "\x00\x01\x02\x03", ""} {
		conn, err := g.DialTCP("ok.example", 25)
		require.NoError(t, err)
		_, err = conn.Write([]byte(text))
		require.NoError(t, err)
		expectReset(t, conn)
		conn.Close()
	}
	assert.Len(t, g.Guard.Denials(0), 3)
}

func TestASilentMappedConnectionEnds(t *testing.T) {
	g := mappedGuest(t, echoServer(t), Options{Limits: Limits{Idle: 300 * time.Millisecond}})
	conn := dialMapped(t, g)
	expectEcho(t, conn, "hello")
	expectReset(t, conn)
}

func TestADeadTargetOfAMapIsToldByAReset(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l.Close()
	r := &recorded{}
	g := mappedGuest(t, l.Addr().String(), Options{Recorder: r})
	expectReset(t, dialMapped(t, g))
	require.Eventually(t, func() bool { return len(r.all()) == 2 }, 5*time.Second, 10*time.Millisecond)
	assert.Equal(t, "error", r.all()[1].Verdict)
	assert.Contains(t, r.all()[1].Reason, "connection refused")
}

func TestGuestConnectionsGiveTheErrorsOfTheStandardLibrary(t *testing.T) {
	conns := make(chan net.Conn, 1)
	release := make(chan struct{})
	g := newTestGuest(t, Options{Policy: allowing(t, "ok.example"), Hooks: Hooks{OnFlow: func(_ context.Context, f *Flow) error {
		conns <- f.Conn
		<-release
		return errors.New("done")
	}}})
	guest, err := g.DialTCP("ok.example", 80)
	require.NoError(t, err)
	conn := <-conns
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(-time.Second)))
	_, err = conn.Read(make([]byte, 1))
	var ne net.Error
	require.ErrorAs(t, err, &ne)
	assert.True(t, ne.Timeout())
	require.NoError(t, conn.SetReadDeadline(time.Time{}))
	require.NoError(t, guest.(interface{ CloseWrite() error }).CloseWrite())
	_, err = conn.Read(make([]byte, 1))
	assert.Equal(t, io.EOF, err)
	guest.Close()
	require.Eventually(t, func() bool {
		_, err := conn.Write([]byte("x"))
		return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	}, 5*time.Second, 10*time.Millisecond)
	require.NoError(t, conn.Close())
	_, err = conn.Write([]byte("x"))
	assert.ErrorIs(t, err, net.ErrClosed)
	close(release)
}

func TestAnAnswerReachesAGuestThatIsStillSending(t *testing.T) {
	server := tcpServer(t, func(c net.Conn) {
		buf := make([]byte, 10)
		_, _ = io.ReadFull(c, buf)
		_, _ = io.WriteString(c, strings.Repeat("answer", 10_000))
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	})
	g := mappedGuest(t, server, Options{})
	conn := dialMapped(t, g)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 50 {
			if _, err := conn.Write(make([]byte, 10_000)); err != nil {
				return
			}
		}
		_ = conn.(interface{ CloseWrite() error }).CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	require.NoError(t, err)
	assert.Len(t, got, 60_000)
	<-done
}

// webGuest has a guest that trusts the session's CA, an HTTP client in it, and a
// server that gives size bytes, over TLS or not.
func webGuest(t testing.TB, secure bool, size int) (g *testGuest, client *http.Client, url string) {
	t.Helper()
	body := make([]byte, 256<<10)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		for left := size; left > 0; left -= min(left, len(body)) {
			if _, err := w.Write(body[:min(left, len(body))]); err != nil {
				return
			}
		}
	}))
	up, scheme := Upstream{Hosts: map[string]netip.Addr{"example.com": netip.MustParseAddr("127.0.0.1")}}, "http"
	if secure {
		server.StartTLS() // its certificate is for example.com
		scheme = "https"
		up.TLS = server.Client().Transport.(*http.Transport).TLSClientConfig
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	authority, err := ca.New(ca.Options{})
	require.NoError(t, err)
	g = newTestGuest(t, Options{Policy: allowing(t, "example.com"), Upstream: up, CA: authority})
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(authority.PEM()))
	client = &http.Client{Transport: &http.Transport{
		DialContext:     func(ctx context.Context, _, a string) (net.Conn, error) { return g.Dial(ctx, "tcp4", a) },
		TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true, ReadBufferSize: 256 << 10,
	}}
	t.Cleanup(client.CloseIdleConnections)
	return g, client, fmt.Sprintf("%s://example.com:%d/", scheme, server.Listener.Addr().(*net.TCPAddr).Port)
}

func TestHTTPSPassesFromTheGuestToAServer(t *testing.T) {
	_, client, url := webGuest(t, true, 1<<20)
	resp, err := client.Get(url)
	require.NoError(t, err)
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	require.NoError(t, err)
	assert.Equal(t, int64(1<<20), n)
	assert.Equal(t, "HTTP/2.0", resp.Proto)
}

func BenchmarkStackHTTPDownload(b *testing.B)  { benchmarkWeb(b, false, 64<<20) }
func BenchmarkStackHTTPSDownload(b *testing.B) { benchmarkWeb(b, true, 64<<20) }
func BenchmarkStackHTTPSSmall(b *testing.B)    { benchmarkWeb(b, true, 100) }

func benchmarkWeb(b *testing.B, secure bool, size int) {
	_, client, url := webGuest(b, secure, size)
	b.SetBytes(int64(size))
	buf := make([]byte, 256<<10)
	for b.Loop() {
		resp, err := client.Get(url)
		require.NoError(b, err)
		_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf)
		require.NoError(b, err)
		resp.Body.Close()
	}
}
