package policy

import (
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// maxPath bounds a request path, in bytes. Servers commonly take 8 KiB.
const maxPath = 64 << 10

// readings returns every way in which a server may read a path as it stands on
// the wire: percent-decoded once and twice, with dot segments and double slashes
// resolved, with backslashes as slashes, with path parameters (";x") cut off. Most
// paths have one reading. A rule that lets through must match all of
// them, one that stops any.
func readings(raw string) ([]string, error) {
	switch {
	case raw == "*": // OPTIONS * (RFC 9110, 9.3.7)
		return []string{raw}, nil
	case len(raw) > maxPath:
		return nil, fmt.Errorf("the path has %d bytes: at most %d are looked at", len(raw), maxPath)
	case raw == "" || raw[0] != '/':
		return nil, errors.New("the path does not begin with a slash")
	}
	if isPlain(raw) {
		return []string{raw}, nil
	}
	var forms []string
	add := func(s string) {
		if !slices.Contains(forms, s) {
			forms = append(forms, s)
		}
	}
	decoded := raw
	for range 2 {
		decoded = unescape(decoded)
		slashed := strings.ReplaceAll(decoded, `\`, "/")
		add(decoded)
		add(resolve(slashed))
		add(resolve(cutParameters(slashed)))
		if !strings.Contains(decoded, "%") {
			break
		}
	}
	for _, f := range forms {
		if strings.ContainsFunc(f, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return nil, errors.New("the path holds a control character")
		}
	}
	return forms, nil
}

// isPlain says whether a path has one reading only.
func isPlain(p string) bool {
	for i := range len(p) {
		switch c := p[i]; {
		case c == '%' || c == '\\' || c == ';' || c < ' ' || c == 0x7f:
			return false
		case c == '/' && i+1 < len(p) && (p[i+1] == '/' || p[i+1] == '.'):
			return false
		}
	}
	return true
}

// unescape decodes percent escapes and leaves what is none, as servers do.
func unescape(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if decoded, err := hex.AppendDecode(b, []byte(s[i+1:i+3])); err == nil {
				b = decoded
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

// resolve removes dot segments and double slashes, and keeps a trailing slash.
func resolve(p string) string {
	clean := path.Clean("/" + p)
	if clean != "/" && (strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") || strings.HasSuffix(p, "/..")) {
		clean += "/"
	}
	return clean
}

func cutParameters(p string) string {
	if !strings.Contains(p, ";") {
		return p
	}
	segments := strings.Split(p, "/")
	for i, s := range segments {
		segments[i], _, _ = strings.Cut(s, ";")
	}
	return strings.Join(segments, "/")
}

// pathSet matches paths against globs. Without globs it matches every path.
type pathSet struct {
	globs []string
	stops bool // of a rule that stops: any reading counts, and case does not
}

func (s pathSet) match(forms []string) bool {
	if len(s.globs) == 0 {
		return true
	}
	for _, f := range forms {
		if s.stops {
			f = strings.ToLower(f)
		}
		hit := slices.ContainsFunc(s.globs, func(g string) bool {
			ok, err := doublestar.Match(g, f)
			return ok || err != nil && s.stops
		})
		if hit == s.stops {
			return hit
		}
	}
	return !s.stops
}
