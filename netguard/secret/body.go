package secret

import (
	"context"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Body is a request's body on its way out.
type Body struct {
	io.Reader
	// LengthUnknown says that what is read may be longer or shorter than what
	// the guest announced: send it without Content-Length.
	LengthUnknown bool
	// Decoded says that the body's Content-Encoding was undone: remove the header.
	Decoded bool

	use     Use
	decoder io.Closer // nil if nothing is decoded
}

// Close gives back what decoding needs, also while a Read is under way. The source is not closed.
func (b *Body) Close() error {
	if b.decoder == nil {
		return nil
	}
	return b.decoder.Close()
}

// Use says what became of the placeholders; it is complete at the end of the
// body.
func (b *Body) Use() Use {
	use := Use{Injected: slices.Clone(b.use.Injected), Kept: slices.Clone(b.use.Kept)}
	slices.Sort(use.Injected)
	return use
}

// RequestBody streams a body and replaces the placeholders of secrets that are
// for this target and for bodies, escaped as JSON or as a form if the header's
// Content-Type says that it is one. On a placeholder of another secret reading
// fails with a [*LeakError], before the last byte of it is given out: the request must
// be broken off then, not ended. ctx is for fetching values. A compressed body is
// decompressed; the caller closes the Body. It fails if the header's Content-Encoding is unknown.
//
// It serves for what goes out in an upgraded connection too, a message or a
// stream at a time, with an empty header.
func (s *Set) RequestBody(ctx context.Context, t Target, header http.Header, r io.Reader) (*Body, error) {
	b := &Body{Reader: r}
	if s.Empty() {
		return b, nil
	}
	if encoding := header.Values("Content-Encoding"); len(encoding) > 0 {
		decoded, err := s.decode(ctx, encoding, r)
		if err != nil {
			return nil, err
		}
		if decoded != nil {
			r, b.decoder, b.Decoded, b.LengthUnknown = decoded, decoded, true, true
		}
	}
	for i := range s.secrets {
		if h := &s.secrets[i]; h.in(InBody) && h.bound(t) && h.open(t) {
			b.LengthUnknown = true
		}
	}
	escape := escapeFor(header.Get("Content-Type"))
	f := &Filter{source: func() *automaton { return s.find }}
	f.react = func(p *pattern, _ bool) (string, bool, error) {
		h := &s.secrets[p.secret]
		if err := h.leak(t, "body"); err != nil {
			return "", false, err
		}
		if !h.in(InBody) || p.form != formRaw {
			if kept := (Kept{h.spec.Name, "body"}); !slices.Contains(b.use.Kept, kept) {
				b.use.Kept = append(b.use.Kept, kept)
			}
			return "", false, nil
		}
		v, err := s.value(ctx, p.secret)
		if err != nil {
			return "", false, err
		}
		if !slices.Contains(b.use.Injected, h.spec.Name) {
			b.use.Injected = append(b.use.Injected, h.spec.Name)
		}
		return escape(v), true, nil
	}
	b.Reader = f.Reader(r)
	return b, nil
}

// escapeFor is how a value is written in a body of a media type.
func escapeFor(contentType string) func(string) string {
	media, _, err := mime.ParseMediaType(contentType)
	switch {
	case err != nil:
	case media == "application/x-www-form-urlencoded":
		return url.QueryEscape
	case strings.HasSuffix(media, "/json") || strings.HasSuffix(media, "+json") || strings.HasSuffix(media, "ndjson"):
		return escapeJSON
	}
	return func(s string) string { return s }
}

func escapeJSON(v string) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return "" // not reached: every string has a JSON form
	}
	return strings.TrimSuffix(strings.TrimPrefix(strings.TrimSuffix(b.String(), "\n"), `"`), `"`)
}
