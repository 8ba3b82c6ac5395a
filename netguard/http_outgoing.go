package netguard

import (
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"

	"github.com/gondolin-go/gondolin/netguard/secret"
)

// hopByHop are the fields that are about one connection only (RFC 9110, 7.6.1, and
// what clients send to proxies).
var hopByHop = []string{
	"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings",
}

// stripHops removes them, and those that Connection names.
func stripHops(h http.Header) {
	for _, value := range h["Connection"] {
		for name := range strings.SplitSeq(value, ",") {
			if name = textproto.TrimString(name); name != "" {
				h.Del(name)
			}
		}
	}
	for _, name := range hopByHop {
		h.Del(name)
	}
}

// outgoing makes the server's request of the guest's.
func (x *exchange) outgoing() (*http.Request, *refusal) {
	r := x.r
	out := &http.Request{
		Method: r.Method, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		URL: x.url(), Host: x.hostPort(), Header: r.Header.Clone(), ContentLength: r.ContentLength,
	}
	out = out.WithContext(x.ctx)
	h := out.Header
	trailers := hasToken(h["Te"], "trailers")
	stripHops(h)
	h.Del("Host")
	if trailers {
		h.Set("Te", "trailers") // gRPC servers insist on it
	}
	if x.socket {
		h.Set("Connection", "Upgrade")
		h.Set("Upgrade", "websocket")
	}
	if h.Get("User-Agent") == "" {
		h.Set("User-Agent", "") // net/http would put its own
	}
	if !x.p.secrets.Empty() {
		plainEncodings(h)
	}
	if ref := x.hookRequest(out); ref != nil {
		return nil, ref
	}
	if ref := x.inject(out); ref != nil {
		return nil, ref
	}
	return out, x.attach(out)
}

// plainEncodings lets nothing be negotiated that answers could not be looked into
// for secrets: not within messages at all, and around them what can be decoded.
func plainEncodings(h http.Header) {
	if values := h.Values("Accept-Encoding"); len(values) > 0 {
		h.Set("Accept-Encoding", secret.AcceptEncoding(strings.Join(values, ", ")))
	}
	h.Del("Sec-Websocket-Extensions")
	if h.Get("Grpc-Accept-Encoding") != "" {
		h.Set("Grpc-Accept-Encoding", "identity")
	}
}

// hookRequest lets the program see and change the request. Where it goes is not
// the hook's to say; what it makes of the rest is what the policy judges for each
// address, and what is tested for placeholders.
func (x *exchange) hookRequest(out *http.Request) *refusal {
	hook := x.p.hooks.OnRequest
	if hook == nil {
		return nil
	}
	before := *out.URL
	host := out.Host
	out.Body = x.r.Body
	out.Trailer = x.r.Trailer
	if err := guardHook(func() error { return hook(x.ctx, out) }); err != nil {
		return &refusal{status: http.StatusForbidden, rule: "hook", reason: err.Error(), remedy: "the program that set the hook decides"}
	}
	if out.URL == nil || out.Header == nil {
		return &refusal{status: http.StatusForbidden, rule: "hook", reason: "the hook left no request to send"}
	}
	if out.URL.Path != before.Path || out.URL.RawPath != before.RawPath {
		x.path = out.URL.EscapedPath()
	}
	x.query = out.URL.RawQuery
	out.Host = host
	x.mu.Lock()
	defer x.mu.Unlock()
	x.call.HTTP.Method, x.call.HTTP.Path, x.call.HTTP.Query = out.Method, x.path, x.query
	x.call.HTTP.Header = out.Header.Clone()
	return nil
}

// guardHook makes an error of a panic: a hook that fails, fails closed.
func guardHook(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("a hook of the host's program failed: %v", v)
		}
	}()
	return f()
}

// inject puts secrets into the head. From here on the request is not shown to
// anybody but the server.
func (x *exchange) inject(out *http.Request) *refusal {
	path, query := x.path, x.query
	if !x.p.secrets.Empty() {
		head := secret.Head{Header: out.Header, Path: path, Query: query}
		use, err := x.p.secrets.Inject(x.ctx, x.target(), &head)
		if err != nil {
			return leaked(err)
		}
		x.note(use)
		path, query = head.Path, head.Query
	}
	out.URL = &url.URL{Scheme: x.url().Scheme, Host: x.hostPort(), RawQuery: query, ForceQuery: strings.HasSuffix(x.r.RequestURI, "?")}
	switch decoded, err := url.PathUnescape(path); {
	case !strings.HasPrefix(path, "//"):
		out.URL.Opaque = path // byte for byte
	case err == nil:
		out.URL.Path, out.URL.RawPath = decoded, path // two slashes of Opaque would be a host
	default:
		out.URL.Path = path
	}
	return nil
}

// note keeps the names of secrets that were put in, and tells of placeholders that
// were not.
func (x *exchange) note(use secret.Use) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, name := range use.Injected {
		if !slices.Contains(x.used, name) {
			x.used = append(x.used, name)
		}
	}
	for _, k := range use.Kept {
		x.kept = fmt.Sprintf("the placeholder of %s in the %s went out as it is: the secret is not for that part of a request", k.Name, k.Where)
	}
}

// attach gives the request its body, as a stream.
func (x *exchange) attach(out *http.Request) *refusal {
	in := x.r.Body
	if out.Body != nil {
		in = out.Body // a hook's
	}
	out.Body, out.Trailer = nil, nil
	if out.ContentLength == 0 || in == http.NoBody {
		out.ContentLength = 0
		return nil
	}
	b := &requestBody{x: x, in: in, left: out.ContentLength}
	source := io.Reader(guestReader{b})
	if !x.p.secrets.Empty() {
		body, err := x.p.secrets.RequestBody(x.ctx, x.target(), out.Header, source)
		if err != nil {
			return leaked(err)
		}
		b.secrets = body
		source = body
		if body.LengthUnknown {
			out.ContentLength = -1
			out.Header.Del("Content-Length")
		}
		if body.Decoded {
			out.Header.Del("Content-Encoding")
		}
	}
	b.out = source
	out.Body = b
	if len(x.r.Trailer) > 0 {
		out.Trailer = make(http.Header, len(x.r.Trailer))
		for name := range x.r.Trailer {
			out.Trailer[name] = nil
		}
		b.trailer = out.Trailer
	}
	// HTTP/1 guests may be answered while they still send.
	if x.conn.strict != nil {
		if err := x.ctl.EnableFullDuplex(); err != nil {
			return &refusal{status: http.StatusInternalServerError, failed: true, rule: "internal", reason: err.Error()}
		}
	}
	return nil
}
