package netguard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gondolin-go/gondolin/netguard/ca"
	"github.com/gondolin-go/gondolin/netguard/policy"
	"github.com/gondolin-go/gondolin/netguard/secret"
)

// Options make a Guard. The zero value is a network on which nothing is allowed.
type Options struct {
	Policy   *policy.Policy // nil: nothing is allowed
	Secrets  *secret.Set    // nil: none
	CA       *ca.CA         // nil: TLS is refused
	Recorder Recorder       // nil: decisions are not recorded
	Asker    Asker          // nil: what a human would have to allow is refused
	Hooks    Hooks
	Limits   Limits
	Upstream Upstream
	SSH      SSHOptions
	Dialer   Dialer // nil: the host's network, as Upstream says
	DNS      DNSMode
	Maps     []Map
	Log      *slog.Logger     // nil: silent
	Now      func() time.Time // nil: time.Now
}

// Guard is the network of one session's guest. It is safe for concurrent use.
type Guard struct {
	o        Options // with its defaults
	policy   atomic.Pointer[policy.Policy]
	limiter  *policy.Limiter
	recorder *ledger
	dialer   Dialer
	names    *nameTable
	dns      *dnsServer
	maps     map[mapKey]mapTarget
	flows    *flowTable
	web      atomic.Pointer[proxy] // of the link that is served
	ssh      *sshServer

	mu      sync.Mutex
	serving bool
	link    *link       // that is served
	stale   []staleFlow // to reset when there is one
}

// New checks the options and makes a Guard. It starts nothing.
func New(o Options) (*Guard, error) {
	if o.Policy == nil {
		p, err := policy.Compile(policy.Spec{})
		if err != nil {
			return nil, fmt.Errorf("compiling the empty policy: %w", err)
		}
		o.Policy = p
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Limits = o.Limits.withDefaults()
	maps, err := parseMaps(o.Maps)
	if err != nil {
		return nil, err
	}
	if o.DNS, err = o.DNS.check(); err != nil {
		return nil, err
	}
	g := &Guard{
		o: o, maps: maps,
		limiter:  policy.NewLimiter(o.Now),
		recorder: newLedger(o.Recorder, o.Now),
		dialer:   o.Dialer,
		names:    newNameTable(o.Limits.Names, o.Now),
		flows:    newFlowTable(o.Limits.Flows),
	}
	g.policy.Store(o.Policy)
	host := newHostDialer(o.Upstream)
	if g.dialer == nil {
		g.dialer = host
	}
	g.dns = newDNSServer(g, host)
	g.ssh = newSSHServer(g)
	return g, nil
}

// Serve plays the network to the guest behind conn, which carries frames as QEMU's
// -netdev stream does, until conn ends (nil), breaks the framing or ctx is done. It closes
// conn, and all flows end with it. One call at a time; names survive from
// one to the next, so that a guest may be connected anew.
func (g *Guard) Serve(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	g.mu.Lock()
	if g.serving {
		g.mu.Unlock()
		return errors.New("the guard serves a guest already")
	}
	g.serving = true
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		g.serving = false
		g.mu.Unlock()
	}()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := newLink(conn, gatewayMAC, guestMAC, admit)
	n, err := newNetwork(ctx, g, l)
	if err != nil {
		return err
	}
	web := g.newWeb()
	g.web.Store(web)
	g.connected(l)
	defer g.connected(nil)
	// Ended from outside by closing conn, which is what readLoop waits for.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	written := make(chan error, 1)
	go func() {
		err := l.writeLoop()
		conn.Close()
		written <- err
	}()
	err = l.readLoop()
	done := ctx.Err()

	// First no new flows, then the end of those that are, then of what carried them.
	cancel()
	n.close()
	web.close()
	l.shut()
	conn.Close()
	werr := <-written
	if err := g.recorder.settle(); err != nil {
		g.o.Log.Error("recording how much was not recorded", "error", err)
	}
	switch {
	case done != nil:
		return done
	case err != nil && errors.Is(err, net.ErrClosed) && werr != nil:
		return werr
	}
	return err
}

// newWeb makes what serves HTTP on one link.
func (g *Guard) newWeb() *proxy {
	return newProxy(proxyDeps{
		Policy: g.Policy, Limiter: g.limiter, Secrets: g.o.Secrets, CA: g.o.CA, Dialer: g.dialer, Recorder: g.recorder,
		Asker: g.o.Asker, Hooks: g.o.Hooks, Limits: g.o.Limits, Upstream: g.o.Upstream, Log: g.o.Log,
	})
}

// SetPolicy replaces the policy. Open flows to which the new one allows nothing any
// more are reset before it returns, and requests under way are broken off that it does not
// allow; each next one is judged by it.
func (g *Guard) SetPolicy(p *policy.Policy) {
	g.policy.Store(p)
	for _, f := range g.flows.open() {
		d := g.possible(f)
		if d.Verdict != policy.Deny {
			continue
		}
		d.Reason = "the policy has changed: " + d.Reason
		g.refuseFlow(f, d)
		f.abort()
	}
	if web := g.web.Load(); web != nil {
		web.policyChanged()
	}
	g.ssh.policyChanged()
}

// Policy is the policy in force.
func (g *Guard) Policy() *policy.Policy { return g.policy.Load() }

// Used is what the session has used of a rule's quota.
func (g *Guard) Used(rule string) policy.Quota { return g.limiter.Used(rule) }

// Denials returns the refusals after the first since of them (Stats.Denials of an earlier look),
// oldest first; at most the last 256 are remembered. Equal ones within a second count once.
func (g *Guard) Denials(since uint64) []Event { return g.recorder.since(since) }

// Stats are gauges and counters of a Guard.
type Stats struct {
	Flows   int    // open, those included of which the guest has not read the end
	Names   int    // that have an address
	Denials uint64 // so far
}

// Stats reads them.
func (g *Guard) Stats() Stats {
	return Stats{Flows: g.flows.size(), Names: g.names.size(), Denials: g.recorder.seen()}
}

// GuestConfig is what the guest's interface has to be configured with. It is the same for
// every guest, so that it can be part of a memory template.
type GuestConfig struct {
	MAC        net.HardwareAddr // for QEMU's device
	MTU        int              // for QEMU's host_mtu
	Addresses  []netip.Prefix
	Gateways   []netip.Addr // default routes
	Nameserver netip.Addr
}

// Config tells how to configure any guest.
func Config() GuestConfig {
	return GuestConfig{
		MAC: net.HardwareAddr(guestMAC), MTU: mtu,
		Addresses:  []netip.Prefix{netip.PrefixFrom(guest4, 30), netip.PrefixFrom(guest6, 126)},
		Gateways:   []netip.Addr{gateway4, gateway6},
		Nameserver: gateway4,
	}
}

// The guest's network. 198.18.0.0/15 is set aside for measuring network devices
// (RFC 2544): no LAN, VPN or container network uses it, and no server is there. The
// IPv6 prefix is a unique local one (RFC 4193). Guests never see each other, so all have
// the same addresses.
var (
	gateway4 = netip.MustParseAddr("198.18.0.1")
	guest4   = netip.MustParseAddr("198.18.0.2")
	pool4    = netip.MustParsePrefix("198.19.0.0/16") // of names

	gateway6 = netip.MustParseAddr("fd67:6f6e:646f::1")
	guest6   = netip.MustParseAddr("fd67:6f6e:646f::2")
	pool6    = netip.MustParsePrefix("fd67:6f6e:646f:1::/64") // of names
)
