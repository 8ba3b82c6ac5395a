package netguard

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// Flow is one TCP connection that the guest opened. It is served by one
// goroutine, which closes Conn.
type Flow struct {
	ID   uint64 // counts the session's flows, from 1
	Conn net.Conn
	Dst  netip.AddrPort // as the guest dialled it
	// Name is the canonical DNS name for which the guest was given Dst's address;
	// empty when it dialled an address that no answer of ours named.
	Name string
}

// Host is what policy judges: the name, or the address where there is none.
func (f *Flow) Host() string {
	if f.Name != "" {
		return f.Name
	}
	return f.Dst.Addr().String()
}

// Dialer makes the guard's connections to the outside. It resolves the name on the host,
// checks every address against the policy's blocked ranges and the rule's exceptions, and
// connects to the very address that it checked. Its errors say what failed on what and why.
type Dialer interface {
	Dial(ctx context.Context, t Target) (net.Conn, error)
}

// Target is where to connect.
type Target struct {
	Host string // canonical name or address
	Port uint16
	// Decide judges each address that Host resolves to; only one that it allows is connected to.
	Decide func(netip.Addr) policy.Decision
}

// Event is one decision for the audit record.
type Event struct {
	Time     time.Time
	Flow     uint64
	Protocol string // http, https, ws, wss, ssh, tcp, dns
	Host     string
	Port     uint16
	Addr     string // the address connected to
	Method   string
	Path     string // without query
	Command  string // of SSH
	Status   int    // HTTP status given to the guest
	Verdict  string // allow, deny, error
	Rule     string
	Reason   string
	Remedy   string
	Secrets  []string // names of those put in
	Sent     int64    // bytes from the guest
	Received int64    // bytes to the guest
	Duration time.Duration
}

// Recorder keeps events. A decision that cannot be recorded is a refusal: Record is
// called with the decision before anything leaves, and again, with the same Flow and
// the figures, at the end.
type Recorder interface {
	Record(Event) error
}

// Asker puts a question to the human; false or an error is a refusal.
type Asker interface {
	Ask(ctx context.Context, d policy.Decision) (bool, error)
}

// Hooks let a program observe and change what passes. An error refuses (a hook that
// fails, fails closed), and so does a panic.
type Hooks struct {
	OnFlow     func(ctx context.Context, f *Flow) error
	OnRequest  func(ctx context.Context, r *http.Request) error
	OnResponse func(ctx context.Context, r *http.Response) error
}

// Limits bound what a guest can drive. A zero field takes its default.
type Limits struct {
	Flows       int           // open at once, default 512
	HalfOpen    int           // connections being set up, default 128
	Names       int           // synthetic DNS names remembered, default 4096
	HeaderBytes int           // of a request's or response's head, default 64 KiB
	Sniff       time.Duration // until the first bytes tell the protocol, default 15 s
	Idle        time.Duration // without a byte in either direction, default 5 min
}

// Upstream says how the guard itself reaches servers.
type Upstream struct {
	TLS   *tls.Config                         // roots beside the system's; nil: the system's
	Proxy func(*http.Request) (string, error) // HTTPS_PROXY and its kin; nil: none
	Hosts map[string]netip.Addr               // answers instead of the resolver's, for tests and static maps
	Look  func(context.Context, string) ([]netip.Addr, error)
	// Resolvers are asked what is no address, in the DNS mode open; nil: those of /etc/resolv.conf.
	Resolvers []netip.AddrPort
	Log       *slog.Logger
}
