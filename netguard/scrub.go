package netguard

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
)

// scrub takes secrets out of an answer: all of the session's, whatever the host. A server
// that got one may have handed it on to another. With no secrets nothing is touched,
// and compressed answers pass as they are.
func (x *exchange) scrub(resp *http.Response) error {
	s := x.p.secrets
	if s.Empty() {
		return nil
	}
	s.ScrubHeader(resp.Header)
	if !hasBody(x.r.Method, resp.StatusCode) {
		return nil
	}
	body, err := s.ResponseBody(x.ctx, resp.StatusCode, resp.Header, resp.Body)
	if err != nil {
		return err
	}
	resp.Body = body
	return nil
}

// measure reads a short answer to its end, so that its Content-Length can be told: a
// value that stands there with escapes is longer than the placeholder without. A long
// answer keeps the length that was announced, and breaks off in that rare case.
func (x *exchange) measure(resp *http.Response) error {
	n, err := strconv.ParseInt(resp.Header.Get("Content-Length"), 10, 64)
	if err != nil || n > webBuffer || x.p.secrets.Empty() {
		return nil
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	resp.Header.Set("Content-Length", strconv.Itoa(len(text)))
	resp.Body = struct {
		io.Reader
		io.Closer
	}{bytes.NewReader(text), resp.Body}
	return nil
}

// scrubText takes secrets out of what is said about a request.
func (p *proxy) scrubText(text string) string { return p.secrets.ScrubText(text) }
