package netguard

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"slices"
	"sync"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// send gets the head of the server's answer.
func (x *exchange) send(out *http.Request) (*http.Response, *refusal) {
	var gate informal
	defer gate.close()
	out = out.WithContext(httptrace.WithClientTrace(out.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			gate.pass(func() { x.inform(code, http.Header(h)) })
			return nil
		},
	}))
	body, _ := out.Body.(*requestBody)
	for try := 0; ; try++ {
		resp, reused, err := x.roundTrip(out, try > 0)
		if err == nil {
			x.watch.touch()
			return resp, nil
		}
		// A server may close a connection that was idle just when the next request goes out.
		if try == 0 && reused && x.ctx.Err() == nil && repeatable(out) && (body == nil || !body.begun.Load()) {
			continue
		}
		return nil, x.unsent(body, err)
	}
}

// repeatable says whether a request does no more harm when sent twice
// (RFC 9110, 9.2.2).
func repeatable(r *http.Request) bool {
	return slices.Contains([]string{http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace}, r.Method)
}

func (x *exchange) roundTrip(out *http.Request, fresh bool) (resp *http.Response, reused bool, err error) {
	key := upstreamKey{host: x.conn.host, port: x.conn.port}
	switch {
	case x.conn.tls && x.socket:
		key.kind = upTLS1
	case x.conn.tls:
		key.kind = upTLS
	case x.r.ProtoMajor == 2:
		key.kind = upH2C
	}
	for {
		j := &addrJudge{x: x}
		c, reused, err := x.p.up.get(x.ctx, key, j.decide, fresh)
		if err != nil {
			again, err := j.settle(x.ctx, err)
			if again {
				continue
			}
			return nil, false, err
		}
		if c.addr.IsValid() {
			x.event.Addr = c.addr.String()
		}
		resp, err := c.cc.RoundTrip(out)
		return resp, reused, err
	}
}

// addrJudge remembers what was decided about the addresses of a name.
type addrJudge struct {
	x      *exchange
	mu     sync.Mutex
	denied *policy.Decision
	asks   *policy.Decision
}

func (j *addrJudge) decide(a netip.Addr) policy.Decision {
	d := j.x.at(a)
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case d.Verdict == policy.Ask && j.asks == nil:
		j.asks = &d
	case d.Verdict != policy.Ask && !d.Allowed() && j.denied == nil:
		j.denied = &d
	}
	return d
}

// settle makes a refusal of a connection that did not come about because of a
// decision. Where a human has to decide who was not asked before, it asks and
// says whether to try again.
func (j *addrJudge) settle(ctx context.Context, err error) (again bool, _ error) {
	j.mu.Lock()
	asks, denied := j.asks, j.denied
	j.mu.Unlock()
	if ctx.Err() != nil || !isBlocked(err) {
		return false, err
	}
	switch {
	case asks != nil:
		if ref := j.x.ask(*asks); ref != nil {
			return false, ref
		}
		return true, nil
	case denied != nil:
		return false, deniedError{*denied}
	}
	return false, err
}

// isBlocked tells a connection that no decision allowed from one that did not
// work. A Dialer other than the guard's own may not say.
func isBlocked(err error) bool {
	var d *DialError
	return !errors.As(err, &d) || d.Why == FailedBlocked
}

type deniedError struct{ policy.Decision }

func (e deniedError) Error() string { return e.Reason }

// unsent makes an answer of a failed attempt.
func (x *exchange) unsent(body *requestBody, err error) *refusal {
	var ref *refusal
	var no deniedError
	var limit *policy.LimitError
	switch cause := context.Cause(x.ctx); {
	case errors.As(err, &ref):
		return ref
	case errors.As(err, &no):
		return denied(no.Decision)
	case errors.As(err, &limit):
		return limited(limit)
	case errors.Is(cause, errIdle):
		return &refusal{status: http.StatusGatewayTimeout, failed: true, rule: "upstream", reason: "neither " + x.conn.host + " nor the guest sent anything for " + x.p.limits.Idle.String(), remedy: "try again"}
	case errors.Is(cause, errChanged):
		return denied(x.at(netip.Addr{}))
	}
	if x.conn.strict != nil {
		if v := x.conn.strict.broken(); v != nil {
			return malformed(v)
		}
	}
	if body != nil {
		if berr := body.failure(); berr != nil {
			return x.badBody(berr)
		}
	}
	return x.explain(err)
}

// badBody is a request whose body the guard stopped, or the guest.
func (x *exchange) badBody(err error) *refusal {
	var limit *policy.LimitError
	var v *violation
	switch {
	case errors.As(err, &limit):
		return limited(err)
	case errors.As(err, &v):
		return malformed(v)
	case x.ctx.Err() != nil || errors.Is(err, net.ErrClosed):
		return &refusal{status: http.StatusBadRequest, failed: true, rule: "protocol", reason: "the guest broke the request off"}
	}
	return leaked(err)
}

// inform passes an interim answer on, such as 103. That of 100 is net/http's own
// matter: it sends one when the server's makes it read the body.
func (x *exchange) inform(code int, h http.Header) {
	if code == http.StatusContinue || code == http.StatusSwitchingProtocols {
		return
	}
	h = h.Clone()
	x.p.secrets.ScrubHeader(h)
	stripHops(h)
	maps.Copy(x.w.Header(), h)
	x.w.WriteHeader(code)
	clear(x.w.Header())
}

// informal lets interim answers pass until the final one is there: net/http's
// transport calls from another goroutine.
type informal struct {
	mu   sync.Mutex
	over bool
}

func (g *informal) pass(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.over {
		f()
	}
}

func (g *informal) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.over = true
}
