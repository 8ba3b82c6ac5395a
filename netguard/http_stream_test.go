package netguard

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestHoleAnUploadWithExpect100ContinueEndsIn502(t *testing.T) {
	for _, overTLS := range []bool{false, true} {
		var wanted atomic.Bool
		s := plainServer(t, func(w http.ResponseWriter, r *http.Request) {
			wanted.Store(r.Header.Get("Expect") == "100-continue")
			if r.URL.Path == "/no" {
				http.Error(w, "too large", http.StatusRequestEntityTooLarge)
				return
			}
			n, err := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n, " ", err)
		})
		o := rigOptions{rules: allowAll("example.com")}
		port, scheme := "80", "http"
		if overTLS {
			s = tlsServer(t, s.Config.Handler.ServeHTTP)
			o.roots, port, scheme = rootsOf(s), "443", "https"
		}
		r := newRig(t, o)
		r.serve("example.com:"+port, s)
		for _, path := range []string{"/", "/no"} {
			c := h1(r.client())
			body := bytes.NewReader(make([]byte, 3<<20))
			req, err := http.NewRequest("PUT", scheme+"://example.com"+path, body)
			require.NoError(t, err)
			req.Header.Set("Expect", "100-continue")
			begun := time.Now()
			resp, err := c.Do(req)
			require.NoError(t, err)
			text := readBody(t, resp)
			assert.Less(t, time.Since(begun), 4*time.Second, "the 100 came by itself")
			if path == "/" {
				assert.Equal(t, "3145728 <nil>", text)
			} else {
				assert.Equal(t, 413, resp.StatusCode)
				assert.Equal(t, 3<<20, body.Len(), "nothing of the body was sent")
			}
		}
		assert.True(t, wanted.Load() || overTLS, "net/http's server of HTTP/2 hides it")
	}
}

// blanks is a body of n bytes.
type blanks struct{ left int64 }

func (b *blanks) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), b.left)
	b.left -= n
	return int(n), nil
}

func TestA1GiBUploadStreamsWithFlatMemory(t *testing.T) {
	size := int64(1 << 30)
	if testing.Short() {
		size = 64 << 20
	}
	var before, peak runtime.MemStats
	s := plainServer(t, func(w http.ResponseWriter, r *http.Request) {
		buf := make([]byte, 256<<10)
		for n := 0; ; n++ {
			_, err := io.ReadFull(r.Body, buf)
			if n%512 == 0 {
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak.HeapAlloc = max(peak.HeapAlloc, m.HeapAlloc)
			}
			if err != nil {
				break
			}
		}
	})
	r := newRig(t, rigOptions{rules: allowAll("example.com")})
	r.serve("example.com:80", s)
	runtime.GC()
	runtime.ReadMemStats(&before)
	req, err := http.NewRequest("PUT", "http://example.com/big", &blanks{size})
	require.NoError(t, err)
	req.ContentLength = size
	resp, err := r.client().Do(req)
	require.NoError(t, err)
	readBody(t, resp)
	assert.Equal(t, 200, resp.StatusCode)
	assert.Equal(t, size, r.last().Sent)
	assert.Less(t, int64(peak.HeapAlloc)-int64(before.HeapAlloc), int64(24<<20))
}

func TestEventsAreFlushedAsTheyCome(t *testing.T) {
	step := make(chan struct{})
	h := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		for i := range 3 {
			select {
			case <-step:
			case <-r.Context().Done():
				return
			}
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
		}
	}
	for _, scheme := range []string{"http", "https"} {
		s, port := plainServer(t, h), "80"
		o := rigOptions{rules: allowAll("example.com")}
		if scheme == "https" {
			s, port = tlsServer(t, h), "443"
			o.roots = rootsOf(s)
		}
		r := newRig(t, o)
		r.serve("example.com:"+port, s)
		resp, err := r.client().Get(scheme + "://example.com/")
		require.NoError(t, err, "the head comes before the first event")
		in := bufio.NewReader(resp.Body)
		for i := range 3 {
			step <- struct{}{}
			line, err := in.ReadString('\n')
			require.NoError(t, err)
			assert.Equal(t, fmt.Sprintf("data: %d\n", i), line)
			_, err = in.ReadString('\n')
			require.NoError(t, err)
		}
		resp.Body.Close()
	}
}

func TestRangesHEADAndAnswersWithoutABodyPassAsTheyAre(t *testing.T) {
	data := strings.Repeat("0123456789", 100)
	h := func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/204":
			w.WriteHeader(http.StatusNoContent)
		case "/304":
			w.Header().Set("Etag", `"x"`)
			w.WriteHeader(http.StatusNotModified)
		case "/gzip":
			w.Header().Set("Content-Encoding", "gzip")
			io.WriteString(w, "not looked into: "+r.Header.Get("Accept-Encoding"))
		default:
			http.ServeContent(w, r, "data.txt", time.Unix(0, 0), strings.NewReader(data))
		}
	}
	s := plainServer(t, h)
	r := newRig(t, rigOptions{rules: allowAll("example.com")})
	r.serve("example.com:80", s)
	do := func(method, path string, set ...string) (*http.Response, string) {
		req, err := http.NewRequest(method, "http://example.com"+path, nil)
		require.NoError(t, err)
		for i := 0; i < len(set); i += 2 {
			req.Header.Set(set[i], set[i+1])
		}
		resp, err := r.client().Do(req)
		require.NoError(t, err)
		return resp, readBody(t, resp)
	}
	resp, body := do("GET", "/data", "Range", "bytes=10-14")
	assert.Equal(t, 206, resp.StatusCode)
	assert.Equal(t, "bytes 10-14/1000", resp.Header.Get("Content-Range"))
	assert.Equal(t, "01234", body)
	resp, body = do("HEAD", "/data")
	assert.Equal(t, "1000", resp.Header.Get("Content-Length"))
	assert.Empty(t, body)
	resp, _ = do("GET", "/204")
	assert.Equal(t, 204, resp.StatusCode)
	resp, _ = do("GET", "/304")
	assert.Equal(t, 304, resp.StatusCode)
	assert.Equal(t, `"x"`, resp.Header.Get("Etag"))
	resp, body = do("GET", "/gzip", "Accept-Encoding", "gzip, weird")
	assert.Equal(t, "gzip", resp.Header.Get("Content-Encoding"))
	assert.Equal(t, "not looked into: gzip, weird", body)
	resp, _ = do("HEAD", "/none")
	assert.Equal(t, 200, resp.StatusCode)
	assert.EqualValues(t, 1, r.dials.Load(), "one connection served them all")
}

func TestBigHeadersPassAndBiggerOnesAreRefusedBothWays(t *testing.T) {
	h := func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.URL.Query().Get("n"))
		w.Header().Set("X-Big", strings.Repeat("b", n))
		fmt.Fprint(w, len(r.Header.Get("X-Big")))
	}
	s := plainServer(t, h)
	ts := tlsServer(t, h)
	r := newRig(t, rigOptions{rules: allowAll("example.com"), roots: rootsOf(ts)})
	r.serve("example.com:80", s)
	r.serve("example.com:443", ts)
	for _, scheme := range []string{"http", "https"} {
		for _, tt := range []struct{ out, in, status int }{{40 << 10, 40 << 10, 200}, {70 << 10, 0, 431}, {0, 70 << 10, 502}} {
			req, err := http.NewRequest("GET", fmt.Sprintf("%s://example.com/?n=%d", scheme, tt.in), nil)
			require.NoError(t, err)
			req.Header.Set("X-Big", strings.Repeat("a", tt.out))
			resp, err := r.client().Do(req)
			if scheme == "https" && tt.status == 431 {
				require.Error(t, err, "a client of HTTP/2 knows the limit, or net/http ends the connection")
				continue
			}
			require.NoError(t, err)
			assert.Equal(t, tt.status, resp.StatusCode, "%s %+v", scheme, tt)
			body := readBody(t, resp)
			if tt.status == 200 {
				assert.Equal(t, strconv.Itoa(tt.out), body)
				assert.Len(t, resp.Header.Get("X-Big"), tt.in)
			}
		}
	}
}

func TestAGuestThatDoesNotReadIsLetGoOf(t *testing.T) {
	gone := make(chan struct{})
	s := plainServer(t, func(w http.ResponseWriter, _ *http.Request) {
		defer close(gone)
		buf := make([]byte, 1<<20)
		for range 4096 {
			if _, err := w.Write(buf); err != nil {
				return
			}
		}
	})
	r := newRig(t, rigOptions{rules: allowAll("example.com"), limits: Limits{Idle: 300 * time.Millisecond}})
	r.serve("example.com:80", s)
	conn := r.open("example.com", 80, false)
	require.NoError(t, conn.(*net.TCPConn).SetReadBuffer(4096))
	_, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
	require.NoError(t, err)
	select {
	case <-gone:
	case <-time.After(20 * time.Second):
		t.Fatal("the server is still held")
	}
	e := r.last()
	assert.Equal(t, "error", e.Verdict)
	assert.Contains(t, e.Reason, "broke")
}

func TestASlowHeadIsCutOff(t *testing.T) {
	// The limit is the server's ReadHeaderTimeout, which the reader must let through.
	server, client := net.Pipe()
	defer client.Close()
	s := &strict{src: server, limit: 4096}
	require.NoError(t, server.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	go io.WriteString(client, "GET / HT")
	_, err := io.ReadAll(s)
	var ne net.Error
	require.ErrorAs(t, err, &ne)
	assert.True(t, ne.Timeout())
}

func TestAnAnswerThatBreaksOffIsNotTakenForWhole(t *testing.T) {
	h := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/length" {
			w.Header().Set("Content-Length", "1000000")
		}
		w.Write(make([]byte, 100000))
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	s := plainServer(t, h)
	ts := tlsServer(t, h)
	r := newRig(t, rigOptions{rules: allowAll("example.com"), roots: rootsOf(ts)})
	r.serve("example.com:80", s)
	r.serve("example.com:443", ts)
	for _, url := range []string{"http://example.com/length", "http://example.com/chunks", "https://example.com/length", "https://example.com/chunks"} {
		resp, err := r.client().Get(url)
		require.NoError(t, err)
		n, err := io.Copy(io.Discard, resp.Body)
		require.Error(t, err, url)
		assert.LessOrEqual(t, n, int64(100000))
		resp.Body.Close()
		e := r.last()
		assert.Equal(t, "error", e.Verdict)
		assert.Contains(t, e.Reason, "example.com broke the answer off")
	}
}

func TestTheGuestGoingAwayEndsTheServersRequest(t *testing.T) {
	ended := make(chan struct{}, 4)
	h := func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		ended <- struct{}{}
	}
	ts := tlsServer(t, h)
	r := newRig(t, rigOptions{rules: allowAll("example.com"), roots: rootsOf(ts)})
	r.serve("example.com:443", ts)
	for _, c := range []*http.Client{r.client(), h1(r.client())} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		req, err := http.NewRequestWithContext(ctx, "GET", "https://example.com/", nil)
		require.NoError(t, err)
		_, err = c.Do(req)
		require.Error(t, err)
		cancel()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Fatal("the server was not told")
		}
	}
}

func TestMoreRequestsThanTheBoundAreRefusedAndNotQueued(t *testing.T) {
	r := newRig(t, rigOptions{rules: allowAll("example.com")})
	for range maxRequests {
		r.p.slots <- struct{}{}
	}
	resp, err := r.client().Get("http://example.com/")
	require.NoError(t, err)
	assert.Equal(t, 503, resp.StatusCode)
	assert.Contains(t, readRefusal(t, resp).Reason, "256")
}

func TestTheWriterGathersAndKeepsOrderAndErrors(t *testing.T) {
	var got bytes.Buffer
	var largest, calls int
	block := make(chan struct{}, 1)
	w := newWebWriter(func() int { return 1 }, func(b []byte) error {
		<-block
		largest, calls = max(largest, len(b)), calls+1
		got.Write(b)
		block <- struct{}{}
		return nil
	})
	var want bytes.Buffer
	go func() { block <- struct{}{} }()
	for i := range 5000 {
		p := make([]byte, i%97)
		rand.Read(p)
		want.Write(p)
		n, err := w.Write(p)
		require.NoError(t, err)
		require.Equal(t, len(p), n)
	}
	require.NoError(t, w.drain())
	w.finish()
	assert.Equal(t, want.Bytes(), got.Bytes())
	assert.LessOrEqual(t, largest, webBuffer)
	assert.Less(t, calls, 2500)
	_, err := w.Write([]byte("x"))
	require.ErrorIs(t, err, net.ErrClosed)

	broken := errors.New("broken")
	w = newWebWriter(func() int { return 1 }, func([]byte) error { return broken })
	_, err = w.Write([]byte("x"))
	require.NoError(t, err)
	require.ErrorIs(t, w.drain(), broken)
	_, err = w.Write(make([]byte, 10*webBuffer))
	require.ErrorIs(t, err, broken)
	w.finish()
}
