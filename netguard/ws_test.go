package netguard

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/netguard/policy"
	"github.com/gondolin-go/gondolin/netguard/secret"
)

// socketEcho is a WebSocket server.
func socketEcho(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols: []string{"chat", "other"}, CompressionMode: websocket.CompressionContextTakeover, InsecureSkipVerify: true,
	})
	if err != nil {
		return
	}
	defer c.CloseNow()
	c.SetReadLimit(4 << 20)
	for {
		kind, msg, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if string(msg) == "who" {
			msg = []byte(r.Header.Get("Authorization") + ".")
		}
		if c.Write(r.Context(), kind, msg) != nil {
			return
		}
	}
}

func TestWebSocketsPassWithSubprotocolAndExtensions(t *testing.T) {
	s, ts := plainServer(t, socketEcho), tlsServer(t, socketEcho)
	for _, scheme := range []string{"ws", "wss"} {
		t.Run(scheme, func(t *testing.T) {
			r := newRig(t, rigOptions{rules: allowAll("example.com"), roots: rootsOf(ts)})
			r.serve("example.com:80", s)
			r.serve("example.com:443", ts)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			c, resp, err := websocket.Dial(ctx, scheme+"://example.com/socket?x=1", &websocket.DialOptions{
				HTTPClient: h1(r.client()), Subprotocols: []string{"chat"}, CompressionMode: websocket.CompressionContextTakeover,
			})
			require.NoError(t, err)
			assert.Equal(t, "chat", c.Subprotocol())
			assert.Contains(t, resp.Header.Get("Sec-Websocket-Extensions"), "permessage-deflate")
			c.SetReadLimit(4 << 20)
			total := 0
			for _, n := range []int{1, 126, 70000, 3 << 20} {
				msg := strings.Repeat("x", n)
				require.NoError(t, c.Write(ctx, websocket.MessageBinary, []byte(msg)))
				_, got, err := c.Read(ctx)
				require.NoError(t, err)
				require.Equal(t, msg, string(got))
				total += n
			}
			require.NoError(t, c.Close(websocket.StatusNormalClosure, "bye"))
			e := r.last()
			assert.Equal(t, scheme, e.Protocol)
			assert.Equal(t, 101, e.Status)
			assert.Equal(t, "allow", e.Verdict, e.Reason)
			assert.Positive(t, e.Sent)
			assert.Positive(t, e.Received)
		})
	}
}

func TestAWebSocketIsJudgedAsOne(t *testing.T) {
	s := plainServer(t, socketEcho)
	r := newRig(t, rigOptions{rules: []policy.Rule{{Name: "no-sockets", Action: policy.ActionAllow, Hosts: []string{"example.com"}, Protocols: []policy.Protocol{policy.HTTP}}}})
	r.serve("example.com:80", s)
	_, resp, err := websocket.Dial(t.Context(), "ws://example.com/", &websocket.DialOptions{HTTPClient: r.client()})
	require.Error(t, err)
	require.NotNil(t, resp)
	assert.Equal(t, 403, resp.StatusCode)
	assert.Equal(t, "ws", r.last().Protocol)
	assert.Zero(t, r.dials.Load())
}

func TestHolePipeliningAfterAnUpgrade(t *testing.T) {
	s := plainServer(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "no sockets here: ", r.URL.Path) })
	r := newRig(t, rigOptions{rules: allowAll("example.com")})
	r.serve("example.com:80", s)
	conn := r.open("example.com", 80, false)
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	upgrade := "GET /u HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
	_, err := io.WriteString(conn, upgrade)
	require.NoError(t, err)
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	require.NoError(t, err)
	assert.Equal(t, "no sockets here: /u", readBody(t, resp))
	assert.True(t, resp.Close, "what the guest sends next is not read")
	_, _ = io.WriteString(conn, "GET /smuggled HTTP/1.1\r\nHost: example.com\r\n\r\n")
	rest, _ := io.ReadAll(in)
	assert.Empty(t, rest)
	for _, e := range r.record() {
		assert.NotContains(t, e.Path, "smuggled")
	}
}

func TestAProtocolThatWasNotAskedForIsNotSwitchedTo(t *testing.T) {
	s := plainServer(t, func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: anything\r\n\r\nraw")
	})
	r := newRig(t, rigOptions{rules: allowAll("example.com")})
	r.serve("example.com:80", s)
	resp, err := r.client().Get("http://example.com/")
	require.NoError(t, err)
	assert.Equal(t, 502, resp.StatusCode)
	readRefusal(t, resp)
}

func TestHoleASecretEchoedOverAWebSocket(t *testing.T) {
	const value = "sk-live-0123456789abcdefghij"
	ts := tlsServer(t, socketEcho)
	for name, length := range map[string]int{"same length": 0, "another length": 40} {
		t.Run(name, func(t *testing.T) {
			spec := secret.Spec{Name: "KEY", From: secret.From{Env: "KEY"}, Hosts: []string{"example.com"}, Placeholder: secret.Shape{Length: length}}
			r := newRig(t, rigOptions{rules: allowAll("example.com"), roots: rootsOf(ts), secrets: []secret.Spec{spec}, env: map[string]string{"KEY": value}})
			r.serve("example.com:443", ts)
			mark, _ := r.p.secrets.Placeholder("KEY")
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			c, resp, err := websocket.Dial(ctx, "wss://example.com/", &websocket.DialOptions{
				HTTPClient: h1(r.client()), CompressionMode: websocket.CompressionContextTakeover,
				HTTPHeader: http.Header{"Authorization": {"Bearer " + mark}},
			})
			if length != 0 {
				require.Error(t, err)
				assert.Equal(t, 403, resp.StatusCode)
				return
			}
			require.NoError(t, err)
			assert.Empty(t, resp.Header.Get("Sec-Websocket-Extensions"), "nothing that hides what is sent")
			require.NoError(t, c.Write(ctx, websocket.MessageText, []byte("who")))
			_, got, err := c.Read(ctx)
			require.NoError(t, err)
			assert.Equal(t, "Bearer "+mark+".", string(got))
			require.NoError(t, c.Close(websocket.StatusNormalClosure, ""))
			assert.Equal(t, []string{"KEY"}, r.last().Secrets)
		})
	}
}

func TestASilentWebSocketEnds(t *testing.T) {
	s := plainServer(t, socketEcho)
	r := newRig(t, rigOptions{rules: allowAll("example.com"), limits: Limits{Idle: 200 * time.Millisecond}})
	r.serve("example.com:80", s)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "ws://example.com/", &websocket.DialOptions{HTTPClient: r.client()})
	require.NoError(t, err)
	_, _, err = c.Read(ctx)
	require.Error(t, err)
	require.NoError(t, ctx.Err())
	assert.Contains(t, r.last().Reason, "too long")
}
