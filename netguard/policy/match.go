package policy

import (
	"slices"
	"strings"
)

// aspect is a set of conditions of a rule.
type aspect uint8

const (
	aspectHost aspect = 1 << iota
	aspectProtocol
	aspectPort
	aspectMethod
	aspectPath
	aspectSSH
	aspectWhen
)

// differs returns the conditions, other than `when`, that a request does not
// meet: the first one found, or all of them.
func (r *rule) differs(q *query, all bool) (no aspect) {
	for _, c := range [...]struct {
		aspect aspect
		holds  func(*rule, *query) bool
	}{
		{aspectProtocol, (*rule).matchProtocol},
		{aspectHost, (*rule).matchHost},
		{aspectPort, (*rule).matchPort},
		{aspectMethod, (*rule).matchMethod},
		{aspectPath, (*rule).matchPath},
		{aspectSSH, (*rule).matchSSH},
	} {
		if !c.holds(r, q) {
			no |= c.aspect
			if !all {
				return no
			}
		}
	}
	return no
}

func (r *rule) matchProtocol(q *query) bool { return slices.Contains(r.protocols, q.Protocol) }

func (r *rule) matchHost(q *query) bool { return r.hosts.match(q.host, q.Addr) }

// matchPort: a rule without ports is about the protocol's own one, so that
// allowing a host does not open everything that listens there; one that denies
// is about all.
func (r *rule) matchPort(q *query) bool {
	if len(r.ports) == 0 {
		return r.Action == ActionDeny || q.Protocol == DNS || q.Port == standardPort(q.Protocol)
	}
	return slices.ContainsFunc(r.ports, func(p portRange) bool { return p.from <= q.Port && q.Port <= p.to })
}

// matchMethod: methods are case-sensitive (RFC 9110, 9.1), but not every server
// knows.
func (r *rule) matchMethod(q *query) bool {
	if len(r.methods) == 0 {
		return true
	}
	return slices.ContainsFunc(r.methods, func(m string) bool {
		return m == q.HTTP.Method || r.stops && strings.EqualFold(m, q.HTTP.Method)
	})
}

func (r *rule) matchPath(q *query) bool { return r.paths.match(q.paths) }

func (r *rule) matchSSH(q *query) bool { return r.ssh == nil || r.ssh.match(q.SSH) }

// conditional says whether a rule's outcome depends on more than protocol,
// host and port.
func (r *rule) conditional() bool {
	return len(r.methods) > 0 || len(r.paths.globs) > 0 || r.ssh != nil || r.when != nil
}

// standardPort is the port of a protocol by its registration, or 0.
func standardPort(p Protocol) uint16 {
	switch p {
	case HTTP, WS:
		return 80
	case HTTPS, WSS:
		return 443
	case SSH:
		return 22
	}
	return 0
}
