package netguard

import (
	"crypto/tls"
	"io"
	"net/http"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/netguard/secret"
)

// The guest's side and the server's are in the same process: what is measured is three
// parties' work on loopback.
func benchDownload(b *testing.B, scheme string, h2 bool, secrets bool, size int) {
	chunk := make([]byte, 64<<10)
	for i := range chunk {
		chunk[i] = byte(i * 7)
	}
	h := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(size))
		for left := size; left > 0; {
			n, err := w.Write(chunk[:min(left, len(chunk))])
			if err != nil {
				return
			}
			left -= n
		}
	}
	s := plainServer(b, h)
	o := rigOptions{rules: allowAll("example.com")}
	port := "80"
	if scheme == "https" {
		s = tlsServer(b, h)
		o.roots, port = rootsOf(s), "443"
	}
	if secrets {
		o.secrets = []secret.Spec{{Name: "KEY", From: secret.From{Env: "KEY"}, Hosts: []string{"example.com"}}}
		o.env = map[string]string{"KEY": theSecret}
	}
	r := newRig(b, o)
	r.serve("example.com:"+port, s)
	c := r.client()
	if !h2 {
		c = h1(c)
	}
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		resp, err := c.Get(scheme + "://example.com/")
		require.NoError(b, err)
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{resp.Body}, buf)
		require.NoError(b, err)
		require.EqualValues(b, size, n)
		resp.Body.Close()
	}
}

func BenchmarkHTTPDownload64MiB(b *testing.B)     { benchDownload(b, "http", false, false, 64<<20) }
func BenchmarkHTTPSDownload64MiB(b *testing.B)    { benchDownload(b, "https", false, false, 64<<20) }
func BenchmarkHTTP2Download64MiB(b *testing.B)    { benchDownload(b, "https", true, false, 64<<20) }
func BenchmarkHTTPSDownloadScrubbed(b *testing.B) { benchDownload(b, "https", false, true, 64<<20) }
func BenchmarkHTTPSSmall(b *testing.B)            { benchDownload(b, "https", false, false, 200) }
func BenchmarkHTTP2Small(b *testing.B)            { benchDownload(b, "https", true, false, 200) }
func BenchmarkHTTPSSmallWithSecrets(b *testing.B) { benchDownload(b, "https", true, true, 200) }

// A fresh process: connection, handshake (resumed or not), one request.
func BenchmarkHTTPSFirstRequest(b *testing.B) {
	s := tlsServer(b, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	for _, resumed := range []bool{false, true} {
		b.Run("resumed="+strconv.FormatBool(resumed), func(b *testing.B) {
			r := newRig(b, rigOptions{rules: allowAll("example.com"), roots: rootsOf(s)})
			r.serve("example.com:443", s)
			cache := tls.NewLRUClientSessionCache(8)
			for b.Loop() {
				c := r.client()
				if resumed {
					c.Transport.(*http.Transport).TLSClientConfig.ClientSessionCache = cache
				}
				resp, err := c.Get("https://example.com/")
				require.NoError(b, err)
				readBody(b, resp)
				c.CloseIdleConnections()
			}
		})
	}
}
