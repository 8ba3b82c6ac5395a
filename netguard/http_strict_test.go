package netguard

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// smuggling are requests that readers have disagreed about.
var smuggling = map[string]struct {
	request string
	reason  string
}{
	"CL and TE":                       {"POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "both Content-Length and Transfer-Encoding"},
	"TE and CL":                       {"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", "both"},
	"two different CL":                {"POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd", "2 Content-Length"},
	"two equal CL":                    {"POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd", "2 Content-Length"},
	"list in CL":                      {"POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 4, 4\r\n\r\nabcd", "no number"},
	"signed CL":                       {"POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: +4\r\n\r\nabcd", "no number"},
	"endless CL":                      {"POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 99999999999999999999\r\n\r\nabcd", "no number"},
	"unknown TE":                      {"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "only Transfer-Encoding"},
	"TE twice":                        {"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", "only Transfer-Encoding"},
	"TE list":                         {"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "only Transfer-Encoding"},
	"TE in HTTP/1.0":                  {"POST / HTTP/1.0\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.0"},
	"TE with a space":                 {"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "not the name of a header"},
	"TE with a control character":     {"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", "control character"},
	"obs-fold":                        {"GET / HTTP/1.1\r\nHost: example.com\r\nX-A: b\r\n c\r\n\r\n", "folded"},
	"obs-fold before the first field": {"GET / HTTP/1.1\r\n Host: example.com\r\n\r\n", "folded"},
	"bare LF":                         {"GET / HTTP/1.1\nHost: example.com\n\n", "bare LF"},
	"bare LF in a field":              {"GET / HTTP/1.1\r\nHost: example.com\r\nX-A: b\nX-C: d\r\n\r\n", "bare LF"},
	"bare CR":                         {"GET / HTTP/1.1\r\nHost: example.com\r\nX-A: b\rX-C: d\r\n\r\n", "bare CR"},
	"NUL":                             {"GET / HTTP/1.1\r\nHost: example.com\r\nX-A: b\x00c\r\n\r\n", "NUL"},
	"two Hosts":                       {"GET / HTTP/1.1\r\nHost: example.com\r\nHost: evil.example\r\n\r\n", "2 Host fields"},
	"two equal Hosts":                 {"GET / HTTP/1.1\r\nHost: example.com\r\nHost: example.com\r\n\r\n", "2 Host fields"},
	"no Host":                         {"GET / HTTP/1.1\r\nX-A: b\r\n\r\n", "0 Host fields"},
	"no Host in HTTP/1.0":             {"GET / HTTP/1.0\r\n\r\n", "0 Host fields"},
	"empty Host":                      {"GET / HTTP/1.1\r\nHost:\r\n\r\n", "0 Host fields"},
	"absolute-form, another host":     {"GET http://evil.example/ HTTP/1.1\r\nHost: example.com\r\n\r\n", "evil.example"},
	"absolute-form, another scheme":   {"GET https://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n", "scheme"},
	"absolute-form, user info":        {"GET http://example.com@evil.example/ HTTP/1.1\r\nHost: example.com\r\n\r\n", "user information"},
	"a target that is no path":        {"GET example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n", "target"},
	"a fragment":                      {"GET /a#b HTTP/1.1\r\nHost: example.com\r\n\r\n", "percent-encoded"},
	"a broken escape":                 {"GET /%zz HTTP/1.1\r\nHost: example.com\r\n\r\n", "malformed"},
	"two spaces":                      {"GET  / HTTP/1.1\r\nHost: example.com\r\n\r\n", "request line"},
	"a space in the target":           {"GET /a b HTTP/1.1\r\nHost: example.com\r\n\r\n", "request line"},
	"a tab in the request line":       {"GET\t/ HTTP/1.1\r\nHost: example.com\r\n\r\n", "request line"},
	"a leading empty line":            {"\r\nGET / HTTP/1.1\r\nHost: example.com\r\n\r\n", "empty line"},
	"an old version":                  {"GET /\r\n\r\n", "request line"},
	"a version to come":               {"GET / HTTP/1.2\r\nHost: example.com\r\n\r\n", "HTTP/1.2"},
	"a method that is no token":       {"G(T / HTTP/1.1\r\nHost: example.com\r\n\r\n", "request line"},
	"a field without a name":          {"GET / HTTP/1.1\r\nHost: example.com\r\n: x\r\n\r\n", "not the name"},
	"a field without a colon":         {"GET / HTTP/1.1\r\nHost: example.com\r\nX\r\n\r\n", "not the name"},
	"CONNECT":                         {"CONNECT evil.example:443 HTTP/1.1\r\nHost: example.com\r\n\r\n", "CONNECT is refused"},
	"too long a head":                 {"GET / HTTP/1.1\r\nHost: example.com\r\nX-A: " + strings.Repeat("a", 70<<10) + "\r\n\r\n", "more than 65536 bytes"},
	"too many fields":                 {"GET / HTTP/1.1\r\nHost: example.com\r\n" + strings.Repeat("X-A: b\r\n", 300) + "\r\n", "more than 256"},
	"upgrade with a body":             {"GET / HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc", "without a body"},
	"a chunk size that is none":       {"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", "size of a chunk"},
	"a chunk longer than it says":     {"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n", "longer than its size"},
	"a chunk of 2^64":                 {"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n", "15 digits"},
	"a bare LF after a chunk size":    {"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n", "followed by the byte"},
	"a bare CR in an extension":       {"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n3;a\rb\r\nabc\r\n0\r\n\r\n", "bare CR"},
	"a bare LF in an extension":       {"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n3;a\nb\r\nabc\r\n0\r\n\r\n", "control character"},
	"an endless extension":            {"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n3;" + strings.Repeat("a", 400) + "\r\nabc\r\n0\r\n\r\n", "256 bytes"},
	"Host in the trailer":             {"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\nTrailer: Host\r\n\r\n0\r\nHost: evil.example\r\n\r\n", "belongs into the head"},
	"a folded trailer":                {"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: a\r\n b\r\n\r\n", "folded"},
	"bytes before an upgrade":         {"GET / HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nGET /x HTTP/1.1\r\nHost: example.com\r\n\r\n", "before it was answered"},
}

func TestHoleRequestSmuggling(t *testing.T) {
	for name, tt := range smuggling {
		t.Run(name, func(t *testing.T) {
			// Answers when the body has come, so that a refusal is about the body.
			s := plainServer(t, func(w http.ResponseWriter, r *http.Request) {
				if _, err := io.Copy(io.Discard, r.Body); err == nil && r.Header.Get("Upgrade") != "" {
					<-r.Context().Done()
				}
			})
			r := newRig(t, rigOptions{rules: allowAll("example.com")})
			r.serve("example.com:80", s)
			all := parseResponses(t, r.raw("example.com", tt.request+"GET /next HTTP/1.1\r\nHost: example.com\r\n\r\n"))
			require.Len(t, all, 1, "the connection ends with the refusal")
			assert.GreaterOrEqual(t, all[0].StatusCode, 400)
			assert.Less(t, all[0].StatusCode, 506)
			assert.Contains(t, readRefusal(t, all[0]).Reason, tt.reason)
			assert.Equal(t, "protocol", all[0].Header.Get(refusedHeader))
			assert.Equal(t, "deny", r.last().Verdict)
		})
	}
}

func TestHoleHostIsNotTheConnections(t *testing.T) {
	s := plainServer(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host) })
	r := newRig(t, rigOptions{rules: allowAll("example.com", "other.example")})
	r.serve("example.com:80", s)
	for host, want := range map[string]int{
		"example.com": 200, "EXAMPLE.com": 200, "example.com.": 200, "example.com:80": 200, "Example.Com.:80": 200,
		"other.example": 421, "example.com:81": 421, "example.com:": 200, "example.comx": 421,
		"example.com%00": 400, "exa mple.com": 400, "example.com@evil.example": 400, "[::1]": 421, "127.0.0.1": 421, "2130706433": 421,
	} {
		all := parseResponses(t, r.raw("example.com", "GET / HTTP/1.1\r\nConnection: close\r\nHost: "+host+"\r\n\r\n"))
		require.Len(t, all, 1, host)
		assert.Equal(t, want, all[0].StatusCode, host)
		if want == 200 {
			assert.Equal(t, "example.com", readBody(t, all[0]), "the server sees the canonical name")
		}
	}
}

func TestPipelinedRequestsAreAnsweredInTurnAndEachIsJudged(t *testing.T) {
	s := plainServer(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprint(w, r.URL.Path, " ", string(b))
	})
	r := newRig(t, rigOptions{rules: allowAll("example.com")})
	r.serve("example.com:80", s)
	all := parseResponses(t, r.raw("example.com",
		"POST /1 HTTP/1.1\r\nHost: example.com\r\nContent-Length: 3\r\n\r\nabc"+
			"POST /2 HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nde\r\n1\r\nf\r\n0\r\nX-T: 1\r\n\r\n"+
			"GET http://example.com/3 HTTP/1.1\r\nHost: example.com\r\n\r\n"+
			"GET /4 HTTP/1.1\r\nHost: evil.example\r\n\r\n"+
			"GET /5 HTTP/1.1\nHost: example.com\r\n\r\n"))
	require.Len(t, all, 5)
	assert.Equal(t, "/1 abc", readBody(t, all[0]))
	assert.Equal(t, "/2 def", readBody(t, all[1]))
	assert.Equal(t, "/3 ", readBody(t, all[2]))
	assert.Equal(t, 421, all[3].StatusCode)
	assert.Equal(t, 400, all[4].StatusCode)
}

// strictBytes is what a strict reader lets through of an input.
func strictBytes(in io.Reader) (string, *strict) {
	s := &strict{src: in, limit: 4096}
	b, _ := io.ReadAll(s)
	return string(b), s
}

func TestTheStrictReaderDoesNotDependOnHowBytesArrive(t *testing.T) {
	in := "POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n" +
		"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" + "GET / HTTP/1.0\r\nHost: a\r\n\r\n"
	for _, wrap := range []func(io.Reader) io.Reader{
		func(r io.Reader) io.Reader { return r }, iotest.OneByteReader, iotest.HalfReader, iotest.DataErrReader,
	} {
		got, s := strictBytes(wrap(strings.NewReader(in)))
		assert.Equal(t, in, got)
		assert.Equal(t, []*violation{nil, nil, nil}, s.heads)
	}
}

func FuzzHTTPHead(f *testing.F) {
	for _, tt := range smuggling {
		f.Add([]byte(tt.request))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		got, s := strictBytes(bytes.NewReader(in))
		slow, again := strictBytes(iotest.OneByteReader(bytes.NewReader(in)))
		// Where in a body the first error is depends on the pieces, what precedes does not.
		if s.bad == nil && (got != slow || len(s.heads) != len(again.heads)) {
			t.Fatalf("%q: %q in one piece, %q in bytes", in, got, slow)
		}
		if rest, ok := strings.CutSuffix(got, standIn); ok {
			got = rest
		} else if len(s.heads) > 0 && s.heads[len(s.heads)-1] != nil {
			t.Fatalf("%q: refused without a request in its place", in)
		}
		if !bytes.HasPrefix(in, []byte(got)) {
			t.Fatalf("%q: passed on %q", in, got)
		}
	})
}
