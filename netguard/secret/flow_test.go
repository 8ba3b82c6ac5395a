package secret

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	api   = Target{Host: "api.example", Port: 443, TLS: true}
	db    = Target{Host: "db.example", Port: 8080}
	other = Target{Host: "other.example", Port: 443, TLS: true}
)

func TestAPlaceholderInAHeaderBecomesTheValueForItsHost(t *testing.T) {
	s := newSet(t)
	p := placeholderOf(t, s, "gh")
	h := Head{Header: http.Header{"Authorization": {"Bearer " + p}, "X-Two": {"a", p + "," + p}, "Accept": {"*/*"}}, Path: "/x", Query: "a=b"}
	use, err := s.Inject(t.Context(), api, &h)
	require.NoError(t, err)
	assert.Equal(t, http.Header{"Authorization": {"Bearer " + ghValue}, "X-Two": {"a", ghValue + "," + ghValue}, "Accept": {"*/*"}}, h.Header)
	assert.Equal(t, Use{Injected: []string{"gh"}}, use)
	assert.Equal(t, []string{"gh"}, s.For(api))
	assert.Empty(t, s.For(other))
}

// §10: base64 in Basic.
func TestBasicCredentialsAreDecodedAndEncodedAgain(t *testing.T) {
	s := newSet(t)
	p := placeholderOf(t, s, "gh")
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding} {
		for _, user := range []string{"", "u", "us", "use", "x-access-token"} {
			for _, format := range []string{"Basic %s", "basic %s", "BASIC   %s "} {
				plain := user + ":" + p
				h := Head{Header: http.Header{"Authorization": {fmt.Sprintf(format, enc.EncodeToString([]byte(plain)))}}}
				use, err := s.Inject(t.Context(), api, &h)
				require.NoError(t, err)
				_, credentials, _ := strings.Cut(h.Header.Get("Authorization"), " ")
				assert.Equal(t, b64(user+":"+ghValue), credentials)
				assert.Equal(t, []string{"gh"}, use.Injected)
				_, err = s.Inject(t.Context(), other, &Head{Header: http.Header{"Authorization": {fmt.Sprintf(format, enc.EncodeToString([]byte(plain)))}}})
				var leak *LeakError
				require.ErrorAs(t, err, &leak)
			}
		}
	}
	// It is base64 itself by its letters, and must not pass for that.
	_, err := s.Inject(t.Context(), other, &Head{Header: http.Header{"Authorization": {"Basic " + p}}})
	require.Error(t, err)
}

// §10: placeholder split over writes, percent- or JSON-escaped, base64 in Basic.
func TestAPlaceholderForAnotherHostIsRefusedInEveryEncoding(t *testing.T) {
	s := newSet(t)
	p := placeholderOf(t, s, "gh")
	for name, text := range encodings(p) {
		for where, h := range map[string]*Head{
			"header X-Token": {Header: http.Header{"X-Token": {"a " + text + " b"}}},
			"path":           {Path: "/a/" + text + "/b"},
			"query":          {Query: "a=" + text + "&b=c"},
		} {
			before := Head{h.Header.Clone(), h.Path, h.Query}
			_, err := s.Inject(t.Context(), other, h)
			var leak *LeakError
			require.ErrorAs(t, err, &leak, "%s in %s", name, where)
			assert.Equal(t, LeakError{Name: "gh", Where: where, Host: "other.example"}, *leak)
			assert.Equal(t, before, *h)
			assert.NotContains(t, err.Error()+leak.Remedy(), p)
		}
		body := `{"a":"` + text + `"}`
		for cut := 0; cut < len(body); cut += 3 {
			r := io.MultiReader(strings.NewReader(body[:cut]), strings.NewReader(body[cut:]))
			b, err := s.RequestBody(t.Context(), other, nil, r)
			require.NoError(t, err)
			out, err := io.ReadAll(b)
			var leak *LeakError
			require.ErrorAs(t, err, &leak, "%s cut at %d", name, cut)
			assert.Equal(t, "body", leak.Where)
			assert.Equal(t, 0, strings.Count(string(out), p))
			_, err = b.Read(make([]byte, 1))
			assert.ErrorAs(t, err, &leak, "the error stays")
		}
	}
	_, err := s.Inject(t.Context(), other, &Head{Header: http.Header{"X-" + p: {"a"}}})
	require.Error(t, err, "in a header's name")
}

// A secret that a host may have does not open it for others.
func TestEachSecretGoesToItsOwnHostsOnly(t *testing.T) {
	s := newSet(t)
	for _, c := range []struct {
		name string
		t    Target
		want bool
	}{
		{"gh", api, true}, {"gh", Target{Host: "a.gh.example", Port: 443, TLS: true}, true}, {"gh", Target{Host: "gh.example", Port: 443, TLS: true}, false}, {"gh", db, false}, {"gh", other, false},
		{"pw", db, true}, {"pw", api, false}, {"pw", Target{Host: "db.example", Port: 443, TLS: true}, false}, {"gh", Target{Host: "api.example", Port: 80}, false},
	} {
		h := Head{Header: http.Header{"X": {placeholderOf(t, s, c.name)}}}
		_, err := s.Inject(t.Context(), c.t, &h)
		assert.Equal(t, c.want, err == nil, "%s to %v", c.name, c.t)
	}
	_, err := s.Inject(t.Context(), Target{Host: "api.example", Port: 80}, &Head{Header: http.Header{"X": {placeholderOf(t, s, "gh")}}})
	assert.EqualError(t, err, "the placeholder of the secret gh is in the header X of an unencrypted request to api.example")
}

func TestQueryPathAndBodyAreOptIn(t *testing.T) {
	s := newSet(t)
	gh, pw := placeholderOf(t, s, "gh"), placeholderOf(t, s, "pw")
	h := Head{Header: http.Header{}, Path: "/t/" + gh, Query: "t=" + gh}
	use, err := s.Inject(t.Context(), api, &h)
	require.NoError(t, err)
	assert.Equal(t, Use{Kept: []Kept{{"gh", "path"}, {"gh", "query"}}}, use)
	assert.Equal(t, "/t/"+gh, h.Path)

	h = Head{Header: http.Header{}, Path: "/t/" + pw, Query: "t=" + pw + "&u"}
	use, err = s.Inject(t.Context(), db, &h)
	require.NoError(t, err)
	assert.Equal(t, []string{"pw"}, use.Injected)
	assert.Equal(t, "/t/"+url.PathEscape(pwValue), h.Path)
	assert.Equal(t, "t="+url.QueryEscape(pwValue)+"&u", h.Query)

	for contentType, want := range map[string]string{
		"application/json; charset=utf-8": `p@ss w\"ord\\/%41+x`, "application/vnd.x+json": `p@ss w\"ord\\/%41+x`, "application/x-www-form-urlencoded": url.QueryEscape(pwValue), "text/plain": pwValue, "": pwValue,
	} {
		for cut := 0; cut < len(pw)+4; cut += 5 {
			body := "a " + pw + " b"
			b, err := s.RequestBody(t.Context(), db, http.Header{"Content-Type": {contentType}}, io.MultiReader(strings.NewReader(body[:cut]), strings.NewReader(body[cut:])))
			require.NoError(t, err)
			assert.True(t, b.LengthUnknown)
			out, err := io.ReadAll(b)
			require.NoError(t, err)
			assert.Equal(t, "a "+want+" b", string(out), contentType)
			assert.Equal(t, []string{"pw"}, b.Use().Injected)
		}
	}
	b, err := s.RequestBody(t.Context(), api, nil, strings.NewReader("a "+gh+" b"))
	require.NoError(t, err)
	assert.False(t, b.LengthUnknown)
	out, err := io.ReadAll(b)
	require.NoError(t, err)
	assert.Equal(t, "a "+gh+" b", string(out))
	assert.Equal(t, []Kept{{"gh", "body"}}, b.Use().Kept)
}

func TestACompressedRequestIsLookedInto(t *testing.T) {
	s := newSet(t)
	for name, compress := range compressors {
		b, err := s.RequestBody(t.Context(), other, http.Header{"Content-Encoding": {name}}, bytes.NewReader(compress(t, "a "+placeholderOf(t, s, "gh"))))
		require.NoError(t, err)
		assert.True(t, b.Decoded && b.LengthUnknown)
		_, err = io.ReadAll(b)
		var leak *LeakError
		require.ErrorAs(t, err, &leak, name)
		b, err = s.RequestBody(t.Context(), other, http.Header{"Content-Encoding": {name}}, bytes.NewReader(compress(t, "harmless")))
		require.NoError(t, err)
		out, err := io.ReadAll(b)
		require.NoError(t, err)
		assert.Equal(t, "harmless", string(out))
	}
	_, err := s.RequestBody(t.Context(), other, http.Header{"Content-Encoding": {"lzma"}}, strings.NewReader(""))
	require.ErrorContains(t, err, `the encoding "lzma" is unknown`)
}

func TestAValueWithLinesDoesNotBreakAHeader(t *testing.T) {
	store, err := Open(t.Context(), []Spec{{Name: "pem", From: From{Env: "X"}, Hosts: []string{"api.example"}}}, Options{LookupEnv: func(string) (string, bool) { return "line one\r\nHost: evil", true }})
	require.NoError(t, err)
	s, err := store.Session()
	require.NoError(t, err)
	_, err = s.Inject(t.Context(), api, &Head{Header: http.Header{"X": {placeholderOf(t, s, "pem")}}})
	require.EqualError(t, err, "the secret pem has several lines and cannot stand in a header")
}

func TestAHostWithASecretIsNotAskedForParts(t *testing.T) {
	s := newSet(t)
	for target, want := range map[Target]string{api: "", other: "bytes=0-3"} {
		h := Head{Header: http.Header{"Range": {"bytes=0-3"}, "If-Range": {`"x"`}}}
		use, err := s.Inject(t.Context(), target, &h)
		require.NoError(t, err)
		assert.Equal(t, want, h.Header.Get("Range"))
		assert.Equal(t, want == "", use.RangeRemoved)
	}
}

var compressors = map[string]func(testing.TB, string) []byte{
	"gzip": func(t testing.TB, s string) []byte {
		return written(t, s, func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) })
	},
	"deflate": func(t testing.TB, s string) []byte {
		return written(t, s, func(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) })
	},
	"br": func(t testing.TB, s string) []byte {
		return written(t, s, func(w io.Writer) io.WriteCloser { return brotli.NewWriterLevel(w, 3) })
	},
	"zstd": func(t testing.TB, s string) []byte {
		return written(t, s, func(w io.Writer) io.WriteCloser {
			z, err := zstd.NewWriter(w)
			require.NoError(t, err)
			return z
		})
	},
}

func written(t testing.TB, s string, open func(io.Writer) io.WriteCloser) []byte {
	t.Helper()
	var b bytes.Buffer
	w := open(&b)
	_, err := io.WriteString(w, s)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.Bytes()
}

func respond(t testing.TB, s *Set, status int, header http.Header, body io.Reader) string {
	t.Helper()
	r, err := s.ResponseBody(t.Context(), status, header, io.NopCloser(body))
	require.NoError(t, err)
	out, err := io.ReadAll(r)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	return string(out)
}

// §10: echo of the secret by the server (plain, gzip, chunk-split, JSON-escaped).
func TestAnEchoedValueIsReplacedByThePlaceholder(t *testing.T) {
	s := newSet(t)
	gh, pw := placeholderOf(t, s, "gh"), placeholderOf(t, s, "pw")
	text := "token=" + ghValue + "; pass=" + pwValue + ";"
	want := "token=" + gh + "; pass=" + pw + ";"
	assert.Equal(t, want, respond(t, s, 200, http.Header{}, strings.NewReader(text)))
	for name, compress := range compressors {
		packed := compress(t, text)
		for _, r := range []io.Reader{bytes.NewReader(packed), iotest.HalfReader(bytes.NewReader(packed))} {
			h := http.Header{"Content-Encoding": {strings.ToUpper(name)}, "Content-Length": {"5"}, "Etag": {`"x"`}, "Digest": {"x"}}
			assert.Equal(t, want, respond(t, s, 200, h, r), name)
			assert.Equal(t, http.Header{"Etag": {`W/"x"`}}, h)
		}
	}
	twice := compressors["br"](t, string(compressors["gzip"](t, text)))
	assert.Equal(t, want, respond(t, s, 200, http.Header{"Content-Encoding": {"gzip, br"}}, bytes.NewReader(twice)))
	for _, value := range []string{ghValue, pwValue} {
		for name, encoded := range encodings(value) {
			if value == pwValue && (strings.Contains(name, "first") || strings.Contains(name, "middle") || name == "json solidus" || name == "json last") {
				continue // would be read differently: see TestEveryEncoding…
			}
			out := respond(t, s, 200, http.Header{}, iotest.OneByteReader(strings.NewReader("x"+encoded+"x")))
			assert.NotContains(t, out, encoded, name)
			assert.NotContains(t, out, value, name)
		}
	}
	raw := written(t, text, func(w io.Writer) io.WriteCloser {
		f, err := flate.NewWriter(w, 5)
		require.NoError(t, err)
		return f
	})
	assert.Equal(t, want, respond(t, s, 200, http.Header{"Content-Encoding": {"deflate"}}, bytes.NewReader(raw)), "without the zlib header")
}

func TestAnEchoInBase64DecodesToThePlaceholder(t *testing.T) {
	s := newSet(t)
	for _, c := range [][2]string{{"gh", ghValue}, {"pw", pwValue}} {
		p := placeholderOf(t, s, c[0])
		for _, before := range []string{"", "a", "ab", "user:"} {
			out := s.ScrubText(b64(before + c[1] + ", and more"))
			plain, err := base64.StdEncoding.DecodeString(out)
			require.NoError(t, err)
			assert.Contains(t, string(plain), p[1:len(p)-1], "the first and last letters share bits with what is around them")
			assert.Contains(t, string(plain), " and more")
		}
	}
}

func TestHeadersOfAnswersAreScrubbed(t *testing.T) {
	s := newSet(t)
	gh := placeholderOf(t, s, "gh")
	h := http.Header{"Location": {"https://x/?t=" + url.QueryEscape(pwValue)}, "X-Echo": {"Bearer " + ghValue, "fine"}, "Set-Cookie": {"t=" + ghValue}}
	s.ScrubHeader(h)
	assert.Equal(t, http.Header{"Location": {"https://x/?t=" + placeholderOf(t, s, "pw")}, "X-Echo": {"Bearer " + gh, "fine"}, "Set-Cookie": {"t=" + gh}}, h)
	h = http.Header{ghValue: {"x"}}
	s.ScrubHeader(h)
	assert.NotContains(t, h, ghValue)
	var none *Set
	none.ScrubHeader(h)
	assert.Equal(t, ghValue, none.ScrubText(ghValue))
	assert.Empty(t, none.Env())
}

func TestWhatCannotBeLookedIntoDoesNotGetIn(t *testing.T) {
	s := newSet(t)
	for _, encoding := range []string{"lzma", "gzip, gzip, gzip", "compress", "gzip, aes128gcm"} {
		_, err := s.ResponseBody(t.Context(), 200, http.Header{"Content-Encoding": {encoding}}, io.NopCloser(strings.NewReader("")))
		assert.Error(t, err, encoding)
	}
	_, err := s.ResponseBody(t.Context(), 206, http.Header{"Content-Encoding": {"gzip"}}, io.NopCloser(strings.NewReader("")))
	assert.ErrorContains(t, err, "a part of a body")
	for name := range compressors {
		r, err := s.ResponseBody(t.Context(), 200, http.Header{"Content-Encoding": {name}}, io.NopCloser(strings.NewReader("this is not compressed at all")))
		require.NoError(t, err)
		_, err = io.ReadAll(r)
		assert.ErrorContains(t, err, "decoding "+name)
		assert.Empty(t, respond(t, s, 200, http.Header{"Content-Encoding": {name}}, strings.NewReader("")), "an empty body")
		packed := compressors[name](t, strings.Repeat("a "+ghValue, 1000))
		r, err = s.ResponseBody(t.Context(), 200, http.Header{"Content-Encoding": {name}}, io.NopCloser(bytes.NewReader(packed[:len(packed)-5])))
		require.NoError(t, err)
		_, err = io.ReadAll(r)
		assert.Error(t, err, "cut off: "+name)
	}
	assert.Equal(t, "gzip;q=0.5, br, zstd", AcceptEncoding("gzip;q=0.5, compress, br, dcb, zstd, *"))
	assert.Equal(t, "identity", AcceptEncoding("compress"))
	assert.Equal(t, "identity", AcceptEncoding(""))
}

func TestABombIsDecompressedInLittleMemory(t *testing.T) {
	s := newSet(t)
	zeros := strings.Repeat("\x00", 32<<20)
	for name, compress := range compressors {
		packed := compress(t, zeros)
		r, err := s.ResponseBody(t.Context(), 200, http.Header{"Content-Encoding": {name}}, io.NopCloser(bytes.NewReader(packed)))
		require.NoError(t, err)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		n, err := io.Copy(io.Discard, r)
		require.NoError(t, err)
		runtime.ReadMemStats(&after)
		assert.EqualValues(t, len(zeros), n)
		assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(24<<20), name)
		require.NoError(t, r.Close())
	}
}

func TestAnEmptySetTouchesNothing(t *testing.T) {
	store, err := Open(t.Context(), nil, Options{})
	require.NoError(t, err)
	s, err := store.Session()
	require.NoError(t, err)
	assert.True(t, s.Empty())
	h := http.Header{"Content-Encoding": {"lzma"}, "Content-Length": {"3"}, "Range": {"x"}}
	assert.Equal(t, "abc", respond(t, s, 206, h, strings.NewReader("abc")))
	_, err = s.Inject(t.Context(), api, &Head{Header: h})
	require.NoError(t, err)
	assert.Len(t, h, 3)
	out, err := s.Scrubber().Append(nil, []byte("abc"))
	require.NoError(t, err)
	assert.Equal(t, "abc", string(out))
	b, err := s.RequestBody(t.Context(), api, h, strings.NewReader("abc"))
	require.NoError(t, err)
	assert.False(t, b.LengthUnknown || b.Decoded)
}

func TestEqualLengthsKeepAMessagesLengthWhereverItIsSplit(t *testing.T) {
	store, err := Open(t.Context(), []Spec{{Name: "gh", From: From{Env: "X"}, Hosts: []string{"api.example"}, Placeholder: Shape{Prefix: "ghp_"}}}, Options{LookupEnv: func(string) (string, bool) { return ghValue, true }})
	require.NoError(t, err)
	s, err := store.Session()
	require.NoError(t, err)
	require.True(t, s.KeepsLength())
	p := placeholderOf(t, s, "gh")
	for _, message := range []string{"a " + ghValue + ghValue + " b", "a " + b64("user:"+ghValue) + " b"} {
		for cut := range len(message) {
			h := http.Header{"Content-Length": {fmt.Sprint(len(message))}}
			out := respond(t, s, 200, h, io.MultiReader(strings.NewReader(message[:cut]), strings.NewReader(message[cut:])))
			assert.Len(t, out, len(message), "cut at %d", cut)
			assert.NotEmpty(t, h.Get("Content-Length"))
			if strings.Contains(message, ghValue) {
				assert.Equal(t, "a "+p+p+" b", out)
			}
		}
	}
}
