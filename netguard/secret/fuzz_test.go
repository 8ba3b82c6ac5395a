package secret

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func FuzzInject(f *testing.F) {
	s := newSet(f)
	gh, pw := placeholderOf(f, s, "gh"), placeholderOf(f, s, "pw")
	f.Add("Authorization", "Basic R0g6QA==", "/P", "q=G")
	f.Add("X-A", "Bearer G", "/%5", `\u`)
	f.Fuzz(func(t *testing.T, name, value, path, query string) {
		fill := strings.NewReplacer("G", gh, "P", pw)
		h := Head{Header: http.Header{name: {fill.Replace(value)}}, Path: fill.Replace(path), Query: fill.Replace(query)}
		_, err := s.Inject(t.Context(), other, &h)
		all := h.Header[name][0] + h.Path + h.Query + name
		if strings.Contains(all, gh) || strings.Contains(all, pw) {
			require.Error(t, err)
		}
		require.NotContains(t, all, ghValue)
		h = Head{Header: http.Header{name: {fill.Replace(value)}}, Path: fill.Replace(path), Query: fill.Replace(query)}
		if _, err = s.Inject(t.Context(), api, &h); err == nil {
			for _, values := range h.Header {
				require.NotContains(t, values[0], gh)
			}
			require.NotContains(t, h.Path+h.Query, ghValue)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for name, compress := range compressors {
		f.Add(name, compress(f, "x "+ghValue))
	}
	f.Add("gzip, br", []byte{1})
	s := newSet(f)
	f.Fuzz(func(t *testing.T, encoding string, data []byte) {
		r, err := s.ResponseBody(t.Context(), 200, http.Header{"Content-Encoding": {encoding}}, io.NopCloser(bytes.NewReader(data)))
		if err != nil {
			return
		}
		out, _ := io.ReadAll(io.LimitReader(r, 1<<20))
		require.NotContains(t, string(out), ghValue)
		require.NoError(t, r.Close())
	})
}

func FuzzBinding(f *testing.F) {
	for _, s := range []string{"a.example", "*.a.example:1", "[::1]:2", "*", "1.2.3.4"} {
		f.Add(s, "a.example")
	}
	f.Fuzz(func(t *testing.T, bound, host string) {
		if b, err := parseBinding(bound); err == nil {
			require.True(t, b.addr.IsValid() || b.name != "", "a binding is never to everything")
			b.match(Target{Host: host})
		}
	})
}

func BenchmarkInject(b *testing.B) {
	s := newSet(b)
	p := placeholderOf(b, s, "gh")
	b.ReportAllocs()
	for b.Loop() {
		h := Head{Header: http.Header{
			"Authorization": {"Bearer " + p}, "User-Agent": {"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"}, "Accept": {"application/json"}, "Accept-Encoding": {"gzip, br"}, "Content-Type": {"application/json"},
		}, Path: "/repos/a/b/contents/c%20d", Query: "ref=main&page=2"}
		if _, err := s.Inject(b.Context(), api, &h); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkResponseBody(b *testing.B) {
	s := newSet(b)
	text := strings.Repeat(`{"id":12345,"name":"some name","url":"https://example.com/a"}`+"\n", 17000)
	all := map[string][]byte{"identity": []byte(text)}
	for name, compress := range compressors {
		all[name] = compress(b, text)
	}
	for name, data := range all {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				r, err := s.ResponseBody(b.Context(), 200, http.Header{"Content-Encoding": {name}}, io.NopCloser(bytes.NewReader(data)))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, r); err != nil {
					b.Fatal(err)
				}
				_ = r.Close()
			}
		})
	}
}
