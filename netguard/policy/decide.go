package policy

import (
	"fmt"
	"slices"
	"strings"
)

// query is a request in canonical form.
type query struct {
	Request
	host  Host
	paths []string // readings of the path
}

// Decide judges a request: the first rule that matches decides, and where none
// does, or a fact is malformed or missing, the answer is Deny. It depends on its
// argument alone, does no input or output, and takes time in proportion to the rules.
func (p *Policy) Decide(r Request) Decision {
	q, err := newQuery(r)
	if err != nil {
		return Decision{Reason: err.Error(), Remedy: "send a well-formed request"}
	}
	if q.Protocol == DNS {
		return p.decideName(q)
	}
	for _, rule := range p.rules {
		if rule.differs(q, false) != 0 {
			continue
		}
		if rule.when != nil {
			ok, err := q.holds(rule.when, rule.stops)
			if err != nil {
				return Decision{Rule: rule.Name, Reason: fmt.Sprintf("the condition of the rule %s cannot be evaluated: %v", quote(rule.Name), err), Remedy: "the operator has to mend `when` of that rule"}
			}
			if !ok {
				continue
			}
		}
		return rule.decide(q)
	}
	return p.explain(q)
}

// newQuery checks and canonicalises.
func newQuery(r Request) (*query, error) {
	q := &query{Request: r}
	if !slices.Contains(protocols, r.Protocol) {
		return nil, fmt.Errorf("the protocol %s is unknown", quote(string(r.Protocol)))
	}
	var err error
	if q.host, err = ParseHost(r.Host); err != nil {
		return nil, err
	}
	switch {
	case r.Protocol != DNS && r.Port == 0:
		return nil, fmt.Errorf("port 0 cannot be connected to")
	case q.host.IsAddr() && !q.Addr.IsValid():
		q.Addr = q.host.addr
	case q.host.IsAddr() && q.Addr.Unmap() != q.host.addr.Unmap():
		return nil, fmt.Errorf("the host is the address %s, and the connection would go to %s", q.host, q.Addr)
	}
	switch {
	case isHTTP(r.Protocol):
		err = q.checkHTTP()
	case r.Protocol == SSH:
		err = q.checkSSH()
	}
	return q, err
}

func (q *query) checkHTTP() (err error) {
	if q.Protocol == WS || q.Protocol == WSS {
		q.HTTP.Method = "GET" // what an upgrade is (RFC 6455, 4.1); CONNECT over HTTP/2 (RFC 8441)
	}
	switch {
	case !isToken(q.HTTP.Method):
		return fmt.Errorf("the method %s is malformed", quote(q.HTTP.Method))
	case strings.EqualFold(q.HTTP.Method, "CONNECT"):
		return fmt.Errorf("CONNECT is refused: it would carry what cannot be looked into")
	case strings.ContainsFunc(q.HTTP.Query, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("the query holds a control character")
	}
	q.paths, err = readings(q.HTTP.Path)
	return err
}

func (q *query) checkSSH() error {
	c := q.SSH
	switch {
	case len(c.Command) > maxCommand:
		return fmt.Errorf("the command has %d bytes: at most %d are looked at", len(c.Command), maxCommand)
	case strings.Contains(c.Command, "\x00"):
		return fmt.Errorf("the command holds a NUL")
	case c.Kind == SSHShell && c.Command != "":
		return fmt.Errorf("a shell has no command")
	case c.Kind != SSHShell && strings.TrimSpace(c.Command) == "":
		return fmt.Errorf("the SSH request names nothing to run")
	case !slices.Contains([]SSHKind{SSHExec, SSHShell, SSHSubsystem, SSHForward}, c.Kind):
		return fmt.Errorf("the SSH request %s is unknown", quote(string(c.Kind)))
	}
	return nil
}

// decide is the outcome of a rule that matches.
func (r *rule) decide(q *query) Decision {
	d := Decision{Rule: r.Name, Limits: r.limits}
	if r.Action == ActionDeny {
		d.Reason = fmt.Sprintf("the rule %s denies %s", quote(r.Name), q.describe())
		d.Remedy = "do without it; only the operator can change the rule"
		return d
	}
	if reason, closed := r.closed(q); closed {
		d.Reason = reason
		d.Remedy = fmt.Sprintf("the operator can add %s to allow_addresses of the rule %s, if the guest is meant to reach it", q.Addr.Unmap(), quote(r.Name))
		return d
	}
	d.Verdict, d.Reason = Allow, fmt.Sprintf("the rule %s allows %s", quote(r.Name), q.describe())
	if r.Action == ActionAsk {
		d.Verdict, d.Reason = Ask, fmt.Sprintf("the rule %s wants a human to allow %s", quote(r.Name), q.describe())
	}
	return d
}

// closed says why the address is not open to a rule that matches otherwise.
func (r *rule) closed(q *query) (string, bool) {
	if !q.Addr.IsValid() {
		return "", false
	}
	reason, blocked := Blocked(q.Addr)
	if !blocked || opens(r.opens, q.Addr) {
		return "", false
	}
	return fmt.Sprintf("%s is at the address %s (%s), which is blocked unless a rule opens it", q.host, q.Addr, reason), true
}

// decideName judges the lookup of a name: it is allowed where some other request
// to the host might be, because for that it is needed.
func (p *Policy) decideName(q *query) Decision {
	if q.host.IsAddr() {
		return Decision{Reason: fmt.Sprintf("%s is an address and no name", quote(q.Request.Host)), Remedy: "connect to it without looking it up"}
	}
	var asks *rule
	var shut []Protocol // what an earlier rule denies for good
	for _, r := range p.rules {
		if !r.hosts.match(q.host, q.Addr) {
			continue
		}
		// A condition is meant for what the rule is about; only one that names
		// DNS itself can be evaluated on a lookup.
		if slices.Contains(r.Protocols, DNS) && r.when != nil {
			ok, err := q.holds(r.when, r.stops)
			if err != nil {
				return Decision{Rule: r.Name, Reason: fmt.Sprintf("the condition of the rule %s cannot be evaluated: %v", quote(r.Name), err), Remedy: "the operator has to mend `when` of that rule"}
			}
			if !ok {
				continue
			}
		}
		if r.Action == ActionDeny {
			if slices.Contains(r.Protocols, DNS) || slices.Contains(r.protocols, DNS) && r.when == nil && len(r.ports) == 0 {
				if asks != nil {
					break
				}
				return r.decide(q)
			}
			if !r.conditional() && len(r.ports) == 0 {
				shut = append(shut, r.protocols...)
			}
			continue
		}
		if !slices.ContainsFunc(r.protocols, func(p Protocol) bool { return !slices.Contains(shut, p) }) {
			continue
		}
		if r.Action == ActionAllow {
			return r.decide(q)
		}
		if asks == nil {
			asks = r
		}
	}
	if asks != nil {
		return asks.decide(q)
	}
	return p.explain(q)
}

// describe is the request in a few words.
func (q *query) describe() string {
	hostPort := fmt.Sprintf("%s:%d", q.host, q.Port)
	if q.host.IsAddr() && q.host.addr.Is6() {
		hostPort = fmt.Sprintf("[%s]:%d", q.host, q.Port)
	}
	switch {
	case q.Protocol == DNS:
		return "looking up " + q.host.String()
	case isHTTP(q.Protocol) && q.HTTP.Method == "":
		return fmt.Sprintf("%s to %s", q.Protocol, hostPort)
	case isHTTP(q.Protocol):
		return fmt.Sprintf("%s %s://%s%s", q.HTTP.Method, q.Protocol, hostPort, strings.Trim(quote(q.HTTP.Path), `"`))
	case q.Protocol == SSH && q.SSH.Kind == SSHShell:
		return "an SSH shell on " + hostPort
	case q.Protocol == SSH && q.SSH.Kind != "":
		return fmt.Sprintf("SSH %s %s on %s", q.SSH.Kind, quote(q.SSH.Command), hostPort)
	}
	return fmt.Sprintf("%s to %s", q.Protocol, hostPort)
}
