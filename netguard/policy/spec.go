package policy

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Action is what a rule does with what it matches.
type Action string

// The actions.
const (
	ActionAllow Action = "allow"
	ActionDeny  Action = "deny"
	ActionAsk   Action = "ask" // a human is asked; no answer is a refusal
)

// Protocol is how the guest speaks to a host.
type Protocol string

// The protocols. WS and WSS are WebSockets over HTTP and HTTPS.
const (
	HTTP  Protocol = "http"
	HTTPS Protocol = "https"
	WS    Protocol = "ws"
	WSS   Protocol = "wss"
	SSH   Protocol = "ssh"
	TCP   Protocol = "tcp" // a mapped TCP connection, whatever is spoken in it
	DNS   Protocol = "dns" // the lookup of a name
)

// protocols lists all of them.
var protocols = []Protocol{HTTP, HTTPS, WS, WSS, SSH, TCP, DNS}

// Spec is a policy as a configuration writes it. The zero value allows nothing.
type Spec struct {
	Profiles []ProfileSpec `koanf:"profiles" yaml:"profiles,omitempty" json:"profiles,omitempty"` // their rules come after Rules
	Rules    []Rule        `koanf:"rules" yaml:"rules,omitempty" json:"rules,omitempty"`          // the first that matches decides
}

// ProfileSpec stands for a few rules that many need. See profile.go for what
// each one is.
type ProfileSpec struct {
	Name  string   `koanf:"name" yaml:"name" json:"name"`                        // none, package-registries or git-hosts
	Hosts []string `koanf:"hosts" yaml:"hosts,omitempty" json:"hosts,omitempty"` // as in a rule
}

// Rule is one line of the policy. Every condition that is there must hold. What
// a condition means when it is absent is said in the package documentation.
type Rule struct {
	Name           string     `koanf:"name" yaml:"name,omitempty" json:"name,omitempty"` // unique; "rule N" when empty
	Action         Action     `koanf:"action" yaml:"action" json:"action"`
	Protocols      []Protocol `koanf:"protocols" yaml:"protocols,omitempty" json:"protocols,omitempty"`
	Hosts          []string   `koanf:"hosts" yaml:"hosts" json:"hosts"`                                                   // name, *.name, *, address or CIDR range
	Ports          []string   `koanf:"ports" yaml:"ports,omitempty" json:"ports,omitempty"`                               // "443", "8000-8100" or "*"
	Methods        []string   `koanf:"methods" yaml:"methods,omitempty" json:"methods,omitempty"`                         // of HTTP
	Paths          []string   `koanf:"paths" yaml:"paths,omitempty" json:"paths,omitempty"`                               // globs, percent-decoded: * within a segment, ** across
	SSH            *SSHRule   `koanf:"ssh" yaml:"ssh,omitempty" json:"ssh,omitempty"`                                     // what may run
	When           string     `koanf:"when" yaml:"when,omitempty" json:"when,omitempty"`                                  // CEL expression
	AllowAddresses []string   `koanf:"allow_addresses" yaml:"allow_addresses,omitempty" json:"allow_addresses,omitempty"` // addresses or CIDR ranges, of those blocked by default
	Quota          *Quota     `koanf:"quota" yaml:"quota,omitempty" json:"quota,omitempty"`
	Rate           *Rate      `koanf:"rate" yaml:"rate,omitempty" json:"rate,omitempty"`
}

// SSHRule says what may be asked of an SSH server. What it does not name, the
// rule does not match.
type SSHRule struct {
	Git          []string `koanf:"git" yaml:"git,omitempty" json:"git,omitempty"`                            // services: git-upload-pack, git-receive-pack, git-upload-archive
	Repositories []string `koanf:"repositories" yaml:"repositories,omitempty" json:"repositories,omitempty"` // globs such as owner/*, without .git; ** for all
	Commands     []string `koanf:"commands" yaml:"commands,omitempty" json:"commands,omitempty"`             // globs over the whole command line; ** for all
	Shell        bool     `koanf:"shell" yaml:"shell,omitempty" json:"shell,omitempty"`                      // interactive shells
	Subsystems   []string `koanf:"subsystems" yaml:"subsystems,omitempty" json:"subsystems,omitempty"`       // such as sftp
	Forwards     []string `koanf:"forwards" yaml:"forwards,omitempty" json:"forwards,omitempty"`             // globs over host:port
}

// Quota bounds the use of a rule over a session's life. 0 is no bound.
type Quota struct {
	Bytes    Bytes `koanf:"bytes" yaml:"bytes,omitempty" json:"bytes,omitempty"` // both ways together
	Requests int64 `koanf:"requests" yaml:"requests,omitempty" json:"requests,omitempty"`
}

// Rate bounds how fast a rule is used.
type Rate struct {
	PerSecond float64 `koanf:"per_second" yaml:"per_second" json:"per_second"`
	Burst     int     `koanf:"burst" yaml:"burst,omitempty" json:"burst,omitempty"` // requests at once; at least 1, by default PerSecond rounded up
}

// Bytes is an amount of data. It reads and prints as "10MiB".
type Bytes int64

var byteUnits = []struct {
	name string
	size int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}, {"", 1}}

// String writes the amount with the largest unit that keeps it whole.
func (b Bytes) String() string {
	for _, u := range byteUnits {
		if int64(b)%u.size == 0 && (b != 0 || u.size == 1) {
			return strconv.FormatInt(int64(b)/u.size, 10) + u.name
		}
	}
	return "" // not reached: every amount is whole in bytes
}

// MarshalText implements encoding.TextMarshaler.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads 500KiB, 10MiB, 2GiB, 1TiB, or a number of bytes.
func (b *Bytes) UnmarshalText(text []byte) error {
	for _, u := range byteUnits {
		digits, ok := strings.CutSuffix(string(text), u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		switch {
		case err != nil && !errors.Is(err, strconv.ErrRange), err == nil && n < 0:
			return fmt.Errorf("%s is no amount of data: write it like 500KiB, 10MiB or 2GiB", quote(string(text)))
		case err != nil || n > math.MaxInt64/u.size:
			return fmt.Errorf("%s is too large", quote(string(text)))
		}
		*b = Bytes(n * u.size)
		return nil
	}
	return nil // not reached: the last unit fits everything
}
