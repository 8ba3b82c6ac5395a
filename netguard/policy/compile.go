package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
)

const (
	maxRules = 1000
	maxHosts = 10000 // of all rules together
)

// Policy is a compiled Spec. It never changes and is safe for concurrent use.
type Policy struct {
	rules []*rule
}

// rule is a compiled Rule, with everything that the Spec left to defaults.
type rule struct {
	Rule             // as shown
	key       string // where it stands in the Spec
	stops     bool   // deny, and ask where it concerns what counts as a match
	protocols []Protocol
	hosts     hostSet
	ports     []portRange // none: the protocol's own; for a rule that denies: all
	methods   []string
	paths     pathSet
	ssh       *sshSet
	when      cel.Program
	opens     []netip.Prefix
	limits    Limits
}

type portRange struct{ from, to uint16 }

// Compile makes a Policy of a Spec, or returns an [*Error] with every mistake.
// Warnings of [Check] are no mistakes.
func Compile(s Spec) (*Policy, error) {
	var f findings
	p := compile(s, &f)
	bad := slices.DeleteFunc(f.list, func(p Problem) bool { return p.Warning })
	if len(bad) > 0 {
		return nil, &Error{Problems: bad}
	}
	return p, nil
}

// Rules returns the rules in force, in order, those of profiles included.
func (p *Policy) Rules() []Rule {
	list := make([]Rule, 0, len(p.rules))
	for _, r := range p.rules {
		shown := r.Rule
		shown.Protocols = slices.Clone(r.protocols)
		list = append(list, shown)
	}
	return list
}

func compile(s Spec, f *findings) *Policy {
	p := &Policy{}
	names := map[string]string{}
	hosts := 0
	add := func(spec Rule, key string) {
		if len(p.rules) == maxRules || hosts+len(spec.Hosts) > maxHosts {
			f.bad(key, fmt.Sprintf("there are more than %d rules or %d hosts", maxRules, maxHosts), "use wildcards")
			return
		}
		hosts += len(spec.Hosts)
		if spec.Name == "" {
			spec.Name = fmt.Sprintf("rule %d", len(p.rules)+1)
		}
		if first, twice := names[spec.Name]; twice {
			f.bad(key+".name", "the name "+quote(spec.Name)+" is taken", first+" has it already")
		}
		names[spec.Name] = key
		p.rules = append(p.rules, compileRule(spec, key, f))
	}
	for i, r := range s.Rules {
		if len(f.list) == maxProblems || len(p.rules) == maxRules {
			break
		}
		add(r, index("network.rules", i))
	}
	for i, profile := range s.Profiles {
		key := index("network.profiles", i)
		for _, r := range profile.rules(key, f) {
			add(r, key)
		}
	}
	return p
}

func compileRule(s Rule, key string, f *findings) *rule {
	r := &rule{Rule: s, key: key}
	switch s.Action {
	case ActionAllow:
	case ActionDeny, ActionAsk:
		r.stops = true
	case "":
		f.bad(key+".action", "there is no action", "write allow, deny or ask")
	default:
		f.bad(key+".action", "the action "+quote(string(s.Action))+" is unknown", meant(string(s.Action), "allow", "deny", "ask"))
	}
	if len(s.Name) > 100 || strings.ContainsFunc(s.Name, func(c rune) bool { return c < ' ' || c == 0x7f }) {
		f.bad(key+".name", "the name "+quote(s.Name)+" is no name", "use at most 100 printable bytes")
	}
	r.compileProtocols(key, f)
	r.compileHosts(key, f)
	r.compilePorts(key, f)
	r.compileHTTP(key, f)
	r.compileSSH(key, f)
	r.compileBounds(key, f)
	if s.When != "" {
		var err error
		if r.when, err = compileWhen(s.When); err != nil {
			f.bad(key+".when", err.Error(), "")
		}
	}
	return r
}

// compileProtocols fills in what a rule without protocols is about.
func (r *rule) compileProtocols(key string, f *findings) {
	for i, p := range r.Protocols {
		if !slices.Contains(protocols, p) {
			f.bad(index(key+".protocols", i), "the protocol "+quote(string(p))+" is unknown", meant(string(p), protocols...))
		}
	}
	deny := r.Action == ActionDeny
	http := len(r.Methods) > 0 || len(r.Paths) > 0
	switch {
	case len(r.Protocols) > 0:
		r.protocols = slices.Clone(r.Protocols)
	case r.SSH != nil:
		r.protocols = []Protocol{SSH}
	case deny && !http:
		r.protocols = protocols
	case deny || len(r.Methods) == 0:
		r.protocols = []Protocol{HTTP, HTTPS, WS, WSS}
	default:
		// A rule for reading must not open a channel that goes both ways.
		r.protocols = []Protocol{HTTP, HTTPS}
	}
	for _, p := range r.protocols {
		if http && !isHTTP(p) {
			f.bad(key+".protocols", "methods and paths say nothing about "+string(p), "make two rules")
		}
		if r.SSH != nil && p != SSH {
			f.bad(key+".protocols", "ssh says nothing about "+string(p), "make two rules")
		}
		if p == SSH && r.SSH == nil && !deny {
			f.bad(key+".ssh", "the rule is about SSH and does not say what may run", "add ssh with git and repositories, or commands")
		}
		if p == TCP && len(r.Ports) == 0 && !deny {
			f.bad(key+".ports", "the rule is about TCP and names no port", `add one, such as "5432"`)
		}
	}
}

func (r *rule) compileHosts(key string, f *findings) {
	r.hosts = hostSet{names: map[string]struct{}{}, suffixes: map[string]struct{}{}, stops: r.stops}
	if len(r.Hosts) == 0 {
		f.bad(key+".hosts", "the rule names no host and matches nothing", `write "*" if every host is meant`)
	}
	for i, h := range r.Hosts {
		if err := r.hosts.add(h); err != nil {
			f.bad(index(key+".hosts", i), err.Error(), "")
		}
	}
	for i, a := range r.AllowAddresses {
		p, err := parsePrefix(a)
		if err != nil {
			f.bad(index(key+".allow_addresses", i), err.Error(), "")
			continue
		}
		r.opens = append(r.opens, p)
	}
	if len(r.opens) > 0 && r.Action == ActionDeny {
		f.bad(key+".allow_addresses", "a rule that denies opens no address", "remove it")
	}
}

func (r *rule) compileBounds(key string, f *findings) {
	if q := r.Quota; q != nil {
		r.limits.Quota = *q
		if q.Bytes < 0 || q.Requests < 0 || *q == (Quota{}) {
			f.bad(key+".quota", "the quota bounds nothing", "give bytes or requests, above 0")
		}
	}
	if q := r.Rate; q != nil {
		r.limits.Rate = *q
		if !(q.PerSecond > 0 && q.PerSecond <= 1e6) || q.Burst < 0 || q.Burst > 1e6 {
			f.bad(key+".rate", "the rate is out of range", "give per_second above 0 and at most 1000000, and burst as high")
		} else if q.Burst == 0 {
			r.limits.Rate.Burst = int(q.PerSecond)
			if float64(r.limits.Rate.Burst) < q.PerSecond {
				r.limits.Rate.Burst++
			}
		}
	}
	if (r.Quota != nil || r.Rate != nil) && r.Action == ActionDeny {
		f.bad(key, "a rule that denies has nothing to bound", "remove quota and rate")
	}
}
