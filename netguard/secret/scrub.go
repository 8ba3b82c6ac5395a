package secret

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// Scrubber returns a filter that replaces values by placeholders in what comes in:
// the current ones and those that the session has used before, of all secrets,
// whoever sends them.
func (s *Set) Scrubber() *Filter {
	return &Filter{source: s.automaton, react: func(p *pattern, escaped bool) (string, bool, error) {
		return s.standIn(p, escaped), true, nil
	}}
}

var nothing = newAutomaton(nil)

// automaton is the latest one for values.
func (s *Set) automaton() *automaton {
	if s.Empty() {
		return nothing
	}
	return s.store.current.Load().find
}

// standIn is the placeholder, written as the pattern is.
func (s *Set) standIn(p *pattern, escaped bool) string {
	text := s.secrets[p.secret].placeholder
	if p.form == formRaw {
		return text
	}
	// As many bytes modulo 3 as the value, so that the groups of four after
	// it are read as they were.
	text += strings.Repeat(".", ((p.length-len(text))%3+3)%3)
	enc := base64.RawStdEncoding
	if p.form == formURL {
		enc = base64.RawURLEncoding
	}
	text = core(enc, text, p.align)
	if escaped {
		return url.QueryEscape(text)
	}
	return text
}

// ScrubText replaces values by placeholders in a text, such as a status line, a log
// entry or an error.
func (s *Set) ScrubText(text string) string {
	if s.Empty() {
		return text
	}
	f := s.Scrubber()
	f.renew()
	f.held = []byte(text) // at once: no beginning is let through
	out, err := f.Close(nil)
	if err != nil {
		return "" // not reached: nothing here refuses
	}
	return string(out)
}

// ScrubHeader replaces values by placeholders in a response's header or trailer,
// in place.
func (s *Set) ScrubHeader(h http.Header) {
	if s.Empty() {
		return
	}
	for name, values := range h {
		for i, v := range values {
			values[i] = s.ScrubText(v)
		}
		if clean := s.ScrubText(name); clean != name {
			delete(h, name)
			h[clean] = values
		}
	}
}

// ResponseBody streams a response's body and replaces values by placeholders. A
// compressed body (gzip, deflate, br, zstd, two of them at most) is decompressed and sent on
// as it is (ctx ends the wait for room to do so): between host and guest there is no line that compression would help. The header is
// changed to fit: Content-Encoding goes, Content-Length goes unless the length is
// kept, and what describes the bytes as they were (digests, a strong ETag) goes
// or is weakened. The caller has scrubbed the header's values, and does not call for
// answers that have no body (to HEAD, 1xx, 204, 304). Closing it closes body.
//
// It fails, and body is left open, if the encoding is not known or the answer is
// a part of an encoded one: what cannot be looked into does not get in.
func (s *Set) ResponseBody(ctx context.Context, status int, header http.Header, body io.ReadCloser) (io.ReadCloser, error) {
	if s.Empty() {
		return body, nil
	}
	var decoded io.ReadCloser
	if encoding := header.Values("Content-Encoding"); len(encoding) > 0 {
		var err error
		if decoded, err = s.decode(ctx, encoding, body); err != nil {
			return nil, err
		}
		if decoded != nil && status == http.StatusPartialContent {
			return nil, fmt.Errorf("the answer is a part of a body in the encoding %s, which cannot be decoded", quote(strings.Join(encoding, ", ")))
		}
	}
	if decoded != nil {
		header.Del("Content-Encoding")
		header.Del("Accept-Ranges")
	}
	if decoded != nil || !s.KeepsLength() {
		header.Del("Content-Length")
	}
	for _, name := range []string{"Content-Md5", "Digest", "Content-Digest", "Repr-Digest"} {
		header.Del(name)
	}
	if tag := header.Get("Etag"); decoded != nil && strings.HasPrefix(tag, `"`) {
		header.Set("Etag", "W/"+tag)
	}
	in := io.Reader(body)
	if decoded != nil {
		in = decoded
	}
	return &scrubbed{s.Scrubber().Reader(in), decoded, body}, nil
}

type scrubbed struct {
	io.Reader
	decoded io.Closer // may be nil
	body    io.Closer
}

func (s *scrubbed) Close() error {
	if s.decoded != nil {
		_ = s.decoded.Close() // gives its memory back; there is nothing to lose in reading
	}
	return s.body.Close()
}
