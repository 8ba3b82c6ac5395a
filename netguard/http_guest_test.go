package netguard

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/netguard/ca"
	"github.com/gondolin-go/gondolin/netguard/policy"
)

// guestClient is an HTTP client behind a whole Guard: frames, stack, DNS and dialing
// included. Its server is on loopback, opened by a rule.
func guestClient(t testing.TB, h http.HandlerFunc) (client *http.Client, plain, secure string) {
	t.Helper()
	s, ts := plainServer(t, h), tlsServer(t, h)
	authority, err := ca.New(ca.Options{})
	require.NoError(t, err)
	g := newTestGuest(t, Options{
		Policy: mustPolicy(t, policy.Rule{Name: "test", Action: policy.ActionAllow, Hosts: []string{"example.com"}, Ports: []string{"*"}, AllowAddresses: []string{"127.0.0.1"}}),
		CA:     authority,
		Upstream: Upstream{
			Hosts: map[string]netip.Addr{"example.com": netip.MustParseAddr("127.0.0.1")},
			TLS:   &tls.Config{RootCAs: rootsOf(ts)},
		},
	})
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority.PEM())
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return g.Dial(ctx, "tcp4", addr)
		},
		TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true, DisableCompression: true,
	}
	t.Cleanup(tr.CloseIdleConnections)
	at := func(a net.Addr) string { return fmt.Sprint("example.com:", a.(*net.TCPAddr).Port) }
	return &http.Client{Transport: tr}, "http://" + at(s.Listener.Addr()), "https://" + at(ts.Listener.Addr())
}

func TestHTTPGoesThroughTheWholeGuard(t *testing.T) {
	c, plain, secure := guestClient(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprint(w, r.Proto, " ", len(b), " ", r.URL.Path)
	})
	for base, proto := range map[string]string{plain: "HTTP/1.1", secure: "HTTP/2.0"} {
		for _, n := range []int{0, 10, 3 << 20} {
			resp, err := c.Post(base+"/x", "text/plain", bytes.NewReader(make([]byte, n)))
			require.NoError(t, err)
			assert.Equal(t, fmt.Sprint(proto, " ", n, " /x"), readBody(t, resp))
			assert.Equal(t, proto, resp.Proto)
		}
	}
	_, err := c.Get("http://other.example/")
	require.Error(t, err, "there is no such name")
}

func benchGuest(b *testing.B, secure, h2 bool) {
	chunk := make([]byte, 64<<10)
	c, url, secureURL := guestClient(b, func(w http.ResponseWriter, _ *http.Request) {
		for range 64 << 20 / len(chunk) {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	if secure {
		url = secureURL
	}
	if !h2 {
		h1(c)
	}
	buf := make([]byte, 256<<10)
	b.SetBytes(64 << 20)
	for b.Loop() {
		resp, err := c.Get(url + "/")
		require.NoError(b, err)
		_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{resp.Body}, buf)
		require.NoError(b, err)
		resp.Body.Close()
	}
}

func BenchmarkGuestHTTP64MiB(b *testing.B)  { benchGuest(b, false, false) }
func BenchmarkGuestHTTPS64MiB(b *testing.B) { benchGuest(b, true, false) }
func BenchmarkGuestHTTP264MiB(b *testing.B) { benchGuest(b, true, true) }
