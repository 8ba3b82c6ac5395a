package policy

import (
	"fmt"
	"math/bits"
	"strings"

	"github.com/agnivade/levenshtein"
	"golang.org/x/net/publicsuffix"
)

// maxCompared bounds the work of explaining one refusal, in host names looked at.
const maxCompared = 500

// explain is the decision when no rule matches.
func (p *Policy) explain(q *query) Decision {
	d := Decision{Reason: fmt.Sprintf("no rule allows %s", q.describe())}
	r, no := p.nearest(q)
	if r == nil {
		d.Remedy = "the operator can add a rule such as " + q.suggestion()
		if len(p.rules) == 0 {
			d.Reason += ": there is no rule at all, nothing is allowed"
		}
		return d
	}
	d.Nearest = r.Name
	var why, what []string
	for _, e := range explanations {
		if no&e.aspect != 0 {
			a, b := e.text(r, q)
			why, what = append(why, a), append(what, b)
		}
	}
	d.Reason += fmt.Sprintf("; the rule %s would, but %s", quote(r.Name), strings.Join(why, ", and "))
	d.Remedy = strings.Join(what, ", and ") + ", or have the operator change that rule or add another"
	return d
}

// suggestion is a rule that would allow the request, in YAML.
func (q *query) suggestion() string {
	proto := q.Protocol
	if proto == DNS {
		proto = HTTPS
	}
	s := fmt.Sprintf("{action: allow, protocols: [%s], hosts: [%q]", proto, q.host.String())
	if q.Port != standardPort(q.Protocol) && q.Protocol != DNS {
		s += fmt.Sprintf(", ports: [%d]", q.Port)
	}
	if q.Protocol == SSH {
		section := "commands: [...]"
		switch service, repository, ok := ParseGitCommand(q.SSH.Command); {
		case q.SSH.Kind == SSHShell:
			section = "shell: true"
		case q.SSH.Kind == SSHSubsystem:
			section = "subsystems: [" + quote(q.SSH.Command) + "]"
		case q.SSH.Kind == SSHForward:
			section = "forwards: [" + quote(q.SSH.Command) + "]"
		case ok:
			section = fmt.Sprintf("git: [%s], repositories: [%s]", service, quote(repository))
		case q.SSH.Command != "":
			section = "commands: [" + quote(q.SSH.Command) + "]"
		}
		s += ", ssh: {" + section + "}"
	}
	return s + "}"
}

// nearest finds the rule that would allow the request if the least were
// different, and what is.
func (p *Policy) nearest(q *query) (best *rule, no aspect) {
	least, budget := 100, maxCompared
	for _, r := range p.rules {
		if r.Action == ActionDeny {
			continue
		}
		differs := r.differs(q, true)
		if q.Protocol == DNS {
			differs &= aspectHost
		}
		if isHTTP(q.Protocol) && q.HTTP.Method == "" { // asked by Possible
			differs &^= aspectMethod | aspectPath
		}
		if q.Protocol == SSH && q.SSH.Kind == "" {
			differs &^= aspectSSH
		}
		if differs == 0 {
			if r.when == nil {
				continue // an earlier rule took its place
			}
			differs = aspectWhen
		}
		if differs&aspectProtocol != 0 && (q.Protocol == SSH || q.Protocol == TCP || r.ssh != nil || r.protocols[0] == TCP) {
			continue // nobody meant that one
		}
		distance := bits.OnesCount8(uint8(differs))
		if differs&aspectHost != 0 {
			budget -= len(r.Hosts)
			if budget < 0 || !r.hosts.resembles(q.host) {
				continue
			}
			distance += 4
		}
		if distance < least {
			best, no, least = r, differs, distance
		}
	}
	return best, no
}

// resembles says whether a host was perhaps mistaken for one in the list: it has
// the same registered domain, or is a typing mistake away.
func (s *hostSet) resembles(h Host) bool {
	if h.IsAddr() {
		return false
	}
	domain, err := publicsuffix.EffectiveTLDPlusOne(h.name)
	for _, names := range []map[string]struct{}{s.names, s.suffixes} {
		for n := range names {
			if d, derr := publicsuffix.EffectiveTLDPlusOne(n); err == nil && derr == nil && d == domain {
				return true
			}
			if len(h.name) > 5 && max(len(n)-len(h.name), len(h.name)-len(n)) < 3 && levenshtein.ComputeDistance(n, h.name) < 3 {
				return true
			}
		}
	}
	return false
}

// explanations say what differs and what the guest could do instead.
var explanations = []struct {
	aspect aspect
	text   func(*rule, *query) (why, what string)
}{
	{aspectHost, func(r *rule, q *query) (string, string) {
		return "it is for " + some(r.Hosts) + ", not " + q.host.String(), "use " + some(r.Hosts)
	}},
	{aspectProtocol, func(r *rule, q *query) (string, string) {
		return "it is for " + some(r.protocols) + ", not " + string(q.Protocol), "use " + some(r.protocols)
	}},
	{aspectPort, func(r *rule, q *query) (string, string) {
		ports := r.Ports
		if len(ports) == 0 {
			for _, p := range r.protocols {
				if p == q.Protocol || len(r.protocols) == 1 {
					ports = []string{fmt.Sprint(standardPort(p))}
				}
			}
		}
		if len(ports) == 0 {
			return "not for this port", "use the protocol's standard port"
		}
		return fmt.Sprintf("it is for port %s, not %d", some(ports), q.Port), "use port " + some(ports)
	}},
	{aspectMethod, func(r *rule, q *query) (string, string) {
		return fmt.Sprintf("it is for %s, not %s", some(r.methods), q.HTTP.Method), "use " + some(r.methods)
	}},
	{aspectPath, func(r *rule, _ *query) (string, string) {
		return "not for this path", "use a path that matches " + some(r.Paths)
	}},
	{aspectSSH, func(r *rule, _ *query) (string, string) { return "not for this", "run " + r.SSH.describe() }},
	{aspectWhen, func(r *rule, _ *query) (string, string) {
		return "its condition does not hold", "meet the condition " + quote(r.When)
	}},
}

// describe is what an ssh section lets run.
func (s *SSHRule) describe() string {
	var list []string
	if len(s.Git) > 0 && len(s.Repositories) > 0 {
		list = append(list, some(s.Git)+" on "+some(s.Repositories))
	}
	if len(s.Commands) > 0 {
		list = append(list, "commands like "+some(s.Commands))
	}
	if s.Shell {
		list = append(list, "a shell")
	}
	if len(s.Subsystems) > 0 {
		list = append(list, "the subsystem "+some(s.Subsystems))
	}
	if len(s.Forwards) > 0 {
		list = append(list, "forwards to "+some(s.Forwards))
	}
	return strings.Join(list, ", or ")
}

// some shows a list, or its beginning.
func some[T ~string](list []T) string {
	const most = 6
	var b strings.Builder
	for i, s := range list {
		switch {
		case i == most:
			fmt.Fprintf(&b, " (and %d more)", len(list)-most)
			return b.String()
		case i > 0 && i == len(list)-1:
			b.WriteString(" or ")
		case i > 0:
			b.WriteString(", ")
		}
		b.WriteString(string(s))
	}
	return b.String()
}
