package sandbox

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/gondolin-go/gondolin/guest/wire"
	"github.com/gondolin-go/gondolin/netguard"
	"github.com/gondolin-go/gondolin/netguard/ca"
	"github.com/gondolin-go/gondolin/netguard/policy"
	"github.com/gondolin-go/gondolin/netguard/secret"
	"github.com/gondolin-go/gondolin/sandbox/qemu"
)

// Network is what a session's guest may reach, and how. Without one it reaches nothing:
// every name is unknown and every connection refused at once.
type Network struct {
	Policy  *policy.Policy // nil: nothing is allowed
	Secrets *secret.Store  // nil: none; each session has placeholders of its own
	// Recorder makes the audit record of a session; nil: decisions are not recorded. Who
	// makes it closes it when the session is Done.
	Recorder func(session string) (netguard.Recorder, error)
	Asker    netguard.Asker // nil: what a human would have to allow is refused
	Hooks    netguard.Hooks
	Limits   netguard.Limits
	Upstream netguard.Upstream
	DNS      netguard.DNSMode
	Maps     []netguard.Map
	SSH      netguard.SSHOptions
}

// card is the network card of every machine.
func card() qemu.Net {
	c := netguard.Config()
	return qemu.Net{MAC: c.MAC.String(), MTU: c.MTU}
}

// cardConfig tells the guest how to configure its card; see wire.CmdlineNet.
func cardConfig() string {
	c := netguard.Config()
	return wire.CmdlineNet + strings.Join([]string{joined(c.Addresses), joined(c.Gateways), joined([]netip.Addr{c.Nameserver})}, ";")
}

func joined[T fmt.Stringer](list []T) string {
	words := make([]string, 0, len(list))
	for _, v := range list {
		words = append(words, v.String())
	}
	return strings.Join(words, ",")
}

// attachNetwork begins to play the network to the guest, and has its programs trust
// the session's certificates.
func (s *Session) attachNetwork(ctx context.Context) error {
	n := s.opts.Network
	if n == nil {
		n = &Network{}
	}
	var err error
	trusted := false // the guest trusts its authority already
	switch {
	case s.past != nil:
		s.authority, trusted = s.past.authority, true
	case s.authority != nil: // see standby
		trusted = alone(n)
	default:
		if err := s.makeAuthority(); err != nil {
			return err
		}
	}
	o := netguard.Options{
		Policy: n.Policy, CA: s.authority, Asker: n.Asker, Hooks: n.Hooks, Limits: n.Limits, Upstream: n.Upstream,
		DNS: n.DNS, Maps: n.Maps, SSH: n.SSH, Log: s.log,
	}
	if n.Secrets != nil {
		if s.past != nil && s.past.store == n.Secrets {
			o.Secrets = s.past.secrets
		} else if o.Secrets, err = n.Secrets.Session(); err != nil {
			return fmt.Errorf("making the session's placeholders: %w", err)
		}
		s.placeholders = o.Secrets.Env()
		s.secrets, s.secretStore = o.Secrets, n.Secrets
	}
	if n.Recorder != nil {
		if o.Recorder, err = n.Recorder(s.id); err != nil {
			return fmt.Errorf("opening the session's audit record: %w", err)
		}
	}
	if s.guard, err = netguard.New(o); err != nil {
		return err
	}
	if s.past != nil {
		s.guard.Inherit(s.past.guard)
		s.past.guard = nil // of a session that may end before this one
	}
	if !s.work(func() {
		if err := s.guard.Serve(s.life, s.vm.Net()); err != nil && s.life.Err() == nil && s.vm.Err() == nil {
			s.log.Error("the session's network ended", "err", err)
		}
	}) {
		return s.closedError()
	}
	if trusted {
		return nil
	}
	return s.trust(ctx, alone(n))
}

// alone says whether the session's authority is all that programs have to trust: through a mapped
// port one may speak TLS with anybody.
func alone(n *Network) bool { return len(n.Maps) == 0 }

func (s *Session) makeAuthority() (err error) {
	if s.authority, err = ca.New(ca.Options{Session: s.id}); err != nil {
		return fmt.Errorf("making the session's certificate authority: %w", err)
	}
	return nil
}

// trust has the guest's programs trust the session's authority, in the place of what they trusted of
// it before, and sets the clock.
func (s *Session) trust(ctx context.Context, alone bool) error {
	began := time.Now()
	err := s.call(ctx, wire.OpTrust, "", wire.Trust{
		CA: s.authority.PEM(), KnownHosts: s.authority.KnownHosts(), UnixNano: began.UnixNano(), Alone: alone,
	}, nil)
	if err == nil && time.Since(began) > exactClock+usualTrust {
		err = s.setClock(ctx)
	}
	return err
}

// exactClock is how late the guest's clock may be after a start, and clockTries how often it
// is set for that. On a busy host a message can be under way for longer.
const (
	exactClock = 20 * time.Millisecond
	clockTries = 3
	// usualTrust is what the guest takes to trust the authority, after it has set the clock.
	usualTrust = 40 * time.Millisecond
)

// setClock sets the guest's clock, which is late by the time that this takes at most.
func (s *Session) setClock(ctx context.Context) error {
	for range clockTries {
		began := time.Now()
		if err := s.freshen(ctx, wakeTimeout); err != nil {
			return err
		}
		if time.Since(began) < exactClock {
			break
		}
	}
	return nil
}

// revived reports whether the session's machine is a copy of another's that ran.
func (s *Session) revived() bool { return s.again }

// wake lets the processes of a copied machine go on. Their connections are told that
// nobody is at the other end: they would wait for ever.
func (s *Session) wake(ctx context.Context) error {
	flows, err := s.thaw(ctx)
	if err != nil {
		return err
	}
	for _, f := range flows {
		guest, err1 := netip.ParseAddrPort(f.Local)
		peer, err2 := netip.ParseAddrPort(f.Remote)
		if err1 == nil && err2 == nil {
			s.guard.ResetStale(guest, peer)
		}
	}
	return nil
}

// SetPolicy replaces what the session's guest may reach. Open connections that are no
// longer allowed end.
func (s *Session) SetPolicy(p *policy.Policy) { s.guard.SetPolicy(p) }

// NetworkStats are gauges and counters of the session's network.
func (s *Session) NetworkStats() netguard.Stats {
	if s.guard == nil {
		return netguard.Stats{}
	}
	return s.guard.Stats()
}

// networkDenials returns what the network refused after a time.
func (s *Session) networkDenials(since time.Time) []Denial {
	if s.guard == nil {
		return nil
	}
	var list []Denial
	for _, e := range s.guard.Denials(0) {
		if e.Time.After(since) {
			list = append(list, Denial{
				Time: e.Time, Count: 1, Kind: "network", What: attempt(e), Path: target(e), Rule: e.Rule, Reason: e.Reason, Remedy: e.Remedy,
			})
		}
	}
	return list
}

func attempt(e netguard.Event) string {
	switch {
	case e.Method != "":
		return e.Method
	case e.Protocol != "":
		return e.Protocol
	}
	return "connect"
}

func target(e netguard.Event) string {
	host := e.Host
	if host == "" {
		host = e.Addr
	}
	switch {
	case e.Method != "" && e.Protocol != "":
		return fmt.Sprintf("%s://%s%s", e.Protocol, host, e.Path)
	case e.Command != "":
		return fmt.Sprintf("%s (%s)", host, e.Command)
	case e.Port != 0:
		return fmt.Sprintf("%s:%d", host, e.Port)
	}
	return host
}
