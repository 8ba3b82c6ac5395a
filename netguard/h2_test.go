//lint:file-ignore SA1019 clients of these tests speak HTTP/2 in ways that net/http does not offer

package netguard

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// grpcEcho answers each message of a bidirectional stream as gRPC does, and ends with
// trailers that were not announced.
func grpcEcho(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor != 2 || r.Header.Get("Te") != "trailers" {
		http.Error(w, "no gRPC", http.StatusHTTPVersionNotSupported)
		return
	}
	w.Header().Set("Content-Type", "application/grpc")
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	for {
		var head [5]byte
		if _, err := io.ReadFull(r.Body, head[:]); err != nil {
			break
		}
		msg := make([]byte, binary.BigEndian.Uint32(head[1:]))
		if _, err := io.ReadFull(r.Body, msg); err != nil {
			return
		}
		w.Write(append(head[:], msg...))
		w.(http.Flusher).Flush()
	}
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	w.Header().Set(http.TrailerPrefix+"Grpc-Message", r.Trailer.Get("X-Last"))
}

func h2cServer(t *testing.T, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func TestHoleHTTP2DroppedFromALPNSoThatGRPCBreaks(t *testing.T) {
	ts := tlsServer(t, grpcEcho)
	plain := h2cServer(t, grpcEcho)
	for _, overTLS := range []bool{true, false} {
		t.Run(fmt.Sprint("tls ", overTLS), func(t *testing.T) {
			r := newRig(t, rigOptions{rules: allowAll("example.com"), roots: rootsOf(ts)})
			r.serve("example.com:443", ts)
			r.serve("example.com:80", plain)
			tr := &http2.Transport{AllowHTTP: true}
			scheme := "http"
			if overTLS {
				scheme = "https"
			}
			tr.DialTLSContext = func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
				if !overTLS {
					return r.open("example.com", 80, false), nil
				}
				return shake(r.open("example.com", 443, true), &tls.Config{RootCAs: r.trust(), ServerName: "example.com", NextProtos: []string{"h2"}})
			}
			defer tr.CloseIdleConnections()
			pr, pw := io.Pipe()
			req, err := http.NewRequest("POST", scheme+"://example.com/pkg.Service/Method", pr)
			require.NoError(t, err)
			req.Header.Set("Te", "trailers")
			req.Header.Set("Content-Type", "application/grpc")
			req.Trailer = http.Header{"X-Last": {"bye"}}
			resp, err := tr.RoundTrip(req)
			require.NoError(t, err, "the head comes before the first message")
			require.Equal(t, 200, resp.StatusCode)
			for i := range 20 {
				msg := bytes.Repeat([]byte{byte(i)}, i*997)
				frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(msg)))
				frame = append(frame, msg...)
				_, err := pw.Write(frame)
				require.NoError(t, err)
				got := make([]byte, len(frame))
				_, err = io.ReadFull(resp.Body, got)
				require.NoError(t, err)
				require.Equal(t, frame, got, "answered before the request ends")
			}
			pw.Close()
			_, err = io.ReadAll(resp.Body)
			require.NoError(t, err)
			assert.Equal(t, "0", resp.Trailer.Get("Grpc-Status"))
			assert.Equal(t, "bye", resp.Trailer.Get("Grpc-Message"), "the request's trailer arrived as well")
			assert.Equal(t, 200, r.last().Status)
		})
	}
}

// gRPC's answer that is nothing but a status is a head that ends the stream.
func TestAnAnswerThatEndsWithItsHeadDoesSoForTheGuest(t *testing.T) {
	ts := tlsServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Length"] = nil
		w.Header().Set("Grpc-Status", "12")
	})
	r := newRig(t, rigOptions{rules: allowAll("example.com"), roots: rootsOf(ts)})
	r.serve("example.com:443", ts)
	conn, err := shake(r.open("example.com", 443, true), &tls.Config{RootCAs: r.trust(), ServerName: "example.com", NextProtos: []string{"h2"}})
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, http2.ClientPreface)
	require.NoError(t, err)
	f := http2.NewFramer(conn, conn)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	require.NoError(t, f.WriteSettings())
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "example.com"}, {":path", "/pkg.Service/Method"}, {"te", "trailers"}} {
		require.NoError(t, enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}))
	}
	require.NoError(t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true}))
	for {
		frame, err := f.ReadFrame()
		require.NoError(t, err)
		head, ok := frame.(*http2.MetaHeadersFrame)
		if !ok {
			continue
		}
		assert.True(t, head.StreamEnded())
		names := map[string]string{}
		for _, h := range head.Fields {
			names[h.Name] = h.Value
		}
		assert.Equal(t, "12", names["grpc-status"])
		assert.NotContains(t, names, "content-length")
		return
	}
}

func TestHTTP1TrailersPassBothWays(t *testing.T) {
	s := plainServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
		w.Header().Set("X-Sum", r.Trailer.Get("X-Up"))
	})
	r := newRig(t, rigOptions{rules: allowAll("example.com")})
	r.serve("example.com:80", s)
	req, err := http.NewRequest("POST", "http://example.com/", io.MultiReader(bytes.NewReader([]byte("abc"))))
	require.NoError(t, err)
	req.Trailer = http.Header{"X-Up": {"42"}}
	resp, err := r.client().Do(req)
	require.NoError(t, err)
	assert.Equal(t, "abc", readBody(t, resp))
	assert.Equal(t, "42", resp.Trailer.Get("X-Sum"))
}

// frames is a guest that speaks HTTP/2 by hand, without TLS.
type frames struct {
	*http2.Framer
	conn net.Conn
	enc  *hpack.Encoder
	buf  bytes.Buffer
}

func newFrames(t *testing.T, r *webRig) *frames {
	t.Helper()
	f := &frames{conn: r.open("example.com", 80, false)}
	require.NoError(t, f.conn.SetDeadline(time.Now().Add(30*time.Second)))
	f.Framer = http2.NewFramer(f.conn, f.conn)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.enc = hpack.NewEncoder(&f.buf)
	_, err := io.WriteString(f.conn, http2.ClientPreface)
	require.NoError(t, err)
	require.NoError(t, f.WriteSettings())
	return f
}

func (f *frames) request(t *testing.T, id uint32, end bool, fields ...string) {
	t.Helper()
	f.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		require.NoError(t, f.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}))
	}
	require.NoError(t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: f.buf.Bytes(), EndStream: end, EndHeaders: true}))
}

// status reads up to the answer on a stream: its status, or what else ended it.
func (f *frames) status(t *testing.T, id uint32) string {
	t.Helper()
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return err.Error()
		}
		switch fr := fr.(type) {
		case *http2.MetaHeadersFrame:
			if fr.StreamID == id {
				return fr.PseudoValue("status")
			}
		case *http2.RSTStreamFrame:
			if fr.StreamID == id {
				return fr.ErrCode.String()
			}
		case *http2.GoAwayFrame:
			return "GOAWAY " + fr.ErrCode.String()
		}
	}
}

func TestHoleHostIsNotAuthority(t *testing.T) {
	s := h2cServer(t, func(http.ResponseWriter, *http.Request) { t.Error("it left") })
	r := newRig(t, rigOptions{rules: allowAll("example.com", "evil.example")})
	r.serve("example.com:80", s)
	pseudo := []string{":method", "GET", ":scheme", "http", ":path", "/"}
	for name, tt := range map[string]struct {
		fields []string
		want   string
	}{
		"another Host field":  {append(pseudo, ":authority", "example.com", "host", "evil.example"), "421"},
		"another :authority":  {append(pseudo, ":authority", "evil.example", "host", "example.com"), "421"},
		"only a Host, wrong":  {append(pseudo, "host", "evil.example"), "421"},
		"another port":        {append(pseudo, ":authority", "example.com:8080"), "421"},
		"user info":           {append(pseudo, ":authority", "example.com@evil.example"), "PROTOCOL_ERROR"},
		"none":                {pseudo, "421"},
		"a path with a host":  {[]string{":method", "GET", ":scheme", "http", ":path", "http://evil.example/", ":authority", "example.com"}, "400"},
		"CONNECT":             {[]string{":method", "CONNECT", ":authority", "example.com:443"}, "405"},
		"extended CONNECT":    {[]string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":path", "/", ":authority", "example.com"}, "PROTOCOL_ERROR"},
		"a hop-by-hop field":  {append(pseudo, ":authority", "example.com", "transfer-encoding", "chunked"), "400"},
		"an upgrade":          {append(pseudo, ":authority", "example.com", "connection", "upgrade"), "400"},
		"two authorities":     {append(pseudo, ":authority", "example.com", ":authority", "evil.example"), "PROTOCOL_ERROR"},
		"a value with a CRLF": {append(pseudo, ":authority", "example.com", "x", "a\r\nhost: b"), "PROTOCOL_ERROR"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFrames(t, r)
			f.request(t, 1, true, tt.fields...)
			assert.Equal(t, tt.want, f.status(t, 1))
		})
	}
	assert.Zero(t, r.dials.Load())
}

func TestRapidResetsAreBounded(t *testing.T) {
	var at, most atomic.Int32
	s := h2cServer(t, func(_ http.ResponseWriter, r *http.Request) {
		most.Store(max(most.Load(), at.Add(1)))
		<-r.Context().Done()
		at.Add(-1)
	})
	r := newRig(t, rigOptions{rules: allowAll("example.com")})
	r.serve("example.com:80", s)
	f := newFrames(t, r)
	go func() {
		for {
			if _, err := f.ReadFrame(); err != nil {
				return
			}
		}
	}()
	n := 0
	for id := uint32(1); id < 40000; id += 2 {
		f.buf.Reset()
		for _, h := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "example.com"}, {":path", "/"}} {
			require.NoError(t, f.enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}))
		}
		if f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: f.buf.Bytes(), EndStream: true, EndHeaders: true}) != nil {
			break
		}
		if f.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			break
		}
		n++
	}
	t.Logf("%d streams reset, %d requests at the server at once", n, most.Load())
	assert.LessOrEqual(t, most.Load(), int32(maxRequests))
	require.Eventually(t, func() bool { return len(r.p.slots) == 0 }, 10*time.Second, 5*time.Millisecond)
}

func TestAStreamThatIsNotReadDoesNotHoldUpOthersAndIsLetGoOf(t *testing.T) {
	ts := tlsServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/small" {
			io.WriteString(w, "small")
			return
		}
		buf := make([]byte, 64<<10)
		for range 1 << 12 {
			if _, err := w.Write(buf); err != nil {
				return
			}
		}
	})
	r := newRig(t, rigOptions{rules: allowAll("example.com"), roots: rootsOf(ts), limits: Limits{Idle: 700 * time.Millisecond}})
	r.serve("example.com:443", ts)
	c := r.client()
	c.Transport.(*http.Transport).HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10}
	stuck, err := c.Get("https://example.com/stuck")
	require.NoError(t, err)
	defer stuck.Body.Close()
	resp, err := c.Get("https://example.com/small")
	require.NoError(t, err)
	assert.Equal(t, 2, resp.ProtoMajor)
	assert.Equal(t, "small", readBody(t, resp))
	require.Eventually(t, func() bool {
		for _, e := range r.record() {
			if e.Path == "/stuck" && e.Verdict == "error" {
				return true
			}
		}
		return false
	}, 10*time.Second, 10*time.Millisecond)
	_, err = io.Copy(io.Discard, stuck.Body)
	require.Error(t, err, "and not taken for whole")
}

func TestEachRequestOfAnHTTP2ConnectionIsJudged(t *testing.T) {
	ts := tlsServer(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	r := newRig(t, rigOptions{rules: []policy.Rule{{Name: "r", Action: policy.ActionAllow, Hosts: []string{"example.com"}, Paths: []string{"/ok"}}}, roots: rootsOf(ts)})
	r.serve("example.com:443", ts)
	c := r.client()
	for range 3 {
		for path, want := range map[string]int{"/ok": 200, "/no": 403} {
			resp, err := c.Get("https://example.com" + path)
			require.NoError(t, err)
			readBody(t, resp)
			assert.Equal(t, want, resp.StatusCode)
		}
	}
	assert.EqualValues(t, 1, r.flows.Load())
	assert.EqualValues(t, 1, r.dials.Load())
}

// A stream without a window keeps net/http's end of an answer, and all of its request: the slots of
// requests have to bound those too.
func TestAnswersThatTheGuestGivesNoWindowStayWithinTheBound(t *testing.T) {
	ts := h2cServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "5")
		_, _ = io.WriteString(w, "hello")
	})
	r := newRig(t, rigOptions{rules: allowAll("example.com")})
	r.serve("example.com:80", ts)
	const conns = 20
	var framers [conns]*http2.Framer
	come := make(chan struct{}, conns)
	for i := range framers {
		conn := r.open("example.com", 80, false)
		defer conn.Close()
		f := http2.NewFramer(conn, conn)
		framers[i] = f
		_, err := io.WriteString(conn, http2.ClientPreface)
		require.NoError(t, err)
		require.NoError(t, f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
		_, err = f.ReadFrame() // the server's settings: it serves
		require.NoError(t, err)
		go func() {
			for {
				frame, err := f.ReadFrame()
				if err != nil {
					return
				}
				if ping, ok := frame.(*http2.PingFrame); ok && ping.IsAck() {
					come <- struct{}{}
				}
			}
		}()
	}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "example.com"}, {":path", "/"}} {
		require.NoError(t, enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}))
	}
	first := block.Bytes()
	for _, f := range framers {
		for s := range maxStreams {
			require.NoError(t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*s + 1), BlockFragment: first, EndHeaders: true, EndStream: true}))
		}
		require.NoError(t, f.WritePing(false, [8]byte{1}))
	}
	for range conns { // a ping is answered when all before it has been begun
		select {
		case <-come:
		case <-time.After(20 * time.Second):
			t.Fatal("the requests were not taken")
		}
	}
	waiting := func() int {
		stacks := make([]byte, 64<<20)
		return bytes.Count(stacks[:runtime.Stack(stacks, true)], []byte(".runHandler("))
	}
	// What was turned away without a word goes. The others stay: they have no window.
	require.Eventually(t, func() bool { return waiting() <= 2*maxRequests }, 10*time.Second, 50*time.Millisecond)
	require.Greater(t, waiting(), maxRequests, "or there was nothing to bound")
}
