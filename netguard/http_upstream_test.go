package netguard

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A server that takes one request a connection makes each unread answer fill windows of its own.
func TestUnreadAnswersOfManyServersFillLittle(t *testing.T) {
	var written atomic.Int64
	ts := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		piece := make([]byte, 16<<10)
		for range 1024 {
			n, err := w.Write(piece)
			written.Add(int64(n))
			if err != nil {
				return
			}
		}
	}))
	ts.EnableHTTP2 = true
	ts.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 1}
	ts.StartTLS()
	defer ts.Close()
	r := newRig(t, rigOptions{rules: allowAll("example.com"), roots: rootsOf(ts)})
	r.serve("example.com:443", ts)
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	const requests = 100
	for range requests {
		conn, err := shake(r.open("example.com", 443, true), &tls.Config{RootCAs: r.trust(), ServerName: "example.com"})
		require.NoError(t, err)
		defer conn.Close()
		_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
		require.NoError(t, err)
	}
	last := int64(-1)
	require.Eventually(t, func() bool {
		now := written.Load()
		defer func() { last = now }()
		return now == last && now > 0
	}, 30*time.Second, time.Second)
	require.Greater(t, r.dials.Load(), int32(requests/2), "connections to servers") // two may share one before its server has said that it takes one
	grown := (heap() - before) >> 20
	t.Logf("%d MiB", grown)
	assert.Less(t, grown, int64(90))
}
