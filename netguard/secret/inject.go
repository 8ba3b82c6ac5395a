package secret

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Head is what Inject looks at and changes: a request's header (or its
// trailer, with Path and Query empty).
type Head struct {
	Header http.Header
	Path   string // as on the wire
	Query  string // as on the wire, without the question mark
}

// Use is what became of placeholders in a request.
type Use struct {
	Injected []string // secrets that were put in, by name, sorted
	// Kept are placeholders that go out as they are, because the secret is for
	// this host but not for this part of a request: the host will refuse them, and the
	// agent should be told.
	Kept []Kept
	// RangeRemoved says that the request asked for a part and now asks for all.
	RangeRemoved bool
}

// Kept is a placeholder that was not replaced.
type Kept struct {
	Name  string
	Where string
}

// Inject replaces placeholders in a request's head by the values of the secrets
// that its target may have: in header values, within Basic credentials, and, if the
// secret says so, in the query and the path. A placeholder in any other encoding, or
// of a secret that is not for the target, is found too: the latter gives a
// [*LeakError], and any error leaves the head as it was.
//
// A request to a host that may have a secret loses its Range and If-Range: asked for in
// small enough parts, an answer would give away a value that only shows as a whole.
func (s *Set) Inject(ctx context.Context, t Target, h *Head) (Use, error) {
	var use Use
	if s.Empty() {
		return use, nil
	}
	next := Head{Header: make(http.Header, len(h.Header)), Path: h.Path, Query: h.Query}
	for name, values := range h.Header {
		where := "header " + name
		if _, err := s.look(t, "", where, name, &use, nil); err != nil {
			return Use{}, err
		}
		changed := slices.Clone(values)
		for i, v := range values {
			text, err := s.header(ctx, t, where, name, v, &use)
			if err != nil {
				return Use{}, err
			}
			changed[i] = text
		}
		next.Header[name] = changed
	}
	var err error
	if next.Path, err = s.look(t, InPath, "path", h.Path, &use, s.escaped(ctx, url.PathEscape)); err != nil {
		return Use{}, err
	}
	if next.Query, err = s.look(t, InQuery, "query", h.Query, &use, s.escaped(ctx, url.QueryEscape)); err != nil {
		return Use{}, err
	}
	if slices.ContainsFunc(s.secrets, func(h held) bool { return h.bound(t) }) && next.Header.Get("Range") != "" {
		next.Header.Del("Range")
		next.Header.Del("If-Range")
		use.RangeRemoved = true
	}
	slices.Sort(use.Injected)
	use.Injected = slices.Compact(use.Injected)
	for name := range h.Header {
		if _, ok := next.Header[name]; !ok {
			delete(h.Header, name)
		}
	}
	for name, values := range next.Header {
		h.Header[name] = values
	}
	h.Path, h.Query = next.Path, next.Query
	return use, nil
}

// header replaces in one header value, and in Basic credentials what they encode.
func (s *Set) header(ctx context.Context, t Target, where, name, value string, use *Use) (string, error) {
	put := func(i int) (string, error) {
		v, err := s.value(ctx, i)
		if err == nil && strings.ContainsAny(v, "\r\n") {
			return "", fmt.Errorf("the secret %s has several lines and cannot stand in a header", s.secrets[i].spec.Name)
		}
		return v, err
	}
	if n := http.CanonicalHeaderKey(name); n == "Authorization" || n == "Proxy-Authorization" {
		scheme, credentials, _ := strings.Cut(value, " ")
		if plain, ok := decodeBasic(credentials); ok && strings.EqualFold(scheme, "Basic") {
			changed, err := s.look(t, InHeader, where, plain, use, put)
			if err != nil {
				return value, err
			}
			if changed != plain {
				return scheme + " " + base64.StdEncoding.EncodeToString([]byte(changed)), nil
			}
		}
	}
	return s.look(t, InHeader, where, value, use, put)
}

// decodeBasic reads credentials as lenient servers do: with or without padding,
// in either alphabet.
func decodeBasic(s string) (string, bool) {
	s = strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(strings.TrimSpace(s), "="))
	b, err := base64.RawStdEncoding.DecodeString(s)
	return string(b), err == nil && len(b) > 0
}

func (s *Set) escaped(ctx context.Context, escape func(string) string) func(int) (string, error) {
	return func(i int) (string, error) {
		v, err := s.value(ctx, i)
		return escape(v), err
	}
}

// look finds placeholders in a text. Those that must not go to the target are an
// error; those that stand there as they are and are for this place are
// replaced by what put returns; the others are noted as kept.
func (s *Set) look(t Target, place Place, where, text string, use *Use, put func(int) (string, error)) (string, error) {
	var err error
	var plain []int // secrets to be replaced
	scan := scanner{a: s.find, hit: func(p *pattern, _, _ int64, escaped bool) {
		h := &s.secrets[p.secret]
		if err == nil {
			err = h.leak(t, where)
		}
		switch {
		case err != nil:
		case p.form == formRaw && place != "" && h.in(place) && strings.Contains(text, h.placeholder):
			if !slices.Contains(plain, p.secret) {
				plain = append(plain, p.secret)
			}
		default:
			kept := Kept{h.spec.Name, where}
			if !slices.Contains(use.Kept, kept) {
				use.Kept = append(use.Kept, kept)
			}
		}
	}}
	scan.scan([]byte(text))
	scan.finish()
	if err != nil {
		return text, err
	}
	for _, i := range plain {
		value, err := put(i)
		if err != nil {
			return text, err
		}
		text = strings.ReplaceAll(text, s.secrets[i].placeholder, value)
		use.Injected = append(use.Injected, s.secrets[i].spec.Name)
	}
	return text, nil
}
