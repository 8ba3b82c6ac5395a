package netguard

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

const (
	// maxFields bounds the header fields of one HTTP/1 message, and those of a
	// trailer. Browsers send some 20, proxies commonly take 100.
	maxFields = 256
	// chunked as a framing's length: the body says itself where it ends.
	chunked = -1
)

// violation is why bytes of the guest are no HTTP that two readers are sure to
// understand in the same way.
type violation struct {
	status int
	reason string
	method string // as far as they could be read
	target string
}

func (v *violation) Error() string { return v.reason }

// framing is what a valid head says about the bytes after it.
type framing struct {
	length  int64 // of the body in bytes, or chunked
	upgrade bool  // a WebSocket is asked for: nothing may follow before the answer
}

// checkHead judges the head of an HTTP/1 request, from its request line to its empty
// line, more strictly than RFC 9112 has to: whatever has been used to smuggle a request
// past a proxy, and is not sent by an honest client, is refused.
func checkHead(head []byte, tls bool) (framing, *violation) {
	line, rest, _ := bytes.Cut(head, []byte("\r\n"))
	v := &violation{status: http.StatusBadRequest}
	fail := func(format string, args ...any) (framing, *violation) {
		v.reason = fmt.Sprintf(format, args...)
		return framing{}, v
	}
	part := strings.Split(string(line), " ")
	if len(part) != 3 || !isHTTPToken(part[0]) || part[1] == "" {
		return fail("the request line is not a method, a target and a version with one space between them")
	}
	v.method, v.target = part[0], part[1]
	if part[2] != "HTTP/1.1" && part[2] != "HTTP/1.0" {
		v.status = http.StatusHTTPVersionNotSupported
		return fail("the version %q is neither HTTP/1.1 nor HTTP/1.0", clipped(part[2]))
	}
	if v.method == http.MethodConnect {
		v.status = http.StatusMethodNotAllowed
		return fail("CONNECT is refused: it would carry what cannot be looked into")
	}
	f, err := checkFields(rest)
	if err != nil {
		return fail("%v", err)
	}
	if len(f.host) != 1 || f.host[0] == "" {
		return fail("the request has %d Host fields with a value, and needs exactly one", nonEmpty(f.host))
	}
	if i := strings.IndexFunc(f.host[0], notOfHost); i >= 0 {
		return fail("the Host field holds the byte %#02x: a name of another script is written as xn--", f.host[0][i])
	}
	if err := checkTarget(v.method, v.target, f.host[0], tls); err != nil {
		return fail("%v", err)
	}
	out, err := f.framing(part[2] == "HTTP/1.1")
	if err != nil {
		return fail("%v", err)
	}
	if out.upgrade && (v.method != http.MethodGet || part[2] != "HTTP/1.1" || out.length != 0) {
		return fail("a WebSocket begins with a GET of HTTP/1.1 without a body")
	}
	return out, nil
}

func nonEmpty(values []string) (n int) {
	for _, v := range values {
		if v != "" {
			n++
		}
	}
	return n
}

// checkTarget takes origin-form, "*" of OPTIONS, and absolute-form if it names the
// same host as the Host field (RFC 9112, 3.2).
func checkTarget(method, target, host string, tls bool) error {
	scheme, authority, _, ok := splitAbsolute(target)
	switch {
	case target[0] == '/', target == "*":
		return checkPath(method, target)
	case checkBytes(target) != nil:
		return checkBytes(target)
	case !ok:
		return fmt.Errorf("the request target is neither a path nor a URL")
	case scheme == "https" != tls || scheme != "https" && scheme != "http":
		return fmt.Errorf("the request target has the scheme %q, which this connection is not", clipped(scheme))
	case strings.Contains(authority, "@"):
		return fmt.Errorf("the request target holds user information")
	case !strings.EqualFold(authority, host):
		return fmt.Errorf("the request target names the host %q, and the Host field %q", clipped(authority), clipped(host))
	}
	return nil
}

// checkPath takes a path, or "*" of OPTIONS; in HTTP/2 there is nothing else
// (RFC 9113, 8.3.1).
func checkPath(method, target string) error {
	switch {
	case target == "*" && method == http.MethodOptions:
		return nil
	case !strings.HasPrefix(target, "/"):
		return fmt.Errorf("the request target is not a path")
	}
	return checkBytes(target)
}

func checkBytes(target string) error {
	for i := range len(target) {
		if c := target[i]; c <= ' ' || c == 0x7f || c == '#' {
			return fmt.Errorf("the request target holds the byte %#02x, which must be percent-encoded", c)
		}
	}
	if _, err := url.ParseRequestURI(target); err != nil {
		return fmt.Errorf("the request target is malformed: %w", err)
	}
	return nil
}

// splitAbsolute takes an absolute-form target apart; path begins with a slash.
func splitAbsolute(target string) (scheme, authority, path string, ok bool) {
	scheme, rest, ok := strings.Cut(target, "://")
	if !ok {
		return "", "", "", false
	}
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	authority, path = rest[:end], rest[end:]
	if path == "" || path[0] == '?' {
		path = "/" + path
	}
	return strings.ToLower(scheme), authority, path, true
}

// headFields are those that say where a message ends and for whom it is.
type headFields struct {
	host, length, encoding, connection, upgrade []string
}

// checkFields judges the field lines of a head or trailer, which end with an empty
// line.
func checkFields(b []byte) (*headFields, error) {
	f := &headFields{}
	for n := 0; ; n++ {
		line, rest, ok := bytes.Cut(b, []byte("\r\n"))
		switch {
		case !ok:
			return nil, fmt.Errorf("the head does not end with an empty line")
		case len(line) == 0:
			return f, nil
		case n >= maxFields:
			return nil, fmt.Errorf("there are more than %d header fields", maxFields)
		case line[0] == ' ' || line[0] == '\t':
			return nil, fmt.Errorf("a header field is folded over two lines")
		}
		name, value, ok := strings.Cut(string(line), ":")
		if !ok || !isHTTPToken(name) {
			return nil, fmt.Errorf("%q is not the name of a header field: letters, digits and hyphens up to the colon", clipped(name))
		}
		value = strings.Trim(value, " \t")
		if i := strings.IndexFunc(value, isControl); i >= 0 {
			return nil, fmt.Errorf("the header field %s holds the control character %#02x", clipped(name), value[i])
		}
		switch strings.ToLower(name) {
		case "host":
			f.host = append(f.host, value)
		case "content-length":
			f.length = append(f.length, value)
		case "transfer-encoding":
			f.encoding = append(f.encoding, value)
		case "connection":
			f.connection = append(f.connection, value)
		case "upgrade":
			f.upgrade = append(f.upgrade, value)
		}
		b = rest
	}
}

func (f *headFields) framing(http11 bool) (framing, error) {
	out := framing{upgrade: hasToken(f.connection, "upgrade") && hasToken(f.upgrade, "websocket")}
	if len(f.encoding) > 0 {
		switch {
		case len(f.length) > 0:
			return out, fmt.Errorf("the request has both Content-Length and Transfer-Encoding")
		case !http11:
			return out, fmt.Errorf("a request of HTTP/1.0 has no Transfer-Encoding")
		case len(f.encoding) > 1 || !strings.EqualFold(f.encoding[0], "chunked"):
			return out, fmt.Errorf("the only Transfer-Encoding that is taken is chunked, once")
		}
		out.length = chunked
		return out, nil
	}
	if len(f.length) == 0 {
		return out, nil
	}
	if len(f.length) > 1 {
		return out, fmt.Errorf("the request has %d Content-Length fields", len(f.length))
	}
	digits := f.length[0]
	if len(digits) == 0 || len(digits) > 18 || strings.Trim(digits, "0123456789") != "" {
		return out, fmt.Errorf("the Content-Length %q is no number of at most 18 digits", clipped(digits))
	}
	for _, c := range digits {
		out.length = out.length*10 + int64(c-'0')
	}
	return out, nil
}

func hasToken(values []string, token string) bool {
	for _, v := range values {
		for item := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.Trim(item, " \t"), token) {
				return true
			}
		}
	}
	return false
}

// notOfHost tells what no name, address or port holds (net/http takes some of it).
func notOfHost(r rune) bool {
	return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-._:[]", r))
}

func isControl(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

// isHTTPToken is RFC 9110, 5.6.2.
func isHTTPToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return s != ""
}

// clipped shortens what the guest sent, so that a message stays one.
func clipped(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}
