package netguard

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// only allows the given addresses and notes what it was asked.
type only struct {
	mu    sync.Mutex
	open  []string
	asked []string
}

func (o *only) decide(a netip.Addr) policy.Decision {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = append(o.asked, a.String())
	for _, s := range o.open {
		if s == a.String() {
			return policy.Decision{Verdict: policy.Allow}
		}
	}
	return policy.Decision{Reason: "not " + a.String(), Rule: "r"}
}

func looking(addrs ...string) func(context.Context, string) ([]netip.Addr, error) {
	return func(context.Context, string) ([]netip.Addr, error) {
		var out []netip.Addr
		for _, a := range addrs {
			out = append(out, netip.MustParseAddr(a))
		}
		return out, nil
	}
}

func portOf(t testing.TB, address string) uint16 {
	t.Helper()
	ap, err := netip.ParseAddrPort(address)
	require.NoError(t, err)
	return ap.Port()
}

func failure(t testing.TB, err error) *DialError {
	t.Helper()
	var d *DialError
	require.ErrorAs(t, err, &d)
	return d
}

func TestHoleRebindingBetweenCheckAndDial(t *testing.T) {
	server := echoServer(t)
	var looks atomic.Int32
	rebinding := func(context.Context, string) ([]netip.Addr, error) {
		if looks.Add(1) == 1 {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		}
		return []netip.Addr{netip.MustParseAddr("169.254.169.254")}, nil
	}
	o := &only{open: []string{"127.0.0.1"}}
	conn, err := NewDialer(Upstream{Look: rebinding}).Dial(t.Context(), Target{Host: "a.example", Port: portOf(t, server), Decide: o.decide})
	require.NoError(t, err)
	defer conn.Close()
	assert.Equal(t, int32(1), looks.Load(), "what was checked is what is dialled")
	assert.Equal(t, netip.MustParseAddr("127.0.0.1"), checkedAddr(conn))
}

func TestHoleOnlyTheFirstOfSeveralAddressesIsChecked(t *testing.T) {
	server := echoServer(t)
	o := &only{open: []string{"127.0.0.1"}}
	d := NewDialer(Upstream{Look: looking("127.0.0.3", "::1", "127.0.0.1", "127.0.0.2")})
	conn, err := d.Dial(t.Context(), Target{Host: "a.example", Port: portOf(t, server), Decide: o.decide})
	require.NoError(t, err)
	conn.Close()
	assert.ElementsMatch(t, []string{"127.0.0.3", "::1", "127.0.0.1", "127.0.0.2"}, o.asked)
	assert.Equal(t, "127.0.0.1", checkedAddr(conn).String())

	o.open = nil
	_, err = d.Dial(t.Context(), Target{Host: "a.example", Port: 1, Decide: o.decide})
	f := failure(t, err)
	assert.Equal(t, FailedBlocked, f.Why)
	assert.Equal(t, "r", f.Decision.Rule)
	assert.Equal(t, "not 127.0.0.3", err.Error())
}

func TestHoleOtherFormsOfLocalAddresses(t *testing.T) {
	for _, host := range []string{
		"0.0.0.0", "::", "[::]", "::ffff:127.0.0.1", "127.1", "2130706433", "0177.0.0.1", "0x7f.1", "0x7f000001", "0",
		"::ffff:7f00:1", "64:ff9b::7f00:1", "2002:7f00:1::", "169.254.169.254", "::1", "127.0.0.1",
	} {
		_, err := NewDialer(Upstream{Look: forbiddenLook(t)}).Dial(t.Context(), Target{Host: host, Port: 1})
		assert.Equal(t, FailedBlocked, failure(t, err).Why, host)
	}
	for _, addr := range []string{"0.0.0.0", "::", "::ffff:127.0.0.1", "64:ff9b::a00:1"} {
		_, err := NewDialer(Upstream{Look: looking(addr)}).Dial(t.Context(), Target{Host: "a.example", Port: 1})
		assert.Equal(t, FailedBlocked, failure(t, err).Why, addr)
	}
	_, err := NewDialer(Upstream{}).Dial(t.Context(), Target{Host: "fe80::1%eth0", Port: 1})
	assert.Error(t, err)
}

func TestADeadAddressDoesNotHoldUpTheNext(t *testing.T) {
	server := echoServer(t)
	o := &only{open: []string{"127.0.0.1", "127.9.9.9", "::1"}}
	d := NewDialer(Upstream{Look: looking("::1", "127.9.9.9", "127.0.0.1")})
	begin := time.Now()
	conn, err := d.Dial(t.Context(), Target{Host: "a.example", Port: portOf(t, server), Decide: o.decide})
	require.NoError(t, err)
	conn.Close()
	assert.Less(t, time.Since(begin), time.Second)
}

func TestDialErrorsTellWhatFailed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	dead := portOf(t, l.Addr().String())
	l.Close()
	o := &only{open: []string{"127.0.0.1"}}
	_, err = NewDialer(Upstream{Look: looking("127.0.0.1")}).Dial(t.Context(), Target{Host: "a.example", Port: dead, Decide: o.decide})
	assert.Equal(t, FailedRefused, failure(t, err).Why)
	assert.ErrorContains(t, err, "a.example:")
	assert.ErrorContains(t, err, "connection refused")

	missing := func(context.Context, string) ([]netip.Addr, error) {
		return nil, &net.DNSError{Err: "no such host", Name: "a.example", IsNotFound: true}
	}
	_, err = NewDialer(Upstream{Look: missing}).Dial(t.Context(), Target{Host: "a.example", Port: 1})
	assert.Equal(t, FailedNoSuchHost, failure(t, err).Why)
	broken := func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("resolver away") }
	_, err = NewDialer(Upstream{Look: broken}).Dial(t.Context(), Target{Host: "a.example", Port: 1})
	assert.Equal(t, FailedLookup, failure(t, err).Why)
	_, err = NewDialer(Upstream{Look: looking()}).Dial(t.Context(), Target{Host: "a.example", Port: 1})
	assert.Equal(t, FailedNoSuchHost, failure(t, err).Why)
	assert.Equal(t, FailedTimeout, dialFailure(errDialTimeout))
}

func TestLookupsAreBounded(t *testing.T) {
	var now, most atomic.Int32
	release := make(chan struct{})
	look := func(context.Context, string) ([]netip.Addr, error) {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-release
		now.Add(-1)
		return nil, errors.New("no")
	}
	d := NewDialer(Upstream{Look: look})
	var work sync.WaitGroup
	for i := range 3 * maxLooks {
		work.Add(1)
		go func() {
			defer work.Done()
			_, _ = d.Dial(context.Background(), Target{Host: fmt.Sprintf("h%d.example", i), Port: 1})
		}()
	}
	require.Eventually(t, func() bool { return now.Load() == maxLooks }, 5*time.Second, time.Millisecond)
	close(release)
	work.Wait()
	assert.Equal(t, int32(maxLooks), most.Load())
}

// checkedAddr is the address that a connection is pooled under.
func checkedAddr(conn net.Conn) netip.Addr {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// connectProxy is an HTTP proxy that tunnels everything to one server.
func connectProxy(t testing.TB, server string, heads chan<- string) string {
	return tcpServer(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		heads <- req.Method + " " + req.Host + " " + req.Header.Get("Proxy-Authorization")
		if strings.HasPrefix(req.Host, "closed.") {
			fmt.Fprint(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
			return
		}
		up, err := net.Dial("tcp", server)
		if err != nil {
			return
		}
		defer up.Close()
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\n\r\nearly ")
		done := make(chan struct{})
		go func() { defer close(done); _, _ = io.Copy(c, up); c.Close() }()
		_, _ = io.Copy(up, r)
		up.Close()
		<-done
	})
}

// net/http puts the whole of a setting that it cannot read into its error.
func TestAProxySettingThatIsNoURLIsNotTold(t *testing.T) {
	d := NewDialer(Upstream{Look: forbiddenLook(t), Proxy: func(*http.Request) (string, error) {
		return "", errors.New(`invalid proxy address "http://user:word@pro xy"`)
	}})
	_, err := d.Dial(t.Context(), Target{Host: "a.example", Port: 443, Decide: (&only{}).decide})
	assert.Equal(t, FailedProxy, failure(t, err).Why)
	assert.ErrorContains(t, err, "the host's proxy setting is no URL")
	assert.NotContains(t, err.Error(), "word")
}

func TestTheHostsProxyIsUsedAndTheNameJudgedByThePolicy(t *testing.T) {
	heads := make(chan string, 10)
	proxy := connectProxy(t, echoServer(t), heads)
	o := &only{}
	d := NewDialer(Upstream{
		Look: forbiddenLook(t),
		Proxy: func(r *http.Request) (string, error) {
			if r.URL.Hostname() == "direct.example" || r.URL.Hostname() == "127.0.0.1" && r.URL.Port() == "1" {
				return "", nil
			}
			return "http://user:word@" + proxy, nil
		},
	})
	conn, err := d.Dial(t.Context(), Target{Host: "a.example", Port: 443, Decide: o.decide})
	require.NoError(t, err)
	defer conn.Close()
	assert.Equal(t, "CONNECT a.example:443 Basic dXNlcjp3b3Jk", <-heads)
	assert.False(t, checkedAddr(conn).IsValid())
	_, err = conn.Write([]byte("hello"))
	require.NoError(t, err)
	got := make([]byte, 11)
	_, err = io.ReadFull(conn, got)
	require.NoError(t, err)
	assert.Equal(t, "early hello", string(got))

	_, err = d.Dial(t.Context(), Target{Host: "closed.example", Port: 443, Decide: o.decide})
	assert.Equal(t, FailedProxy, failure(t, err).Why)
	assert.ErrorContains(t, err, "403 Forbidden")
	assert.NotContains(t, err.Error(), "word", "the proxy's password stays here")
	<-heads

	_, err = d.Dial(t.Context(), Target{Host: "10.0.0.1", Port: 443, Decide: o.decide})
	assert.Equal(t, FailedBlocked, failure(t, err).Why, "an address is judged though a proxy would reach it")
	assert.Empty(t, heads)
}
