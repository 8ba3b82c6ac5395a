package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/netguard"
	"github.com/gondolin-go/gondolin/netguard/policy"
	"github.com/gondolin-go/gondolin/netguard/secret"
	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/tools"
)

// network is what one session's network is made of. close is called with the reason when the
// session is Done, or has not come to be.
type network struct {
	*sandbox.Network
	record *record // of the session, opened when its network is
}

func (n *network) close(reason string) error { return n.record.close(reason) }

// network makes the network of a session that is about to be created. The policy may change
// later: see policies.follow.
func (b *sandboxes) network(ctx context.Context) (*network, error) {
	c := b.config
	store, err := b.secrets.open(ctx, c.SecretSpecs())
	if err != nil {
		return nil, err
	}
	roots, err := authorities(c.Network.UpstreamCA)
	if err != nil {
		return nil, err
	}
	r := &record{audit: c.Audit}
	asks := &asker{ask: b.ask}
	l := c.Network.Limits
	n := &network{record: r, Network: &sandbox.Network{
		Policy: b.policies.current(), Secrets: store, Asker: asks, DNS: netguard.DNSMode(c.Network.DNS), SSH: b.sshOptions(),
		Recorder: func(session string) (netguard.Recorder, error) {
			asks.session.Store(&session)
			if err := r.open(session); err != nil {
				return nil, err
			}
			return metered{r, b.metrics}, nil
		},
		Limits:   netguard.Limits{Flows: l.Flows, HalfOpen: l.HalfOpen, Names: l.Names, Sniff: time.Duration(l.Sniff), Idle: time.Duration(l.Idle)},
		Upstream: netguard.Upstream{TLS: roots, Log: b.log, Proxy: proxyOf(c)},
	}}
	for _, m := range c.Network.Maps {
		host, port, err := m.Split()
		if err != nil {
			return nil, err
		}
		n.Maps = append(n.Maps, netguard.Map{Host: host, Port: port, To: m.To})
	}
	return n, nil
}

// proxyOf says how netguard finds the proxy of a request; nil: there is none.
func proxyOf(c *configs.Config) func(*http.Request) (string, error) {
	if c.Network.Proxy != configs.ProxyEnvironment {
		return nil
	}
	return func(r *http.Request) (string, error) {
		u, err := http.ProxyFromEnvironment(r)
		if u == nil || err != nil {
			return "", err
		}
		return u.String(), nil
	}
}

// proxyWarning says what a proxy in force means, "" without one. Names that it resolves lead to
// addresses that nobody here sees.
func proxyWarning(c *configs.Config) string {
	if c.Network.Proxy != configs.ProxyEnvironment {
		return ""
	}
	env := httpproxy.FromEnvironment()
	at := firstOf(env.HTTPSProxy, env.HTTPProxy)
	if at == "" || env.NoProxy == "*" {
		return ""
	}
	return fmt.Sprintf("connections leave through the proxy %sof the environment, which resolves names itself: rules bind names there and not addresses, so that an allowed name may lead into the proxy's own network", shownProxy(at))
}

// shownProxy is a proxy's address, followed by a space, without the password that it may hold; empty if
// it cannot be told what of it that is.
func shownProxy(at string) string {
	if !strings.Contains(at, "://") {
		at = "http://" + at // as net/http takes it
	}
	u, err := url.Parse(at)
	if err != nil {
		return ""
	}
	return u.Redacted() + " "
}

// secrets opens the store of all sessions when the first one needs it, and tries again
// after a failure: a keyring may be unlocked while a client runs.
type secrets struct {
	mu    sync.Mutex
	store *secret.Store
}

func (s *secrets) open(ctx context.Context, specs []secret.Spec) (*secret.Store, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.store != nil || len(specs) == 0 {
		return s.store, nil
	}
	store, err := secret.Open(ctx, specs, secret.Options{})
	if err != nil {
		return nil, fmt.Errorf("fetching the secrets that are configured: %w", err)
	}
	s.store = store
	return store, nil
}

// authorities are the system's certificates and those in the files, or nil for the system's alone.
func authorities(files []string) (*tls.Config, error) {
	if len(files) == 0 {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a system without any is no reason to refuse these
	}
	var errs []error
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && !pool.AppendCertsFromPEM(b) {
			err = fmt.Errorf("%s has no certificate in PEM", f)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("network.upstream_ca: %w", err)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

// sshOptions are the host's credentials and known hosts.
func (b *sandboxes) sshOptions() netguard.SSHOptions {
	c := b.config.Network
	o := netguard.SSHOptions{KnownHosts: c.KnownHosts, KeyFiles: c.SSHKeys}
	if len(o.KnownHosts) == 0 {
		if home, err := os.UserHomeDir(); err == nil {
			o.KnownHosts = append(o.KnownHosts, filepath.Join(home, ".ssh", "known_hosts"))
		}
		o.KnownHosts = append(o.KnownHosts, "/etc/ssh/ssh_known_hosts")
	}
	if c.SSHAgent {
		if o.Agent = os.Getenv("SSH_AUTH_SOCK"); o.Agent == "" {
			b.log.Warn("network.ssh_agent is true, and there is no agent", "problem", "SSH_AUTH_SOCK is not set")
		}
	}
	return o
}

// asker puts what a rule asks about to the human, through the client.
type asker struct {
	ask     func(context.Context, tools.Question) (bool, error) // nil: there is no client
	session atomic.Pointer[string]
}

var _ netguard.Asker = (*asker)(nil)

func (a *asker) Ask(ctx context.Context, d policy.Decision) (bool, error) {
	if a.ask == nil {
		return false, errors.New("there is nobody to ask")
	}
	q := tools.Question{Rule: d.Rule, What: d.Reason}
	if id := a.session.Load(); id != nil {
		q.Session = *id
	}
	return a.ask(ctx, q)
}

// policies is the network policy in force. Sessions follow it.
type policies struct {
	mu        sync.Mutex
	policy    *policy.Policy
	followers map[int]func(*policy.Policy)
	count     int
}

func newPolicies(c *configs.Config) *policies {
	p, err := policy.Compile(c.Network.Policy())
	if err != nil {
		// Cannot happen to what Load has judged. Nothing is allowed then.
		p = nothingAllowed()
	}
	return &policies{policy: p, followers: map[int]func(*policy.Policy){}}
}

func nothingAllowed() *policy.Policy {
	p, err := policy.Compile(policy.Spec{})
	if err != nil {
		panic("compiling the empty policy: " + err.Error())
	}
	return p
}

func (p *policies) current() *policy.Policy {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.policy
}

// set puts another policy in force and returns when all sessions have it.
func (p *policies) set(next *policy.Policy) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.policy = next
	for _, f := range p.followers {
		f(next)
	}
}

// follow calls set with the policy in force, now and at every change, until stop.
func (p *policies) follow(set func(*policy.Policy)) (stop func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count++
	id := p.count
	p.followers[id] = set
	set(p.policy)
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.followers, id)
	}
}
