package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

// startWeb starts testdata/web.py in the guest and waits until it listens.
func startWeb(t testing.TB, s *sandbox.Session, port int) {
	t.Helper()
	f, err := os.Open("testdata/web.py")
	require.NoError(t, err)
	defer f.Close()
	_, err = s.WriteFile(t.Context(), "/tmp/web.py", f, sandbox.WriteOptions{})
	require.NoError(t, err)
	job, err := s.StartJob(t.Context(), sandbox.Command{Argv: []string{"python3", "/tmp/web.py", fmt.Sprint(port)}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Signal(context.WithoutCancel(t.Context()), job.ID, "KILL") })
	sh(t, s, fmt.Sprintf("until curl -s -o /dev/null http://127.0.0.1:%d/echo; do sleep 0.1; done", port))
}

func openIngress(t testing.TB, s *sandbox.Session, o sandbox.IngressOptions) *sandbox.Ingress {
	t.Helper()
	i, err := s.Ingress(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, i.Close()) })
	return i
}

// do sends a request and returns the answer with its whole body.
func do(t testing.TB, c *http.Client, r *http.Request) (*http.Response, string) {
	t.Helper()
	resp, err := c.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp, string(body)
}

func toGet(t testing.TB, at string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at, nil)
	require.NoError(t, err)
	return r
}

func TestIngressServesTheGuestsServer(t *testing.T) {
	s := sharedSession(t)
	startWeb(t, s, 8080)
	i := openIngress(t, s, sandbox.IngressOptions{Port: 8080})
	host := hostOf(t, i.URL)
	require.True(t, net.ParseIP(strings.Split(host, ":")[0]).IsLoopback())

	resp, body := do(t, http.DefaultClient, toGet(t, i.URL+"echo?q=1"))
	require.Equal(t, 200, resp.StatusCode)
	var got struct {
		Path    string
		Headers map[string]string
	}
	require.NoError(t, json.Unmarshal([]byte(body), &got))
	require.Equal(t, "/echo?q=1", got.Path)
	require.Equal(t, host, got.Headers["host"])
	require.Equal(t, host, got.Headers["x-forwarded-host"])
	require.Equal(t, "http", got.Headers["x-forwarded-proto"])
	require.Empty(t, resp.Header.Get("Clear-Site-Data"), "the guest must not empty the browser for other servers of this address")
	require.Equal(t, "mine=1", resp.Header.Get("Set-Cookie"))

	t.Run("over HTTP/2", func(t *testing.T) {
		p := new(http.Protocols)
		p.SetUnencryptedHTTP2(true)
		tr := &http.Transport{Protocols: p}
		defer tr.CloseIdleConnections()
		resp, _ := do(t, &http.Client{Transport: tr}, toGet(t, i.URL+"echo"))
		require.Equal(t, 2, resp.ProtoMajor)
		require.Equal(t, 200, resp.StatusCode)
	})
	t.Run("large bodies both ways", func(t *testing.T) {
		const size = 64 << 20
		resp, err := http.DefaultClient.Do(toGet(t, fmt.Sprintf("%sbig?n=%d", i.URL, size)))
		require.NoError(t, err)
		defer resp.Body.Close()
		n, err := io.Copy(io.Discard, resp.Body)
		require.NoError(t, err)
		require.EqualValues(t, size, n)

		sum := sha256.New()
		up, err := http.NewRequestWithContext(t.Context(), http.MethodPost, i.URL+"upload", io.TeeReader(io.LimitReader(zeros{}, size), sum))
		require.NoError(t, err)
		up.ContentLength = size
		_, body := do(t, http.DefaultClient, up)
		require.Equal(t, fmt.Sprintf("%x", sum.Sum(nil)), body)
	})
	t.Run("events as they come", func(t *testing.T) {
		sh(t, s, "rm -f /tmp/go-on")
		resp, err := http.DefaultClient.Do(toGet(t, i.URL+"events"))
		require.NoError(t, err)
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		require.True(t, lines.Scan())
		require.Equal(t, "data: one", lines.Text())
		sh(t, s, "touch /tmp/go-on")
		require.True(t, lines.Scan(), "the empty line between events")
		require.True(t, lines.Scan())
		require.Equal(t, "data: two", lines.Text())
	})
	t.Run("WebSockets", func(t *testing.T) {
		for origin, fine := range map[string]bool{"": true, "http://" + host: true, "http://localhost:5173": true, "https://evil.example": false} {
			o := &websocket.DialOptions{HTTPHeader: http.Header{}}
			if origin != "" {
				o.HTTPHeader.Set("Origin", origin)
			}
			ws, resp, err := websocket.Dial(t.Context(), i.URL+"ws", o)
			if !fine {
				require.Error(t, err, origin)
				require.Equal(t, http.StatusForbidden, resp.StatusCode)
				continue
			}
			require.NoError(t, err, origin)
			for _, text := range []string{"a", strings.Repeat("b", 5000)} {
				require.NoError(t, ws.Write(t.Context(), websocket.MessageText, []byte(text)))
				_, echo, err := ws.Read(t.Context())
				require.NoError(t, err)
				require.Equal(t, text, string(echo))
			}
			require.NoError(t, ws.CloseNow())
		}
	})
	t.Run("not under a name of the web", func(t *testing.T) {
		r := toGet(t, i.URL+"echo")
		r.Host = "rebound.example"
		resp, body := do(t, http.DefaultClient, r)
		require.Equal(t, http.StatusMisdirectedRequest, resp.StatusCode)
		require.Contains(t, body, "ingress.hosts")
		r.Host = "app.localhost"
		resp, _ = do(t, http.DefaultClient, r)
		require.Equal(t, 200, resp.StatusCode)
	})
}

func hostOf(t testing.TB, at string) string {
	t.Helper()
	u, err := url.Parse(at)
	require.NoError(t, err)
	return u.Host
}

// A guest's file says what leads where, and a mistake in it is told to whoever looks.
func TestIngressFollowsTheGuestsListOfRoutes(t *testing.T) {
	s := sharedSession(t)
	startWeb(t, s, 8081)
	i := openIngress(t, s, sandbox.IngressOptions{})
	declare := func(text string) {
		t.Helper()
		_, err := s.WriteFile(t.Context(), sandbox.ListenersFile, strings.NewReader(text), sandbox.WriteOptions{Parents: true})
		require.NoError(t, err)
	}
	t.Cleanup(func() { _ = s.Remove(context.WithoutCancel(t.Context()), sandbox.ListenersFile, false) })
	answers := func(path string, status int, want string) {
		t.Helper()
		var last string
		eventually(t, 20*time.Second, path+" answers "+fmt.Sprint(status)+" "+want, func() bool {
			resp, body := do(t, http.DefaultClient, toGet(t, i.URL+path))
			last = body
			return resp.StatusCode == status && strings.Contains(body, want)
		})
		_ = last
	}
	answers("api/echo", 404, "/etc/gondolin/listeners")
	declare("# servers\n/api :8081 strip\n/raw :8081\n/dead :8099\n")
	answers("api/echo?x=%2F", 200, `"path": "/echo?x=%2F"`)
	answers("raw/a%2Fb", 404, "nothing at /raw/a%2Fb")
	answers("api", 200, "waiting")
	answers("apix", 404, "No route")
	answers("dead/", 502, "port 8099")
	declare("/api :8081\n/bad 80\n")
	answers("api/echo", 502, "line 2")
	declare("/ :8081\n")
	answers("echo", 200, `"path": "/echo"`)

	r := toGet(t, i.URL+"dead/")
	r.Header.Set("Accept", "text/html,*/*")
	declare("/ :8099\n")
	answers("", 502, "No server answers")
	resp, body := do(t, http.DefaultClient, r)
	require.Equal(t, "text/html; charset=utf-8", resp.Header.Get("Content-Type"))
	require.Contains(t, body, "<h1>No server answers in the sandbox</h1>")
}

func TestIngressBeyondTheLoopbackNeedsItsToken(t *testing.T) {
	s := sharedSession(t)
	startWeb(t, s, 8082)
	i := openIngress(t, s, sandbox.IngressOptions{Port: 8082, Listen: "0.0.0.0:0"})
	at := strings.Replace(i.URL, "0.0.0.0", "127.0.0.1", 1)
	at = strings.Replace(at, "[::]", "127.0.0.1", 1)
	u, err := url.Parse(at)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(u.Path, "/~") && len(u.Path) > 25, u.Path)
	bare := "http://" + u.Host

	for _, path := range []string{"/echo", "/~wrong/echo", "/~/echo", u.Path[:len(u.Path)-2] + "/echo"} {
		resp, body := do(t, http.DefaultClient, toGet(t, bare+path))
		require.Equal(t, http.StatusForbidden, resp.StatusCode, path)
		require.NotContains(t, body, `"path"`)
	}
	resp, body := do(t, http.DefaultClient, toGet(t, at+"echo"))
	require.Equal(t, 200, resp.StatusCode)
	require.Contains(t, body, `"path": "/echo"`)
	require.NotContains(t, body, strings.Trim(u.Path, "/~"), "the guest must not learn the token")

	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	browser := &http.Client{Jar: jar}
	r := toGet(t, at+"echo")
	r.Header.Set("Accept", "text/html")
	resp, body = do(t, browser, r)
	require.Equal(t, bare+"/echo", resp.Request.URL.String(), "the token leaves the address bar")
	require.Contains(t, body, `"path": "/echo"`)
	require.NotContains(t, body, "gondolin_", "the guest must not see the gateway's cookie")
	resp, _ = do(t, browser, toGet(t, bare+"/big?n=65536"))
	require.Equal(t, 200, resp.StatusCode)
	r = toGet(t, at+"//evil.example/")
	r.Header.Set("Accept", "text/html")
	resp, _ = do(t, &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, r)
	require.Equal(t, "/evil.example/", resp.Header.Get("Location"))
}

func TestIngressHooksDenyAndRewrite(t *testing.T) {
	s := sharedSession(t)
	startWeb(t, s, 8083)
	i := openIngress(t, s, sandbox.IngressOptions{
		Port: 8083,
		OnRequest: func(r *http.Request) error {
			if r.URL.Path == "/forbidden" {
				return fmt.Errorf("not that one")
			}
			r.Header.Set("X-Added", "by the hook")
			return nil
		},
		OnResponse: func(r *http.Response) error {
			if r.Request.URL.Path == "/big" {
				return fmt.Errorf("too big")
			}
			r.Header.Set("X-Answer", "seen")
			return nil
		},
	})
	resp, body := do(t, http.DefaultClient, toGet(t, i.URL+"echo"))
	require.Contains(t, body, "by the hook")
	require.Equal(t, "seen", resp.Header.Get("X-Answer"))
	for path, why := range map[string]string{"forbidden": "not that one", "big?n=65536": "too big"} {
		resp, body = do(t, http.DefaultClient, toGet(t, i.URL+path))
		require.Equal(t, http.StatusForbidden, resp.StatusCode)
		require.Contains(t, body, why)
	}
}

// One page, with a script and a WebSocket, in the browser that people have.
func TestIngressShowsThePageInABrowser(t *testing.T) {
	browser := ""
	for _, name := range []string{"chromium-headless-shell", "chromium"} {
		if path, err := exec.LookPath(name); err == nil && browser == "" {
			browser = path
		}
	}
	if browser == "" && os.Getenv("CI") == "" {
		t.Skip("no Chromium is installed here: .ci/setup --test")
	}
	require.NotEmpty(t, browser)
	s := sharedSession(t)
	startWeb(t, s, 8084)
	i := openIngress(t, s, sandbox.IngressOptions{Port: 8084})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--disable-background-networking", "--no-proxy-server", "--user-data-dir="+t.TempDir(), "--dump-dom", i.URL)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	out, err := cmd.Output()
	require.NoError(t, err)
	require.Contains(t, string(out), "echo: hello from a browser")
}

// What is stuck in the guest is stuck there alone.
func TestIngressOutlivesAGuestThatBreaksIt(t *testing.T) {
	s := newSession(t, newHost(t, sandbox.HostOptions{NoTemplates: true}), sandbox.Options{})
	startWeb(t, s, 8085)
	i := openIngress(t, s, sandbox.IngressOptions{Port: 8085})
	resp, _ := do(t, http.DefaultClient, toGet(t, i.URL+"echo"))
	require.Equal(t, 200, resp.StatusCode)
	sh(t, s, "pkill -x sandboxingress")
	eventually(t, 30*time.Second, "ingress again", func() bool {
		resp, _ := do(t, http.DefaultClient, toGet(t, i.URL+"echo"))
		return resp.StatusCode == 200
	})
	// Connections that nobody reads hold no more than their windows, and others pass.
	var held []*http.Response
	for range 20 {
		resp, err := http.DefaultClient.Do(toGet(t, i.URL+"big?n=67108864"))
		require.NoError(t, err)
		held = append(held, resp)
	}
	resp, _ = do(t, http.DefaultClient, toGet(t, i.URL+"echo"))
	require.Equal(t, 200, resp.StatusCode)
	for _, r := range held {
		r.Body.Close()
	}
	require.NoError(t, s.Close())
	_, err := net.Dial("tcp", hostOf(t, i.URL))
	require.Error(t, err)
}

func TestAgentGivesTheUserAURLForItsServer(t *testing.T) {
	s := startServer(t, nil, "--ssh")
	var got struct {
		URL     string
		Answers bool
		Session string
		Exposed []struct {
			Port int
			URL  string
		}
	}
	res := s.call(t, "expose", object{"port": 8000}, &got)
	require.False(t, res.IsError, text(res))
	require.False(t, got.Answers)
	resp, body := do(t, http.DefaultClient, toGet(t, got.URL))
	require.Equal(t, http.StatusBadGateway, resp.StatusCode)
	require.Contains(t, body, "port 8000")

	s.call(t, "exec", object{"command": "mkdir -p /srv/a && cd /srv && echo 'a page' > a/index.html && exec python3 -m http.server 8000", "background": true}, nil)
	s.call(t, "exec", object{"command": "until curl -sf http://127.0.0.1:8000/ >/dev/null; do sleep 0.1; done"}, nil)
	first := got.URL
	res = s.call(t, "expose", object{"port": 8000, "path": "/a/"}, &got)
	require.False(t, res.IsError, text(res))
	require.True(t, got.Answers)
	require.Equal(t, first+"a/", got.URL, "the same port keeps its URL")
	_, body = do(t, http.DefaultClient, toGet(t, got.URL))
	require.Equal(t, "a page\n", body)

	t.Run("and the user gets in over SSH", func(t *testing.T) {
		command := ""
		eventually(t, 10*time.Second, "the command in the log", func() bool {
			_, rest, found := strings.Cut(s.stderr.String(), `command="ssh -F `)
			command, _, _ = strings.Cut("ssh -F "+rest, `"`)
			return found
		})
		out, err := exec.CommandContext(t.Context(), "sh", "-c", command+" cat /srv/a/index.html").CombinedOutput()
		require.NoError(t, err, "%s: %s", command, out)
		require.Equal(t, "a page\n", string(out))
	})

	res = s.call(t, "expose", object{"action": "close", "port": 8000}, &got)
	require.False(t, res.IsError, text(res))
	require.Empty(t, got.Exposed)
	_, err := http.Get(first)
	require.Error(t, err)
}

func TestListenLeadsToTheSessionAndExposeCanBeForbidden(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	at := ln.Addr().String()
	require.NoError(t, ln.Close())
	_, port, err := net.SplitHostPort(at)
	require.NoError(t, err)
	s := startServer(t, nil, "--listen="+port+"=8000", "--expose=false")
	tools, err := s.client.ListTools(t.Context(), nil)
	require.NoError(t, err)
	for _, tool := range tools.Tools {
		require.NotEqual(t, "expose", tool.Name)
	}
	s.call(t, "exec", object{"command": "true"}, nil)
	resp, body := do(t, http.DefaultClient, toGet(t, "http://"+at+"/"))
	require.Equal(t, http.StatusBadGateway, resp.StatusCode)
	require.Contains(t, body, "Nothing listens on port 8000")
}
