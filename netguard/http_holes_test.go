package netguard

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/netguard/policy"
	"github.com/gondolin-go/gondolin/netguard/secret"
)

func TestHoleCONNECTThroughAnAllowedHost(t *testing.T) {
	s := plainServer(t, func(http.ResponseWriter, *http.Request) { t.Error("it left") })
	r := newRig(t, rigOptions{rules: allowAll("example.com", "evil.example")})
	r.serve("example.com:80", s)
	for _, target := range []string{"evil.example:443", "example.com:443", "127.0.0.1:22"} {
		all := parseResponses(t, r.raw("example.com", "CONNECT "+target+" HTTP/1.1\r\nHost: "+target+"\r\n\r\n\x16\x03\x01"))
		require.Len(t, all, 1)
		assert.Equal(t, 405, all[0].StatusCode)
		assert.Contains(t, readRefusal(t, all[0]).Reason, "CONNECT is refused")
	}
	assert.Zero(t, r.dials.Load())
}

// Connection names fields that do not reach the server: a rule does not go by them.
func TestHoleARuleGoesByAFieldThatIsNotSentOn(t *testing.T) {
	s := plainServer(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Header.Get("X-Read-Only")) })
	r := newRig(t, rigOptions{rules: []policy.Rule{{Action: policy.ActionAllow, Hosts: []string{"example.com"}, Ports: []string{"*"}, When: `"x-read-only" in headers`}}})
	r.serve("example.com:80", s)
	for connection, want := range map[string]int{"close": 200, "close, X-Read-Only": 403} {
		all := parseResponses(t, r.raw("example.com", "GET / HTTP/1.1\r\nHost: example.com\r\nX-Read-Only: 1\r\nConnection: "+connection+"\r\n\r\n"))
		require.Len(t, all, 1)
		assert.Equal(t, want, all[0].StatusCode, connection)
	}
}

func TestHolePlainHTTPIsUnfilteredWhileHTTPSIsFiltered(t *testing.T) {
	h := func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) }
	s, ts := plainServer(t, h), tlsServer(t, h)
	r := newRig(t, rigOptions{rules: []policy.Rule{{Action: policy.ActionAllow, Hosts: []string{"example.com"}, Methods: []string{"GET"}, Paths: []string{"/public/**"}}}, roots: rootsOf(ts)})
	r.serve("example.com:80", s)
	r.serve("example.com:443", ts)
	for _, scheme := range []string{"http", "https"} {
		for path, want := range map[string]int{"/public/x": 200, "/private": 403, "/public/../private": 403, "/public/%2e%2e/private": 403, "//public/x": 403} {
			resp, err := r.client().Do(&http.Request{Method: "GET", URL: &url.URL{Scheme: scheme, Host: "example.com", Path: path, RawPath: path}, Header: http.Header{}})
			require.NoError(t, err)
			readBody(t, resp)
			assert.Equal(t, want, resp.StatusCode, scheme+path)
		}
		resp, err := r.client().Post(scheme+"://example.com/public/x", "text/plain", strings.NewReader("x"))
		require.NoError(t, err)
		readBody(t, resp)
		assert.Equal(t, 403, resp.StatusCode)
	}
}

func TestHoleSecretScopeWidensTheAllowlist(t *testing.T) {
	r := newRig(t, rigOptions{
		rules:   allowAll("example.com"),
		secrets: []secret.Spec{{Name: "KEY", From: secret.From{Env: "KEY"}, Hosts: []string{"bound.example"}}},
		env:     map[string]string{"KEY": theSecret},
	})
	mark, _ := r.p.secrets.Placeholder("KEY")
	req, err := http.NewRequest("GET", "https://bound.example/", nil)
	require.NoError(t, err)
	req.Header.Set("Authorization", mark)
	resp, err := r.client().Do(req)
	require.NoError(t, err)
	assert.Equal(t, 403, resp.StatusCode)
	assert.Equal(t, "default", resp.Header.Get(refusedHeader))
	readRefusal(t, resp)
	assert.Zero(t, r.dials.Load())
}

func TestHolePlaceholderSplitOverWrites(t *testing.T) {
	var got seen
	r, mark := secretRig(t, []secret.Place{secret.InBody}, got.handler)
	for host, want := range map[string]int{"example.com": 200, "www.example.com": 403} {
		pr, pw := io.Pipe()
		go func() {
			for i := range mark {
				if _, err := io.WriteString(pw, mark[i:i+1]); err != nil {
					return
				}
			}
			pw.Close()
		}()
		resp, err := h1(r.client()).Post("https://"+host+"/", "text/plain", pr)
		require.NoError(t, err)
		readBody(t, resp)
		assert.Equal(t, want, resp.StatusCode, host)
		pr.Close()
	}
	assert.Equal(t, theSecret, got.last().body)
}

func TestHoleTrailingDotUpperCaseAndIDNAInHostNames(t *testing.T) {
	s := plainServer(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host) })
	r := newRig(t, rigOptions{rules: append([]policy.Rule{{Action: policy.ActionDeny, Hosts: []string{"xn--bcher-kva.example"}, Paths: []string{"/no"}}}, allowAll("xn--bcher-kva.example")...)})
	r.serve("xn--bcher-kva.example:80", s)
	all := parseResponses(t, r.raw("xn--bcher-kva.example", "GET / HTTP/1.1\r\nHost: b\u00fccher.example\r\n\r\n"))
	require.Len(t, all, 1)
	assert.Equal(t, 400, all[0].StatusCode)
	assert.Contains(t, readRefusal(t, all[0]).Reason, "xn--")
	for _, host := range []string{"xn--bcher-kva.example", "XN--BCHER-KVA.EXAMPLE", "xn--bcher-kva.example.", "Xn--Bcher-Kva.Example.:80"} {
		for path, want := range map[string]int{"/": 200, "/no": 403} {
			all := parseResponses(t, r.raw("xn--bcher-kva.example", "GET "+path+" HTTP/1.1\r\nConnection: close\r\nHost: "+host+"\r\n\r\n"))
			require.Len(t, all, 1)
			assert.Equal(t, want, all[0].StatusCode, host)
		}
	}
}

func TestHoleEveryAnswerClosesTheConnection(t *testing.T) {
	h := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/chunked" {
			w.(http.Flusher).Flush()
		}
		w.Header().Set("Connection", "close") // the server's affair
		io.WriteString(w, "ok")
	}
	ts := tlsServer(t, h)
	r := newRig(t, rigOptions{rules: []policy.Rule{{Action: policy.ActionAllow, Hosts: []string{"example.com"}, Methods: []string{"GET"}}}, roots: rootsOf(ts)})
	r.serve("example.com:443", ts)
	c := h1(r.client())
	for range 5 {
		for _, req := range [][2]string{{"GET", "/"}, {"GET", "/chunked"}, {"DELETE", "/"}} {
			out, err := http.NewRequest(req[0], "https://example.com"+req[1], nil)
			require.NoError(t, err)
			resp, err := c.Do(out)
			require.NoError(t, err)
			readBody(t, resp)
		}
	}
	assert.EqualValues(t, 1, r.flows.Load(), "refusals do not close it either")
}

func TestARequestOnAConnectionThatDiedIdleIsRepeatedIfThatDoesNoHarm(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			// One answer; the next request finds a connection that dies as it is read.
			in := bufio.NewReader(c)
			if _, err := http.ReadRequest(in); err == nil {
				fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				_, _ = http.ReadRequest(in)
			}
			c.Close()
		}
	}()
	r := newRig(t, rigOptions{rules: allowAll("example.com")})
	r.servers["example.com:80"] = fakeServer{l.Addr().String(), []string{publicAddr}}
	t.Cleanup(func() {
		r.p.close()
		l.Close()
		<-done
	})
	c := r.client()
	c.Timeout = 10 * time.Second
	for i := range 3 {
		resp, err := c.Get("http://example.com/")
		require.NoError(t, err)
		assert.Equal(t, "ok", readBody(t, resp), i)
	}
	resp, err := c.Post("http://example.com/", "text/plain", strings.NewReader("x"))
	require.NoError(t, err)
	assert.Equal(t, 502, resp.StatusCode, "a POST might be done twice")
	assert.Contains(t, readRefusal(t, resp).Reason, "example.com:80 gave no answer")
}

func TestIdleConnectionsToServersAreBounded(t *testing.T) {
	var together sync.WaitGroup // every request needs a connection of its own
	together.Add(40)
	s := plainServer(t, func(http.ResponseWriter, *http.Request) {
		together.Done()
		together.Wait()
	})
	r := newRig(t, rigOptions{rules: allowAll("example.com")})
	r.serve("example.com:80", s)
	ends := make(chan struct{}, 40)
	for range cap(ends) {
		c := r.client()
		go func() {
			defer func() { ends <- struct{}{} }()
			resp, err := c.Get("http://example.com/")
			if assert.NoError(t, err) {
				resp.Body.Close()
			}
		}()
	}
	for range cap(ends) {
		<-ends
	}
	require.Eventually(t, func() bool {
		r.p.up.mu.Lock()
		defer r.p.up.mu.Unlock()
		n := 0
		for _, list := range r.p.up.conns {
			n += len(list)
		}
		return n == r.p.up.idle && n <= maxIdleEach
	}, 5*time.Second, 5*time.Millisecond)
}
