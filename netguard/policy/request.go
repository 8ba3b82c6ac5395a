package policy

import (
	"net/http"
	"net/netip"
)

// Request is one thing that the guest wants to do, with all its facts known.
// [Policy.Possible] answers while some are not.
type Request struct {
	Protocol Protocol
	// Host is what the guest named, without a port; it need not be canonical.
	Host string
	// Port is the server's; not looked at for DNS.
	Port uint16
	// Addr is what is about to be connected to. Before the name is resolved it
	// is the zero Addr; then Decide must be called again for each address.
	Addr netip.Addr
	HTTP HTTPCall // for HTTP, HTTPS, WS and WSS
	SSH  SSHCall  // for SSH
}

// HTTPCall is the head of an HTTP request.
type HTTPCall struct {
	Method string      // as sent; GET is assumed for WS and WSS
	Path   string      // as on the wire, without the query
	Query  string      // as on the wire, without the question mark
	Header http.Header // for `when` only; may be nil
}

// SSHKind is what the guest asks of an SSH server.
type SSHKind string

// The kinds of SSH requests.
const (
	SSHExec      SSHKind = "exec"      // Command is the command line
	SSHShell     SSHKind = "shell"     // Command is empty
	SSHSubsystem SSHKind = "subsystem" // Command is its name
	SSHForward   SSHKind = "forward"   // Command is host:port, as direct-tcpip names it
)

// SSHCall is one request on an SSH channel.
type SSHCall struct {
	Kind    SSHKind
	Command string
	User    string // the name of the account on the server; for `when` only
}

// Verdict is the outcome of a decision. The zero value is Deny.
type Verdict uint8

// The verdicts.
const (
	Deny Verdict = iota
	Allow
	Ask       // a human has to say yes
	Undecided // only from Possible: it depends on what is not known yet
)

var verdicts = [...]string{Deny: "deny", Allow: "allow", Ask: "ask", Undecided: "undecided"}

// String is deny, allow, ask or undecided.
func (v Verdict) String() string {
	if int(v) < len(verdicts) {
		return verdicts[v]
	}
	return "deny"
}

// MarshalText implements encoding.TextMarshaler.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// Decision is a verdict and why. Its texts are for the agent and the operator;
// names and paths from the guest stand in them quoted, and no header does.
type Decision struct {
	Verdict Verdict `json:"verdict"`
	Rule    string  `json:"rule,omitempty"`    // the rule that decided; empty when none matched
	Reason  string  `json:"reason"`            // a sentence without a full stop
	Nearest string  `json:"nearest,omitempty"` // when refused: the rule that comes closest to allowing it
	Remedy  string  `json:"remedy,omitempty"`  // when refused: what can be done
	// Protocols is set by Possible: those that are not refused yet.
	Protocols []Protocol `json:"protocols,omitempty"`
	// Limits are the rule's, for a Limiter.
	Limits Limits `json:"-"`
}

// Allowed says whether the verdict is Allow.
func (d Decision) Allowed() bool { return d.Verdict == Allow }

// Limits are the bounds of one rule. The zero value is none.
type Limits struct {
	Quota Quota
	Rate  Rate
}
