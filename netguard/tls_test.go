package netguard

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// shake does a TLS handshake of the guest's and one byte, so that an alert shows.
func shake(conn net.Conn, c *tls.Config) (*tls.Conn, error) {
	s := tls.Client(conn, c)
	if err := s.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	return s, s.Handshake()
}

func TestHoleSNIIsNotTheNameThatWasLookedUp(t *testing.T) {
	r := newRig(t, rigOptions{rules: allowAll("example.com", "other.example")})
	for sni, ok := range map[string]bool{"example.com": true, "EXAMPLE.com": true, "other.example": false, "": false, "www.example.com": false} {
		s, err := shake(r.open("example.com", 443, true), &tls.Config{RootCAs: r.trust(), ServerName: sni, InsecureSkipVerify: sni != "example.com"})
		if ok {
			require.NoError(t, err, sni)
			assert.Equal(t, "example.com", s.ConnectionState().PeerCertificates[0].DNSNames[0])
			s.Close()
			continue
		}
		require.ErrorContains(t, err, "unrecognized name", sni)
		require.Eventually(t, func() bool {
			all := r.record()
			return len(all) > 0 && all[len(all)-1].Verdict == "deny" && all[len(all)-1].Reason != ""
		}, 5*time.Second, time.Millisecond)
	}
}

func TestHoleHostIsNotSNI(t *testing.T) {
	r := newRig(t, rigOptions{rules: allowAll("example.com", "other.example")})
	for _, protos := range [][]string{{"h2"}, {"http/1.1"}} {
		c := r.client()
		c.Transport.(*http.Transport).TLSClientConfig.NextProtos = protos
		c.Transport.(*http.Transport).ForceAttemptHTTP2 = protos[0] == "h2"
		req, err := http.NewRequest("GET", "https://example.com/", nil)
		require.NoError(t, err)
		req.Host = "other.example"
		resp, err := c.Do(req)
		require.NoError(t, err)
		assert.Equal(t, 421, resp.StatusCode)
		assert.Contains(t, readRefusal(t, resp).Reason, "other.example")
	}
	assert.Zero(t, r.dials.Load())
}

func TestATicketForOneNameDoesNotOpenAnother(t *testing.T) {
	r := newRig(t, rigOptions{rules: allowAll("example.com", "other.example")})
	cache := tls.NewLRUClientSessionCache(8)
	c := &tls.Config{RootCAs: r.trust(), ServerName: "example.com", ClientSessionCache: cache}
	for i := range 2 {
		s, err := shake(r.open("example.com", 443, true), c)
		require.NoError(t, err)
		assert.Equal(t, i == 1, s.ConnectionState().DidResume, "tickets work")
		// TLS 1.3 sends them after the handshake.
		_, err = io.WriteString(s, "GET / HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n")
		require.NoError(t, err)
		_, err = io.ReadAll(s)
		require.NoError(t, err)
	}
	_, err := shake(r.open("other.example", 443, true), c)
	require.ErrorContains(t, err, "unrecognized name")
}

func TestWithoutSNIOnlyAnAddressThatARuleNamesIsServed(t *testing.T) {
	s := tlsServer(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "by address") })
	r := newRig(t, rigOptions{rules: []policy.Rule{
		{Name: "addr", Action: policy.ActionAllow, Hosts: []string{"127.0.0.1"}, AllowAddresses: []string{"127.0.0.1"}},
	}, roots: rootsOf(s)})
	r.serve("127.0.0.1:443", s, "127.0.0.1")
	resp, err := r.client().Get("https://127.0.0.1/")
	require.NoError(t, err)
	assert.Equal(t, "by address", readBody(t, resp))
	_, err = shake(r.open("127.0.0.2", 443, true), &tls.Config{InsecureSkipVerify: true})
	require.ErrorContains(t, err, "unrecognized name")
	_, err = shake(r.open("127.0.0.1", 443, true), &tls.Config{InsecureSkipVerify: true, ServerName: "example.com"})
	require.ErrorContains(t, err, "unrecognized name")
}

func TestALPNOffersHTTP2AndHTTP1AndNothingOld(t *testing.T) {
	r := newRig(t, rigOptions{rules: allowAll("example.com")})
	for _, tt := range []struct {
		offer []string
		want  string
	}{{[]string{"h2", "http/1.1"}, "h2"}, {[]string{"http/1.1"}, "http/1.1"}, {nil, ""}} {
		s, err := shake(r.open("example.com", 443, true), &tls.Config{RootCAs: r.trust(), ServerName: "example.com", NextProtos: tt.offer})
		require.NoError(t, err)
		assert.Equal(t, tt.want, s.ConnectionState().NegotiatedProtocol)
		s.Close()
	}
	_, err := shake(r.open("example.com", 443, true), &tls.Config{RootCAs: r.trust(), ServerName: "example.com", MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10})
	require.ErrorContains(t, err, "protocol version")
}

func TestAProgramThatDoesNotTrustTheSessionsCAIsOnRecord(t *testing.T) {
	r := newRig(t, rigOptions{rules: allowAll("example.com")})
	_, err := shake(r.open("example.com", 443, true), &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "example.com"})
	require.Error(t, err)
	require.Eventually(t, func() bool { return len(r.record()) == 1 }, 5*time.Second, time.Millisecond)
	e := r.record()[0]
	assert.Equal(t, "error", e.Verdict)
	assert.Contains(t, e.Reason, "bad certificate")
	assert.Contains(t, e.Remedy, "trust")
}

// serverWith is a TLS server with a certificate of its own.
func serverWith(t *testing.T, names []string, from, to time.Time) (*httptest.Server, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "own"}, NotBefore: from, NotAfter: to,
		DNSNames: names, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	require.NoError(t, err)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "trusted") }))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s, rootsOf(s)
}

func TestHoleADeadOrUntrustedServerIsABare502(t *testing.T) {
	now := time.Now()
	good, roots := serverWith(t, []string{"example.com"}, now.Add(-time.Hour), now.Add(time.Hour))
	expired, expiredRoots := serverWith(t, []string{"example.com"}, now.Add(-time.Hour), now.Add(-time.Minute))
	early, earlyRoots := serverWith(t, []string{"example.com"}, now.Add(time.Hour), now.Add(2*time.Hour))
	plain := plainServer(t, func(http.ResponseWriter, *http.Request) {})
	reset := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, _, _ := w.(http.Hijacker).Hijack()
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}))
	t.Cleanup(reset.Close)
	dead := httptest.NewServer(nil)
	dead.Close()
	for name, tt := range map[string]struct {
		server *httptest.Server
		roots  *x509.CertPool
		url    string
		status int
		reason string
		header string
	}{
		"good":         {good, roots, "https://example.com/", 200, "", ""},
		"untrusted":    {good, nil, "https://example.com/", 502, "authority that the host does not trust", "certificate"},
		"other name":   {good, roots, "https://www.example.com/", 502, "is for other names: example.com", "certificate"},
		"expired":      {expired, expiredRoots, "https://example.com/", 502, "has expired", "certificate"},
		"not yet":      {early, earlyRoots, "https://example.com/", 502, "valid from", "certificate"},
		"no TLS":       {plain, nil, "https://example.com/", 502, "example.com:443 does not speak TLS", "upstream"},
		"dead":         {dead, nil, "http://example.com/", 502, "connecting to example.com:80: the connection was refused", "upstream"},
		"reset":        {reset, nil, "http://example.com/", 502, "example.com:80 gave no answer: the connection was", "upstream"},
		"no such host": {nil, nil, "http://example.com/", 502, "no such host", "upstream"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, rigOptions{rules: allowAll("example.com", "www.example.com"), roots: tt.roots})
			if tt.server != nil {
				for _, host := range []string{"example.com:80", "example.com:443", "www.example.com:443"} {
					r.serve(host, tt.server)
				}
			}
			resp, err := r.client().Get(tt.url)
			require.NoError(t, err)
			require.Equal(t, tt.status, resp.StatusCode)
			if tt.status == 200 {
				assert.Equal(t, "trusted", readBody(t, resp))
				return
			}
			b := readRefusal(t, resp)
			assert.Equal(t, "failed", b.Error)
			assert.Contains(t, b.Reason, tt.reason)
			assert.NotEmpty(t, b.Remedy)
			assert.Equal(t, tt.header, resp.Header.Get(failedHeader))
			assert.Empty(t, resp.Header.Get(refusedHeader))
			assert.Equal(t, "error", r.last().Verdict)
		})
	}
}
