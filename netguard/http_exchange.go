package netguard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gondolin-go/gondolin/netguard/policy"
	"github.com/gondolin-go/gondolin/netguard/secret"
)

// exchange is one request of the guest and its answer, on their walk:
//
//	checks -> policy -> human -> limits -> audit -> OnRequest -> secrets -> server
//	       -> OnResponse -> scrubbing -> guest
//
// Each step either lets it go on or gives a refusal, which is then the answer.
type exchange struct {
	p    *proxy
	conn *webConn
	w    http.ResponseWriter
	r    *http.Request
	ctl  *http.ResponseController

	ctx    context.Context
	cancel context.CancelCauseFunc
	watch  *idleWatch

	call   policy.Request // what is judged; final once judged is set
	socket bool           // a WebSocket
	path   string         // of the server's, as on the wire
	query  string

	mu       sync.Mutex
	decision policy.Decision
	approved []string // rules to which a human has said yes
	judged   bool
	used     []string // secrets put in
	kept     string   // what to do about a placeholder that went out as it is

	event    Event
	sent     atomic.Int64
	received atomic.Int64
	answered atomic.Bool // the head of the answer goes out
}

// Causes that end an exchange from outside.
var (
	errIdle    = errors.New("no byte came or went for too long")
	errChanged = errors.New("the policy has changed and does not allow the request any more")
)

// serveRequest is the handler of all guest-facing servers.
func (p *proxy) serveRequest(c *webConn, w http.ResponseWriter, r *http.Request) {
	x := &exchange{p: p, conn: c, w: w, r: r, ctl: http.NewResponseController(w)}
	x.ctx, x.cancel = context.WithCancelCause(r.Context())
	defer x.cancel(nil)
	x.watch = watchIdle(p.limits.Idle, func() { x.breakOff(errIdle) })
	defer x.watch.stop()
	x.event = Event{Time: time.Now(), Flow: c.flow.ID, Protocol: "http", Host: c.host, Port: c.port, Method: r.Method}
	if c.tls {
		x.event.Protocol = "https"
	}
	p.mu.Lock()
	p.active[x] = struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.active, x)
	}()

	leave, ref := p.enter()
	if leave == nil {
		panic(http.ErrAbortHandler)
	}
	defer leave()
	if ref == nil {
		ref = x.guarded(x.walk)
	}
	if ref != nil {
		ref.reason = p.scrubText(ref.reason)
		ref.event(&x.event)
	}
	whole := ref == nil
	if ref != nil && x.answered.CompareAndSwap(false, true) {
		// An HTTP/1 connection is not used on after a refusal that left a body unread.
		if c.strict != nil && (ref.status == http.StatusBadRequest || x.socket || c.strict.broken() != nil) {
			ref.last = true
		}
		_ = x.ctl.SetWriteDeadline(time.Now().Add(headTime)) // HTTP/2: the guest may have given no window
		whole = ref.write(w, &x.event) == nil && (!p.crowded() || x.ctl.Flush() == nil)
	}
	x.finish()
	if !whole {
		panic(http.ErrAbortHandler) // net/http's way to cut an answer off, so that the guest notices
	}
}

// guarded turns a panic on the walk into a refusal.
func (x *exchange) guarded(f func() *refusal) (ref *refusal) {
	defer func() {
		if v := recover(); v != nil {
			x.p.log.Error("panic while serving a request", "flow", x.conn.flow.ID, "panic", x.p.scrubText(fmt.Sprint(v)), "stack", string(debug.Stack()))
			ref = &refusal{status: http.StatusInternalServerError, failed: true, rule: "internal", reason: "the guard failed; the host's log says how"}
		}
	}()
	return f()
}

// finish records how it ended.
func (x *exchange) finish() {
	e := &x.event
	e.Sent, e.Received, e.Duration = x.sent.Load(), x.received.Load(), time.Since(e.Time)
	x.mu.Lock()
	e.Secrets, e.Remedy = slices.Clone(x.used), cmp.Or(e.Remedy, x.kept)
	x.mu.Unlock()
	x.p.record(*e)
}

// breakOff ends the exchange wherever it is. If its answer has not begun it can
// still be a refusal; stream looks at the context after it has set answered.
func (x *exchange) breakOff(cause error) {
	x.cancel(cause)
	past := time.Now().Add(-time.Second)
	// Of a connection that is gone there is nothing to break off.
	_ = x.ctl.SetReadDeadline(past)
	if x.answered.Load() {
		_ = x.ctl.SetWriteDeadline(past)
	}
}

func (x *exchange) walk() *refusal {
	for _, step := range []func() *refusal{x.check, x.judge, x.permit} {
		if ref := step(); ref != nil {
			return ref
		}
	}
	out, ref := x.outgoing()
	if ref != nil {
		return ref
	}
	resp, ref := x.send(out)
	if ref != nil {
		return ref
	}
	return x.answer(resp)
}

// check takes the request's facts, and refuses one that is not to the host to which
// the connection is: whichever of SNI, Host and :authority the server goes by, it is
// the one that the policy has judged.
func (x *exchange) check() *refusal {
	r, c := x.r, x.conn
	if c.strict != nil {
		if v := c.strict.next(); v != nil {
			x.event.Method = v.method
			x.event.Path, _, _ = strings.Cut(clipped(v.target), "?")
			return malformed(v)
		}
	}
	if r.Method == http.MethodConnect {
		return &refusal{status: http.StatusMethodNotAllowed, rule: "protocol", reason: "CONNECT is refused: it would carry what cannot be looked into", remedy: "connect to the server itself"}
	}
	target := r.RequestURI
	if c.strict == nil {
		if err := checkPath(r.Method, target); err != nil {
			return malformed(&violation{status: http.StatusBadRequest, reason: err.Error()})
		}
	} else if _, _, path, ok := splitAbsolute(target); ok && target[0] != '/' {
		target = path
	}
	x.path, x.query, _ = strings.Cut(target, "?")
	x.event.Path = x.path
	for _, name := range append(r.Header.Values("Host"), r.Host) {
		if err := x.sameHost(name); err != nil {
			return &refusal{status: http.StatusMisdirectedRequest, rule: "protocol", reason: err.Error(), remedy: "send each request on a connection to its own host"}
		}
	}
	x.socket = c.strict != nil && hasToken(r.Header["Connection"], "upgrade") && hasToken(r.Header["Upgrade"], "websocket")
	// Without what does not reach the server: Connection may name any field.
	judged := r.Header.Clone()
	stripHops(judged)
	x.call = policy.Request{
		Protocol: policy.HTTP, Host: c.host, Port: c.port,
		HTTP: policy.HTTPCall{Method: r.Method, Path: x.path, Query: x.query, Header: judged},
	}
	switch {
	case c.tls && x.socket:
		x.call.Protocol = policy.WSS
	case c.tls:
		x.call.Protocol = policy.HTTPS
	case x.socket:
		x.call.Protocol = policy.WS
	}
	x.event.Protocol = string(x.call.Protocol)
	return nil
}

func (x *exchange) sameHost(name string) error {
	host, port, err := splitHost(name)
	if err != nil {
		return fmt.Errorf("the request is for the host %q: %w", clipped(name), err)
	}
	if host.String() != x.conn.host && (!host.IsAddr() || host.Addr().Unmap().String() != x.conn.host) {
		return fmt.Errorf("the request is for the host %s, and the connection is to %s", host, x.conn.host)
	}
	if port != "" && port != fmt.Sprint(x.conn.port) {
		return fmt.Errorf("the request is for port %s, and the connection is to port %d", clipped(port), x.conn.port)
	}
	return nil
}

// splitHost reads a Host field or :authority.
func splitHost(s string) (host policy.Host, port string, err error) {
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") && (strings.Count(s, ":") == 1 || s[0] == '[') {
		s, port = s[:i], s[i+1:]
	}
	host, err = policy.ParseHost(s)
	return host, port, err
}

// judge asks the policy, the human if the policy says so, and the limits.
func (x *exchange) judge() *refusal {
	pol := x.p.policy()
	d := pol.Decide(x.call)
	x.event.Rule, x.event.Reason = d.Rule, d.Reason
	if d.Verdict == policy.Ask {
		if ref := x.ask(d); ref != nil {
			return ref
		}
		d.Verdict = policy.Allow
	}
	if !d.Allowed() {
		return denied(d)
	}
	x.mu.Lock()
	x.decision, x.judged = d, true
	x.mu.Unlock()
	if x.p.policy() != pol { // which policyChanged may have missed
		if d := x.at(netip.Addr{}); !d.Allowed() {
			return denied(d)
		}
	}
	if err := x.p.limiter.Request(d); err != nil {
		return limited(err)
	}
	return nil
}

// ask puts the decision to the human; the idle clock stands still meanwhile.
func (x *exchange) ask(d policy.Decision) *refusal {
	ref := denied(d)
	if x.p.asker == nil {
		ref.reason += ", and nobody can be asked"
		return ref
	}
	x.watch.pause()
	defer x.watch.resume()
	yes, err := x.p.asker.Ask(x.ctx, d)
	switch {
	case err != nil:
		ref.reason += ", and there was no answer: " + err.Error()
	case !yes:
		ref.reason += ", who said no"
	default:
		x.mu.Lock()
		defer x.mu.Unlock()
		x.approved = append(x.approved, d.Rule)
		return nil
	}
	return ref
}

// permit puts the decision on record before anything leaves.
func (x *exchange) permit() *refusal {
	x.event.Verdict = "allow"
	if err := x.p.recorder.Record(x.event); err != nil {
		x.p.log.Error("recording a decision", "flow", x.event.Flow, "err", err)
		return &refusal{status: http.StatusServiceUnavailable, rule: "audit", reason: "the decision could not be recorded, and what is not recorded does not happen", remedy: "the operator has to look after the audit record"}
	}
	return nil
}

// at judges the request once more for an address that it would go to.
func (x *exchange) at(addr netip.Addr) policy.Decision {
	x.mu.Lock()
	call, approved := x.call, slices.Clone(x.approved)
	x.mu.Unlock()
	call.Addr = addr
	d := x.p.policy().Decide(call)
	if d.Verdict == policy.Ask && slices.Contains(approved, d.Rule) {
		d.Verdict = policy.Allow
	}
	return d
}

// rejudge breaks the exchange off if the policy in force does not allow it.
func (x *exchange) rejudge() {
	x.mu.Lock()
	judged := x.judged
	x.mu.Unlock()
	if d := x.at(netip.Addr{}); judged && !d.Allowed() {
		x.breakOff(errChanged)
	}
}

// target is what secrets are bound to.
func (x *exchange) target() secret.Target {
	return secret.Target{Host: x.conn.host, Port: x.conn.port, TLS: x.conn.tls}
}

// url is the request's for hooks and net/http: the target as on the wire.
func (x *exchange) url() *url.URL {
	u := &url.URL{Scheme: "http", Host: x.hostPort(), RawQuery: x.query, ForceQuery: strings.HasSuffix(x.r.RequestURI, "?")}
	if x.conn.tls {
		u.Scheme = "https"
	}
	if path, err := url.PathUnescape(x.path); err == nil {
		u.Path, u.RawPath = path, x.path
	} else {
		u.Path = x.path
	}
	return u
}

// hostPort is the canonical host, with the port where it is not the scheme's own.
func (x *exchange) hostPort() string {
	host := x.conn.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if x.conn.tls && x.conn.port == 443 || !x.conn.tls && x.conn.port == 80 {
		return host
	}
	return fmt.Sprintf("%s:%d", host, x.conn.port)
}
