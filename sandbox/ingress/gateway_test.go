package ingress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// net/http itself waits half a second for the client to read why it is cut off.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

// rig is a gateway whose guest is a server of this process: its ports all lead there.
func rig(t testing.TB, guest http.Handler, change func(*Options)) *Gateway {
	t.Helper()
	server := httptest.NewUnstartedServer(guest)
	server.Config.Protocols = protocols(true, true)
	server.Start()
	o := Options{
		Dial: func(ctx context.Context, port uint16) (net.Conn, error) {
			if port == 1 {
				return nil, fmt.Errorf("port 1: %w", ErrNobody)
			}
			return new(net.Dialer).DialContext(ctx, "tcp", server.Listener.Addr().String())
		},
		Routes: func(context.Context) ([]Route, error) {
			return []Route{{Prefix: "/", Port: 80}, {Prefix: "/dead", Port: 1}, {Prefix: "/s", Port: 80, Strip: true}}, nil
		},
	}
	if change != nil {
		change(&o)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	g := New(t.Context(), ln, o)
	served := make(chan error, 1)
	go func() { served <- g.Serve() }()
	t.Cleanup(func() {
		require.NoError(t, g.Close())
		require.NoError(t, <-served)
		server.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	return g
}

// raw sends bytes and returns the answer.
func raw(t testing.TB, g *Gateway, request string) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", g.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(conn, request)
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	return resp
}

func TestTheGatewayServesNoNameOfTheWebAndNoTunnel(t *testing.T) {
	g := rig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "guest") }), func(o *Options) { o.Hosts = []string{"Dev.Example."} })
	for request, kind := range map[string]string{
		"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n":                            "host",
		"GET / HTTP/1.1\r\nHost: 127.0.0.1.evil.example\r\n\r\n":                  "host",
		"GET / HTTP/1.0\r\n\r\n":                                                  "host",
		"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n":            "host",
		"GET / HTTP/1.1\r\nHost: 127.0.0.1@evil.example\r\n\r\n":                  "",
		"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n":             "form",
		"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n":                           "form",
		"GET / HTTP/1.1\r\nHost: [::1]:99\r\n\r\n":                                "served",
		"GET / HTTP/1.1\r\nHost: LOCALHOST.\r\n\r\n":                              "served",
		"GET / HTTP/1.1\r\nHost: x.localhost:1\r\n\r\n":                           "served",
		"GET / HTTP/1.1\r\nHost: dev.example\r\n\r\n":                             "served",
		"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n":               "served",
		"GET /dead HTTP/1.1\r\nHost: localhost\r\n\r\n":                           "nobody",
		"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 100<<10): "",
	} {
		resp := raw(t, g, request)
		if kind == "served" {
			assert.Equal(t, 200, resp.StatusCode, short(request))
			continue
		}
		assert.GreaterOrEqual(t, resp.StatusCode, 400, short(request))
		assert.Equal(t, kind, resp.Header.Get(headerName), short(request))
	}
}

func TestWhatTheGuestSaysStaysAnAnswer(t *testing.T) {
	g := rig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/cut":
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "ten bytes.")
		case "/flood":
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n"+strings.Repeat("X-A: "+strings.Repeat("b", 1000)+"\r\n", 1000)+"\r\n")
				conn.Close()
			}
		case "/not-http":
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_, _ = io.WriteString(conn, "SSH-2.0-surprise\r\n")
				conn.Close()
			}
		default:
			w.Header().Set(headerName, "host")
			w.Header().Set("Alt-Svc", `h3=":443"`)
			fmt.Fprint(w, r.URL.Path+" "+r.Header.Get("X-Forwarded-Prefix"))
		}
	}), nil)
	for _, path := range []string{"/flood", "/not-http"} {
		resp, err := http.Get("http://" + g.Addr().String() + path)
		require.NoError(t, err)
		resp.Body.Close()
		assert.Equal(t, http.StatusBadGateway, resp.StatusCode, path)
		assert.Equal(t, "failed", resp.Header.Get(headerName))
	}
	resp, err := http.Get("http://" + g.Addr().String() + "/cut")
	require.NoError(t, err)
	_, err = io.ReadAll(resp.Body)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF, "half an answer must not look whole")
	resp.Body.Close()

	resp, err = http.Get("http://" + g.Addr().String() + "/s/x")
	require.NoError(t, err)
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	assert.Equal(t, "/x /s", string(body))
	assert.Empty(t, resp.Header.Get(headerName), "the guest must not speak for the gateway")
	assert.Empty(t, resp.Header.Get("Alt-Svc"))
}

func TestGRPCPassesOverHTTP2WithItsTrailers(t *testing.T) {
	g := rig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Grpc-Status")
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%d %s", r.ProtoMajor, body)
		w.Header().Set("Grpc-Status", "0")
	}), nil)
	tr := &http.Transport{Protocols: protocols(false, true)}
	defer tr.CloseIdleConnections()
	r, err := http.NewRequest(http.MethodPost, "http://"+g.Addr().String()+"/svc/Method", strings.NewReader("ping"))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("TE", "trailers")
	resp, err := tr.RoundTrip(r)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, "2 ping", string(body))
	assert.Equal(t, "0", resp.Trailer.Get("Grpc-Status"))
}

func TestHooksRefuseInTheirWords(t *testing.T) {
	g := rig(t, http.NotFoundHandler(), func(o *Options) {
		o.OnRequest = func(r *http.Request) error {
			if r.URL.Path == "/gone" {
				return &Refusal{Status: http.StatusGone, Reason: "it was <removed>"}
			}
			return errors.New("no")
		}
	})
	r, err := http.NewRequest(http.MethodGet, "http://"+g.Addr().String()+"/gone", nil)
	require.NoError(t, err)
	r.Header.Set("Accept", "text/html")
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	assert.Equal(t, http.StatusGone, resp.StatusCode)
	assert.Contains(t, string(body), "it was &lt;removed&gt;")
}

// upgrade asks the gateway for a WebSocket.
func upgrade(t *testing.T, g *Gateway) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", g.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	require.NoError(t, err)
	return conn
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	begun := make(chan struct{})
	g := rig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		close(begun)
		_, _ = io.Copy(io.Discard, conn)
		conn.Close()
	}), nil)
	conn := upgrade(t, g)
	<-begun
	require.NoError(t, g.Close())
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
	_, err := io.Copy(io.Discard, conn)
	require.NotErrorIs(t, err, context.DeadlineExceeded)
}

// Whatever stands in a request's head, it is answered, and reaches the guest only under a name of ours.
func FuzzRequestHead(f *testing.F) {
	f.Add("GET", "/", "localhost", "Origin: http://x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n")
	f.Add("POST", "/~abc/x", "evil", "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n")
	f.Add("GET", "//a/..%2f", "[::1", "Cookie: gondolin_1=x; a=b\r\n")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(f, err)
	defer ln.Close()
	gateways := map[string]*Gateway{}
	for _, token := range []string{"", "secret"} {
		gateways[token] = New(f.Context(), ln, Options{
			Token: token, Routes: func(context.Context) ([]Route, error) { return []Route{{Prefix: "/", Port: 80}}, nil },
			Dial: func(context.Context, uint16) (net.Conn, error) { return nil, ErrNobody },
		})
	}
	f.Fuzz(func(t *testing.T, method, target, host, head string) {
		for token, g := range gateways {
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(method + " " + target + " HTTP/1.1\r\nHost: " + host + "\r\n" + head + "\r\n")))
			if err != nil {
				return
			}
			named, has := g.names.has(r.Host), strings.Contains(target+head, "secret")
			w := httptest.NewRecorder()
			g.ServeHTTP(w, r.WithContext(t.Context()))
			passed := w.Header().Get(headerName) == "nobody"
			if w.Code < 300 || passed && (token == "" && !named || token != "" && !has) {
				t.Fatalf("%d for %q with the token %q", w.Code, r.Host, token)
			}
		}
	})
}

// Browsers send a cookie to every port of its host, and so one gateway's token to another's guest.
func TestNoGuestSeesATokenAndOtherCookiesPassAsTheyAre(t *testing.T) {
	for _, token := range []string{"", "secret"} {
		g := rig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, strings.Join(r.Header["Cookie"], "|")) }), func(o *Options) { o.Token = token })
		resp := raw(t, g, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"+
			`Cookie: gondolin_1=OTHER; state={"a":"b, c"}; `+g.cookie()+"=secret\r\nCookie: x=\"gondolin_2\"; gondolin_3 =OTHER;y\r\n\r\n")
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		assert.Equal(t, `state={"a":"b, c"}; x="gondolin_2"; y`, string(body), "with the token %q", token)
	}
}

// The browser keeps them for all ports of the host: a guest could shut the user out of any gateway.
func TestNoGuestOverwritesATokenInTheBrowser(t *testing.T) {
	g := rig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Set-Cookie"] = []string{"a=1", "gondolin_1=evil; Path=/", "  gondolin_2=evil", "=gondolin_3=evil", "b=gondolin_2; HttpOnly"}
	}), nil)
	resp := raw(t, g, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	assert.Equal(t, []string{"a=1", "b=gondolin_2; HttpOnly"}, resp.Header["Set-Cookie"])
}

// Cookies for longer paths come first, and scripts of the guest can set such ones.
func TestATokenCountsAmongOtherCookiesOfItsName(t *testing.T) {
	g := rig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "in") }), func(o *Options) { o.Token = "secret" })
	for cookies, code := range map[string]int{"%s=evil; %s=secret": 200, "%s=secret; %s=evil": 200, "%s=evil; %s=bad": 403} {
		resp := raw(t, g, "GET /app HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nCookie: "+strings.ReplaceAll(cookies, "%s", g.cookie())+"\r\n\r\n")
		assert.Equal(t, code, resp.StatusCode, cookies)
	}
}

// They would pass by what makes an answer harmless, and take the token's cookie away.
func TestInformationalAnswersOfTheGuestStayThere(t *testing.T) {
	g := rig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Clear-Site-Data", `"cookies"`)
		w.WriteHeader(http.StatusEarlyHints)
		fmt.Fprint(w, "in")
	}), func(o *Options) { o.Token = "secret" })
	resp := raw(t, g, "GET /~secret/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	assert.Equal(t, 200, resp.StatusCode)
	assert.Contains(t, resp.Header.Get("Set-Cookie"), "=secret")
}

// Nobody sees them, and so nobody's patience slows them down.
func TestAGuestThatInformsForEverIsCutOff(t *testing.T) {
	g := rig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for i := 0; i < 1_000_000 && r.Context().Err() == nil; i++ {
			w.WriteHeader(http.StatusEarlyHints)
		}
	}), nil)
	resp := raw(t, g, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	assert.Equal(t, 502, resp.StatusCode)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.Contains(t, string(body), "informational answers")
}

// What follows another switch is no HTTP that the gateway, or a hook, has read.
func TestNoProtocolButWebSocketsIsSwitchedTo(t *testing.T) {
	g := rig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%q %q", r.Header["Upgrade"], r.Header["Connection"])
	}), nil)
	for _, other := range []string{"h2c", "x", "h2c, websocket"} {
		resp := raw(t, g, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: "+other+"\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n")
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		assert.Equal(t, "[] []", string(body), other)
	}
}

func TestPagesOfOtherSitesChangeNothing(t *testing.T) {
	g := rig(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), nil)
	for head, status := range map[string]int{
		"POST / HTTP/1.1\r\nOrigin: https://evil.example\r\n":                 403,
		"DELETE / HTTP/1.1\r\nOrigin: null\r\nSec-Fetch-Site: cross-site\r\n": 403,
		"GET / HTTP/1.1\r\nOrigin: https://evil.example\r\n":                  200,
		"POST / HTTP/1.1\r\n": 200,
		"POST / HTTP/1.1\r\nOrigin: http://localhost:5173\r\n":                             200,
		"POST / HTTP/1.1\r\nOrigin: null\r\nSec-Fetch-Site: same-origin\r\n":               200,
		"GET / HTTP/1.1\r\nOrigin: null\r\nUpgrade: websocket\r\nSec-Fetch-Site: none\r\n": 403,
	} {
		resp := raw(t, g, head+"Host: localhost\r\nContent-Length: 0\r\n\r\n")
		assert.Equal(t, status, resp.StatusCode, head)
	}
}

func TestAGuestLeavesNothingInABrowserAtAnAddressThatIsUsedAgain(t *testing.T) {
	for _, chosen := range []bool{false, true} {
		g := rig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Add("Cache-Control", "public")
			w.Header().Add("Cache-Control", "max-age=31536000, immutable")
		}), func(o *Options) { o.Chosen = chosen })
		page := raw(t, g, "GET /main.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
		worker := raw(t, g, "GET /sw.js HTTP/1.1\r\nHost: localhost\r\nService-Worker: script\r\n\r\n")
		if chosen {
			assert.Equal(t, []string{"no-store"}, page.Header["Cache-Control"])
			assert.Equal(t, "worker", worker.Header.Get(headerName))
		} else {
			assert.Len(t, page.Header["Cache-Control"], 2)
			assert.Equal(t, 200, worker.StatusCode)
		}
	}
}

// A stopped browser must not keep a session from ending.
func TestCloseDoesNotWaitForAClientThatReadsNothing(t *testing.T) {
	full := make(chan struct{})
	g := rig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		for err == nil {
			_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
			_, err = conn.Write(make([]byte, 1<<20))
		}
		close(full)
	}), nil)
	conn := upgrade(t, g)
	<-full
	closed := make(chan error, 1)
	go func() { closed <- g.Close() }()
	select {
	case err := <-closed:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		conn.Close() // lets it end
		require.NoError(t, <-closed)
		t.Fatal("Close waited for the client")
	}
}
