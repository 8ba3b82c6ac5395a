package policy

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// Check returns everything that is wrong with a Spec and everything that is
// probably not meant: rules that no request reaches, wildcards that are wider
// than they look, addresses that open nothing. The keys are those of a configuration
// in which the Spec stands at "network".
func Check(s Spec) []Problem {
	var f findings
	p := compile(s, &f)
	mistakes := len(f.list) > 0
	for i, r := range p.rules {
		r.lint(&f)
		for _, earlier := range p.rules[:i] {
			if !mistakes && earlier.covers(r) {
				f.warn(r.key, "no request reaches the rule "+quote(r.Name), "the rule "+quote(earlier.Name)+" before it matches everything that it does: move it up, or remove it")
				break
			}
		}
	}
	return f.list
}

func (r *rule) lint(f *findings) {
	if r.Action != ActionDeny {
		for i, h := range r.Hosts {
			suffix, wild := strings.CutPrefix(h, "*.")
			host, err := ParseHost(suffix)
			switch {
			case h == "*" && r.Action == ActionAllow:
				f.warn(index(r.key+".hosts", i), "every host on the internet is allowed", "name the hosts that are needed; data can leave to all of them")
			case wild && err == nil && isPublicSuffix(host.name):
				f.warn(index(r.key+".hosts", i), "anybody can register a name under "+host.name, "name the domains that are needed")
			}
		}
	}
	wide := slices.ContainsFunc(r.Hosts, func(h string) bool { return strings.HasPrefix(h, "*") })
	if len(r.opens) > 0 && wide {
		f.warn(r.key+".allow_addresses", "whoever controls a name that the wildcard covers can point it at these addresses", "name the hosts exactly")
	}
	for i, p := range r.opens {
		key := index(r.key+".allow_addresses", i)
		if !p.IsSingleIP() {
			for _, m := range metadata {
				if p.Contains(m.prefix.Addr()) {
					f.warn(key, fmt.Sprintf("%s is in this range and stays blocked (%s)", m.prefix.Addr(), m.reason), "")
					break
				}
			}
		} else if _, blocked := Blocked(p.Addr()); !blocked {
			f.warn(key, p.Addr().String()+" is not blocked in the first place", "allow_addresses does not restrict a rule: remove it")
		}
	}
}

func isPublicSuffix(name string) bool {
	suffix, registry := publicsuffix.PublicSuffix(name)
	// A last label that no registry knows is somebody's internal one.
	return suffix == name && (registry || strings.Contains(name, "."))
}

// covers says whether every request that b matches is matched by a before. It
// may miss a case and never claims one.
func (a *rule) covers(b *rule) bool {
	return a.when == nil &&
		all(b.protocols, func(p Protocol) bool { return slices.Contains(a.protocols, p) }) &&
		a.hosts.covers(&b.hosts) && a.coversPorts(b) &&
		(len(a.methods) == 0 || len(b.methods) > 0 && all(b.methods, func(m string) bool { return slices.Contains(a.methods, m) })) &&
		(len(a.paths.globs) == 0 || len(b.paths.globs) > 0 && all(b.paths.globs, func(g string) bool { return slices.Contains(a.paths.globs, g) || slices.Contains(a.paths.globs, "/**") })) &&
		(a.ssh == nil || b.SSH != nil && reflect.DeepEqual(a.SSH, b.SSH))
}

func all[T any](list []T, is func(T) bool) bool {
	return !slices.ContainsFunc(list, func(t T) bool { return !is(t) })
}

func (a *rule) coversPorts(b *rule) bool {
	if len(a.ports) == 0 {
		return a.Action == ActionDeny || b.Action != ActionDeny && all(b.protocols, func(p Protocol) bool {
			own := portRange{standardPort(p), standardPort(p)}
			return all(b.ports, func(q portRange) bool { return q == own })
		})
	}
	ports := b.ports
	if len(ports) == 0 {
		if b.Action == ActionDeny {
			ports = []portRange{{1, 65535}}
		}
		for _, p := range b.protocols {
			if port := standardPort(p); port != 0 && b.Action != ActionDeny {
				ports = append(ports, portRange{port, port})
			}
		}
	}
	return all(ports, func(p portRange) bool {
		return slices.ContainsFunc(a.ports, func(q portRange) bool { return q.from <= p.from && p.to <= q.to })
	})
}

func (s *hostSet) covers(b *hostSet) bool {
	if s.every && (s.stops || len(b.ranges) == 0 && !(b.every && b.stops)) {
		return true
	}
	if b.every && !s.every {
		return false
	}
	name := func(n string) bool { return s.every || s.match(Host{name: n}, netip.Addr{}) }
	suffix := func(n string) bool {
		_, same := s.suffixes[n]
		return s.every || same || len(s.suffixes) > 0 && s.match(Host{name: "x." + n}, netip.Addr{}) && !s.has("x."+n)
	}
	for n := range b.names {
		if !name(n) {
			return false
		}
	}
	for n := range b.suffixes {
		if !suffix(n) {
			return false
		}
	}
	return all(b.ranges, func(p netip.Prefix) bool {
		return slices.ContainsFunc(s.ranges, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) })
	})
}

func (s *hostSet) has(name string) bool {
	_, ok := s.names[name]
	return ok
}
