package netguard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// ruled is the decision that limits are counted by.
func (x *exchange) ruled() policy.Decision {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.decision
}

// answer passes the server's answer on.
func (x *exchange) answer(resp *http.Response) *refusal {
	defer resp.Body.Close()
	if ref := x.hookResponse(resp); ref != nil {
		return ref
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return x.serveSocket(resp)
	}
	if err := x.scrub(resp); err != nil {
		return &refusal{status: http.StatusBadGateway, failed: true, rule: "secret", reason: "the answer cannot be searched for secrets: " + err.Error(), remedy: "ask for it without that encoding"}
	}
	stripHops(resp.Header)
	// A server does not speak for the guard.
	resp.Header.Del(refusedHeader)
	resp.Header.Del(failedHeader)
	if !hasBody(x.r.Method, resp.StatusCode) {
		x.head(resp)
		return nil
	}
	if err := x.measure(resp); err != nil {
		return x.unsent(nil, err)
	}
	if err := x.stream(resp); err != nil {
		if !x.answered.Load() {
			return x.unsent(nil, err)
		}
		return x.cut(err)
	}
	x.trailers(resp)
	return nil
}

func hasBody(method string, status int) bool {
	return method != http.MethodHead && status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// hookResponse lets the program see and change the answer. It sees it as the
// server sent it; what it makes of it is scrubbed like any other.
func (x *exchange) hookResponse(resp *http.Response) *refusal {
	hook := x.p.hooks.OnResponse
	if hook == nil {
		return nil
	}
	// The request that went out holds secrets.
	resp.Request = x.r
	before := resp.StatusCode
	if err := guardHook(func() error { return hook(x.ctx, resp) }); err != nil {
		return &refusal{status: http.StatusForbidden, rule: "hook", reason: err.Error(), remedy: "the program that set the hook decides"}
	}
	switch upgraded := before == http.StatusSwitchingProtocols; {
	case resp.Body == nil, resp.Header == nil, resp.StatusCode < 200 && !upgraded, resp.StatusCode > 999,
		upgraded != (resp.StatusCode == http.StatusSwitchingProtocols):
		return &refusal{status: http.StatusForbidden, rule: "hook", reason: "the hook left no answer to pass on"}
	}
	return nil
}

// head writes status and header: the server's own, and nothing that net/http would add.
func (x *exchange) head(resp *http.Response) {
	x.answered.Store(true)
	x.event.Status = resp.StatusCode
	h := x.w.Header()
	maps.Copy(h, resp.Header)
	for _, name := range []string{"Date", "Content-Type"} {
		if _, ok := h[name]; !ok {
			h[name] = nil // net/http would make one
		}
	}
	if len(resp.Trailer) > 0 {
		h["Trailer"] = slices.Sorted(maps.Keys(resp.Trailer))
		if x.conn.strict != nil {
			h.Del("Content-Length") // only a chunked body of HTTP/1 has a trailer
		}
	}
	// After an upgrade that was not made it is not certain what the guest sends next.
	if x.socket {
		h.Set("Connection", "close")
	}
	x.w.WriteHeader(resp.StatusCode)
}

// stream sends the head and copies the body as it comes. What has come is passed on at
// once, but that a short answer goes out in one piece with its head: until its first
// bytes are there it can still turn into a refusal.
func (x *exchange) stream(resp *http.Response) error {
	declared := int64(-1)
	if n, err := strconv.ParseInt(resp.Header.Get("Content-Length"), 10, 64); err == nil {
		declared = n
	}
	// An answer over HTTP/2 that ends with its head has to end with it here too: gRPC takes
	// the head for the trailer then.
	ends := resp.ContentLength == 0
	if _, ok := resp.Header["Content-Length"]; ends && !ok && x.conn.strict == nil {
		resp.Header["Content-Length"] = nil // net/http would make one
	}
	if !ends && declared < 0 || declared > webBuffer {
		x.head(resp)
		if err := x.ctl.Flush(); err != nil {
			return guestGone{err}
		}
	}
	buf := takeBuffer(x.p.underWay())
	defer buf.give()
	decision := x.ruled()
	for total := int64(0); ; {
		n, err := resp.Body.Read(buf.b)
		total += int64(n)
		if errors.Is(err, io.EOF) && declared >= 0 && total < declared {
			err = io.ErrUnexpectedEOF
		}
		if n > 0 {
			if lerr := x.p.limiter.Bytes(decision, n); lerr != nil {
				return lerr
			}
		}
		if err != nil && !errors.Is(err, io.EOF) && !x.answered.Load() {
			return err
		}
		if werr := x.pass(resp, buf.b[:n], total != declared || x.p.crowded()); werr != nil {
			return werr
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// pass writes a piece of the body, and the head before the first.
func (x *exchange) pass(resp *http.Response, b []byte, flush bool) error {
	if !x.answered.Load() {
		x.head(resp)
	}
	if len(b) == 0 {
		return nil
	}
	if err := x.ctx.Err(); err != nil {
		return err // see breakOff
	}
	x.watch.touch()
	if _, err := x.w.Write(b); err != nil {
		return guestGone{err}
	}
	x.received.Add(int64(len(b)))
	if flush {
		if err := x.ctl.Flush(); err != nil {
			return guestGone{err}
		}
	}
	x.watch.touch()
	return nil
}

// guestGone is an error of writing to the guest.
type guestGone struct{ error }

func (e guestGone) Unwrap() error { return e.error }

// cut is an answer that breaks off. Its head has gone out, so that the guest only
// sees that it is not whole; why is for the record.
func (x *exchange) cut(err error) *refusal {
	var limit *policy.LimitError
	var gone guestGone
	ref := &refusal{failed: true, status: x.event.Status}
	cause := context.Cause(x.ctx)
	switch {
	case errors.As(err, &limit):
		ref = limited(limit)
	case errors.Is(cause, errChanged):
		ref.failed, ref.reason = false, errChanged.Error()
	case errors.Is(cause, errIdle):
		ref.reason = "the answer was broken off: " + errIdle.Error()
	case errors.As(err, &gone), cause != nil:
		ref.reason = "the guest broke the answer off"
	default:
		ref.reason = fmt.Sprintf("%s broke the answer off: %s", x.conn.host, short(err))
	}
	ref.status = x.event.Status
	return ref
}

// trailers come after the body. Those that were announced are written under their
// names, others as net/http wants them.
func (x *exchange) trailers(resp *http.Response) {
	x.p.secrets.ScrubHeader(resp.Trailer)
	h := x.w.Header()
	announced := h["Trailer"]
	for name, values := range resp.Trailer {
		if !slices.Contains(announced, name) {
			name = http.TrailerPrefix + name
		}
		h[name] = values
	}
}
