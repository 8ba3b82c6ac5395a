package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/netguard"
	"github.com/gondolin-go/gondolin/netguard/policy"
	"github.com/gondolin-go/gondolin/netguard/secret"
	"github.com/gondolin-go/gondolin/sandbox"
)

// outside is a server on loopback that stands for one on the internet: the guest knows it
// by a name, and only a rule that opens loopback leads there.
type outside struct {
	plain, secure *httptest.Server
	network       *sandbox.Network
}

func portOf(t *testing.T, s *httptest.Server) uint16 {
	t.Helper()
	addr, err := netip.ParseAddrPort(s.Listener.Addr().String())
	require.NoError(t, err)
	return addr.Port()
}

func newOutside(t *testing.T, h http.Handler, secrets *secret.Store) *outside {
	t.Helper()
	o := &outside{plain: httptest.NewServer(h), secure: httptest.NewUnstartedServer(h)}
	o.secure.EnableHTTP2 = true
	o.secure.StartTLS()
	t.Cleanup(func() { o.plain.Close(); o.secure.Close() })
	roots := x509.NewCertPool()
	roots.AddCert(o.secure.Certificate())
	p, err := policy.Compile(policy.Spec{Rules: []policy.Rule{{
		Name: "example", Action: policy.ActionAllow, Hosts: []string{"example.com"}, Ports: []string{fmt.Sprint(portOf(t, o.plain)), fmt.Sprint(portOf(t, o.secure))},
		AllowAddresses: []string{"127.0.0.1"},
	}}})
	require.NoError(t, err)
	o.network = &sandbox.Network{Policy: p, Secrets: secrets, Upstream: netguard.Upstream{
		TLS: &tls.Config{RootCAs: roots}, Hosts: map[string]netip.Addr{"example.com": netip.MustParseAddr("127.0.0.1")},
	}}
	return o
}

func (o *outside) url(t *testing.T, secure bool) string {
	if secure {
		return fmt.Sprintf("https://example.com:%d", portOf(t, o.secure))
	}
	return fmt.Sprintf("http://example.com:%d", portOf(t, o.plain))
}

func TestGuestReachesWhatThePolicyAllowsAndNothingElse(t *testing.T) {
	o := newOutside(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s over %s\n", r.Method, r.URL.Path, r.Proto)
	}), nil)
	opts := small
	opts.Network = o.network
	s := newSession(t, newHost(t, sandbox.HostOptions{}), opts)
	require.Equal(t, "GET /hello over HTTP/1.1", sh(t, s, "curl -sS "+o.url(t, false)+"/hello"))
	require.Equal(t, "GET /hello over HTTP/2.0", sh(t, s, "curl -sS "+o.url(t, true)+"/hello"), "TLS is trusted without a flag")
	require.Contains(t, sh(t, s, "python3 -c 'import urllib.request; print(urllib.request.urlopen(\""+o.url(t, true)+"/py\").read())'"), "GET /py")
	require.Contains(t, sh(t, s, "echo | openssl s_client -connect example.com:"+fmt.Sprint(portOf(t, o.secure))+" -servername example.com 2>&1 || true"), "Verify return code: 0")

	began := time.Now()
	out, exit := try(t, s, sandbox.Command{Shell: "curl -sS --max-time 20 https://denied.example/"})
	require.NotZero(t, exit.Code)
	require.Contains(t, out, "Could not resolve host")
	out, exit = try(t, s, sandbox.Command{Shell: "curl -sS --max-time 20 http://127.0.0.2:1/ ; curl -sS --max-time 20 http://169.254.169.254/latest/meta-data; curl -sS --max-time 20 http://10.0.0.1/"})
	require.NotZero(t, exit.Code)
	require.NotContains(t, out, "timed out")
	require.Less(t, time.Since(began), 15*time.Second, "a refusal is an answer, not a timeout")
	var denied []string
	for _, d := range s.Denials(began) {
		denied = append(denied, d.Path)
	}
	require.Contains(t, strings.Join(denied, " "), "denied.example")
}

func TestSecretIsPutInOnTheHostAndTheGuestNeverHoldsIt(t *testing.T) {
	const value = "s3cr3t-value-of-the-operator"
	t.Setenv("E2E_TOKEN", value)
	var got string
	seen := make(chan string, 8)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("Authorization")
		seen <- got
		fmt.Fprintf(w, "you sent %s\n", got)
	})
	store, err := secret.Open(t.Context(), []secret.Spec{{Name: "TOKEN", Hosts: []string{"example.com"}, GuestEnv: []string{"TOKEN"}, From: secret.From{Env: "E2E_TOKEN"}}}, secret.Options{})
	require.NoError(t, err)
	o := newOutside(t, handler, store)
	opts := small
	opts.Network = o.network
	s := newSession(t, newHost(t, sandbox.HostOptions{}), opts)
	placeholder := sh(t, s, "echo $TOKEN")
	require.NotEmpty(t, placeholder)
	require.NotContains(t, placeholder, value)
	echo := sh(t, s, `curl -sS -H "Authorization: Bearer $TOKEN" `+o.url(t, true))
	require.Equal(t, "Bearer "+value, <-seen)
	require.Equal(t, "you sent Bearer "+placeholder, echo, "the echo is scrubbed")
	require.NotContains(t, sh(t, s, "env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'; cat /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'"), value)
}

func TestGuestWithoutANetworkIsToldAtOnce(t *testing.T) {
	s := sharedSession(t)
	began := time.Now()
	out, exit := try(t, s, sandbox.Command{Shell: "curl -sS --max-time 20 https://example.com/"})
	require.NotZero(t, exit.Code)
	require.Contains(t, out, "Could not resolve host")
	require.Less(t, time.Since(began), 10*time.Second)
}

func TestMappedPortReachesItsTarget(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, "hello from the mapped server")
			c.Close()
		}
	}()
	p, err := policy.Compile(policy.Spec{Rules: []policy.Rule{{Name: "db", Action: policy.ActionAllow, Protocols: []policy.Protocol{policy.TCP}, Hosts: []string{"pg.internal"}, Ports: []string{"5432"}}}})
	require.NoError(t, err)
	opts := small
	opts.Network = &sandbox.Network{Policy: p, Maps: []netguard.Map{{Host: "pg.internal", Port: 5432, To: l.Addr().String()}}}
	s := newSession(t, newHost(t, sandbox.HostOptions{}), opts)
	require.Equal(t, "hello from the mapped server", sh(t, s, "python3 -c 'import socket; print(socket.create_connection((\"pg.internal\", 5432), 10).recv(100).decode().strip())'"))
}

// A policy that is replaced governs the next request, and open connections.
func TestPolicyChangesReachARunningSession(t *testing.T) {
	o := newOutside(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }), nil)
	opts := small
	opts.Network = o.network
	s := newSession(t, newHost(t, sandbox.HostOptions{}), opts)
	require.Equal(t, "ok", sh(t, s, "curl -sS "+o.url(t, true)))
	empty, err := policy.Compile(policy.Spec{})
	require.NoError(t, err)
	s.SetPolicy(empty)
	_, exit := try(t, s, sandbox.Command{Shell: "curl -sS --max-time 10 " + o.url(t, true)})
	require.NotZero(t, exit.Code)
}
