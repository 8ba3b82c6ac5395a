package netguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"time"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// admitFlow decides on a SYN. It returns nil for one that gets an RST.
func (g *Guard) admitFlow(dst netip.AddrPort) *openFlow {
	names, err := g.names.take(dst.Addr())
	if err != nil {
		g.refuse(Event{Protocol: string(policy.TCP), Host: dst.Addr().String(), Port: dst.Port(), Reason: err.Error(), Remedy: "look the name up again"})
		return nil
	}
	f := g.flows.add(dst, names)
	if f == nil {
		g.names.release(names)
		g.refuse(Event{
			Protocol: string(policy.TCP), Host: hostOf(dst.Addr(), names), Port: dst.Port(),
			Reason: fmt.Sprintf("%d connections are open, and that is the limit", g.o.Limits.Flows), Remedy: "close some",
		})
		return nil
	}
	// After add, so that a policy that comes now finds the flow or is the one asked.
	if dst.Port() != dnsPort {
		if d := g.possible(f); d.Verdict == policy.Deny {
			g.refuseFlow(f, d)
			g.dropFlow(f)
			return nil
		}
	}
	return f
}

// dropFlow forgets a flow.
func (g *Guard) dropFlow(f *openFlow) {
	g.flows.remove(f)
	g.names.release(f.names)
}

// possible judges what is known of a flow. Denied is what none of its possible
// names allows.
func (g *Guard) possible(f *openFlow) policy.Decision {
	p, protos := g.Policy(), f.protocols()
	var first policy.Decision
	for i, host := range f.hosts() {
		d := p.Possible(host, f.Dst.Port(), protos...)
		if d.Verdict != policy.Deny {
			return d
		}
		if i == 0 {
			first = d
		}
	}
	return first
}

// serveFlow sees a connected flow through.
func (g *Guard) serveFlow(f *openFlow) {
	defer func() {
		if p := recover(); p != nil {
			g.o.Log.Error("serving a flow panicked", "flow", f.ID, "panic", p, "stack", string(debug.Stack()))
			f.abort()
		}
		f.mu.Lock()
		f.served = true
		f.mu.Unlock()
		f.cancel()
	}()
	if f.Dst.Port() == dnsPort {
		g.dns.serveTCP(f.ctx, f.conn)
		return
	}
	if err := g.onFlow(f); err != nil {
		g.refuseFlow(f, policy.Decision{Reason: err.Error()})
		f.abort()
		return
	}
	if m, ok := g.mapped(f); ok {
		g.serveMapped(f, m)
		return
	}
	g.dispatch(f)
}

// onFlow calls the hook. What fails, fails closed.
func (g *Guard) onFlow(f *openFlow) (err error) {
	if g.o.Hooks.OnFlow == nil {
		return nil
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the hook for flows panicked: %v", p)
		}
	}()
	if err := g.o.Hooks.OnFlow(f.ctx, &f.Flow); err != nil {
		return fmt.Errorf("the hook for flows refused it: %w", err)
	}
	return nil
}

// dispatch finds out what is spoken and calls the handler. A handler gets a connection that
// gives the sniffed bytes again; it closes it, or leaves that to the guard once it
// returns. Its context ends when the link does or the policy no longer allows the flow.
func (g *Guard) dispatch(f *openFlow) {
	// Where SSH alone is possible there is nothing to find out, and some clients wait for the
	// server's banner.
	d := g.possible(f)
	if d.Verdict != policy.Deny && len(d.Protocols) == 1 && d.Protocols[0] == policy.SSH {
		f.identify("")
		f.setProtocols(policy.SSH)
		g.serveSSH(f.ctx, &f.Flow, f.conn)
		return
	}
	s, err := sniff(f.conn, g.o.Limits.Sniff)
	if err != nil {
		f.identify("")
		if errors.Is(err, errSilent) {
			return // opened and closed again without a word: a port that was looked at
		}
		g.refuseFlow(f, policy.Decision{Reason: err.Error(), Remedy: "speak HTTP, TLS or SSH, or ask the operator to map this port"})
		f.abort()
		return
	}
	f.identify(s.host())
	switch s.protocol {
	case sniffedHTTP:
		f.setProtocols(policy.HTTP, policy.WS)
		// To it go flows as well to which the policy denies plain HTTP: it answers with its
		// 403, which says more than a reset.
		g.web.Load().serveHTTP(f.ctx, &f.Flow, s.conn)
	case sniffedTLS:
		f.setProtocols(policy.HTTPS, policy.WSS)
		if g.still(f) {
			g.web.Load().serveTLS(f.ctx, &f.Flow, s.conn)
		}
	case sniffedSSH:
		f.setProtocols(policy.SSH)
		if g.still(f) {
			g.serveSSH(f.ctx, &f.Flow, s.conn)
		}
	}
}

// still asks again now that the protocol is known, and resets what is denied.
func (g *Guard) still(f *openFlow) bool {
	d := g.possible(f)
	if d.Verdict != policy.Deny {
		return true
	}
	g.refuseFlow(f, d)
	f.abort()
	return false
}

// refuseFlow records that a flow is refused.
func (g *Guard) refuseFlow(f *openFlow, d policy.Decision) {
	proto := policy.TCP
	if p := f.protocols(); len(p) > 0 {
		proto = p[0]
	}
	e := Event{
		Flow: f.ID, Protocol: string(proto), Host: f.hosts()[0], Port: f.Dst.Port(),
		Rule: d.Rule, Reason: d.Reason, Remedy: d.Remedy, Duration: time.Since(f.began),
	}
	g.refuse(e)
}

// refuse records a refusal. It stands even if that fails.
func (g *Guard) refuse(e Event) {
	e.Verdict = "deny"
	if err := g.recorder.Record(e); err != nil {
		g.o.Log.Error("recording a refusal", "error", err, "host", e.Host, "reason", e.Reason)
	}
}

// ask settles a decision that a human has to take; of others it says whether they allow.
func (g *Guard) ask(ctx context.Context, d policy.Decision) (policy.Decision, bool) {
	switch {
	case d.Verdict == policy.Allow:
		return d, true
	case d.Verdict != policy.Ask:
		return d, false
	case g.o.Asker == nil:
		d.Reason += ", and there is no way to ask one"
		return d, false
	}
	ok, err := g.o.Asker.Ask(ctx, d)
	switch {
	case err != nil:
		d.Reason = fmt.Sprintf("%s, and asking failed: %v", d.Reason, err)
	case !ok:
		d.Reason += ", who did not"
	}
	return d, ok && err == nil
}

// resetConn resets the guest's connection under conn, where there is one; otherwise it
// closes conn. For handlers.
func resetConn(conn net.Conn) {
	for {
		switch c := conn.(type) {
		case *guestConn:
			c.abort()
			return
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			_ = conn.Close()
			return
		}
	}
}

func hostOf(a netip.Addr, names []string) string {
	if len(names) > 0 {
		return names[0]
	}
	return a.String()
}
