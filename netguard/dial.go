package netguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

const (
	lookTimeout = 10 * time.Second // for the host's resolver
	maxLooks    = 32               // lookups at once, those of flows and of the guest's DNS together

	dialTimeout = 15 * time.Second       // for a target, all its addresses together
	tryNext     = 250 * time.Millisecond // until the next address is tried as well (RFC 8305, 5)
	maxTries    = 6                      // addresses of a name that are connected to
	maxJudged   = 64                     // addresses of a name that are looked at
)

// hostDialer connects from the host. It is safe for concurrent use and starts nothing that
// outlives a call.
type hostDialer struct {
	up    Upstream
	looks chan struct{} // a token each
}

var _ Dialer = (*hostDialer)(nil)

// NewDialer returns the Dialer that a Guard uses when Options names none, for those that
// wrap it.
func NewDialer(up Upstream) Dialer { return newHostDialer(up) }

func newHostDialer(up Upstream) *hostDialer {
	return &hostDialer{up: up, looks: make(chan struct{}, maxLooks)}
}

// Dial implements Dialer. The name is resolved once; each of its addresses is judged, and
// the connection goes to one that was allowed, by its number. Without t.Decide what
// policy.Blocked names is closed. Where a proxy has to be used it resolves the
// name, so that only the name can be judged, or the address that stands in its place.
// Its error is a *DialError.
func (d *hostDialer) Dial(ctx context.Context, t Target) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, dialTimeout, errDialTimeout)
	defer cancel()
	fail := func(why DialFailure, err error) (net.Conn, error) {
		return nil, &DialError{Host: t.Host, Port: t.Port, Why: why, Err: err}
	}
	host, err := policy.ParseHost(t.Host)
	if err != nil {
		return fail(FailedLookup, err)
	}
	proxy, err := d.proxyFor(host, t.Port)
	if err != nil {
		return fail(FailedProxy, err)
	}
	if proxy != nil {
		if host.IsAddr() {
			if _, err := judge(t, []netip.Addr{host.Addr()}); err != nil {
				return nil, err
			}
		}
		conn, err := d.dialProxy(ctx, proxy, host, t.Port)
		if err != nil {
			return fail(FailedProxy, fmt.Errorf("through the proxy %s: %w", proxy.Redacted(), err))
		}
		return conn, nil
	}
	addrs := []netip.Addr{host.Addr()}
	if !host.IsAddr() {
		if addrs, err = d.look(ctx, host.String()); err != nil {
			return fail(lookFailure(err), err)
		}
	}
	allowed, err := judge(t, addrs)
	if err != nil {
		return nil, err
	}
	conn, err := race(ctx, allowed, t.Port)
	if err != nil {
		return fail(dialFailure(err), err)
	}
	return conn, nil
}

// look resolves a name on the host. Upstream.Hosts comes first.
func (d *hostDialer) look(ctx context.Context, name string) ([]netip.Addr, error) {
	if a, ok := d.up.Hosts[name]; ok {
		return []netip.Addr{a}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	select {
	case d.looks <- struct{}{}:
		defer func() { <-d.looks }()
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting to look up %s: %w", name, context.Cause(ctx))
	}
	look := d.up.Look
	if look == nil {
		// The dot keeps the resolver from trying its search domains: another name than
		// the one that was judged.
		return net.DefaultResolver.LookupNetIP(ctx, "ip", name+".")
	}
	return look(ctx, name)
}

// judge returns the addresses that may be connected to, those of the two families in turn.
// If there is none the error is what was said of the first.
func judge(t Target, addrs []netip.Addr) ([]netip.Addr, error) {
	var families [2][]netip.Addr
	var refused *DialError
	for _, a := range addrs[:min(len(addrs), maxJudged)] {
		a = a.Unmap()
		d := decideAddr(t, a)
		if !d.Allowed() {
			if refused == nil {
				refused = &DialError{Host: t.Host, Port: t.Port, Addr: a, Why: FailedBlocked, Decision: d, Err: errors.New(d.Reason)}
			}
			continue
		}
		family := 0
		if a.Is4() {
			family = 1
		}
		families[family] = append(families[family], a)
	}
	var out []netip.Addr
	for i := 0; i < max(len(families[0]), len(families[1])); i++ {
		for _, f := range families {
			if i < len(f) {
				out = append(out, f[i])
			}
		}
	}
	switch {
	case len(out) > 0:
		return out[:min(len(out), maxTries)], nil
	case refused != nil:
		return nil, refused
	}
	return nil, &DialError{Host: t.Host, Port: t.Port, Why: FailedNoSuchHost, Err: errors.New("the name has no address")}
}

func decideAddr(t Target, a netip.Addr) policy.Decision {
	if t.Decide != nil {
		return t.Decide(a)
	}
	if reason, blocked := policy.Blocked(a); blocked {
		return policy.Decision{Reason: fmt.Sprintf("%s is at the address %s (%s), which is blocked", t.Host, a, reason)}
	}
	return policy.Decision{Verdict: policy.Allow}
}

// race connects to the first address that answers: each gets a head start before the
// next one is tried beside it.
func race(ctx context.Context, addrs []netip.Addr, port uint16) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan result)
	started, ended := 0, 0
	start := func() {
		ap := netip.AddrPortFrom(addrs[started], port)
		started++
		go func() {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "tcp", ap.String())
			results <- result{conn, err}
		}()
	}
	// Whoever is still on the way is waited for: cancelled, it does not take long.
	defer func() {
		cancel()
		for ; ended < started; ended++ {
			if r := <-results; r.conn != nil {
				r.conn.Close()
			}
		}
	}()
	next := time.NewTicker(tryNext)
	defer next.Stop()
	var errs []error
	start()
	for {
		select {
		case r := <-results:
			ended++
			if r.err == nil {
				return r.conn, nil
			}
			errs = append(errs, r.err)
			if started < len(addrs) {
				start()
				next.Reset(tryNext)
			} else if ended == started {
				return nil, errors.Join(errs...)
			}
		case <-next.C:
			if started < len(addrs) {
				start()
			}
		}
	}
}
