package policy

import (
	"fmt"
	"net/netip"
	"strings"
)

// hostSet is the compiled list of hosts of a rule.
type hostSet struct {
	every    bool
	names    map[string]struct{}
	suffixes map[string]struct{} // of *.x: x
	ranges   []netip.Prefix
	stops    bool
}

// add takes one entry of a rule.
func (s *hostSet) add(entry string) error {
	switch {
	case entry == "*":
		s.every = true
		return nil
	case strings.HasPrefix(entry, "*."):
		h, err := ParseHost(entry[2:])
		if err != nil {
			return err
		}
		if h.IsAddr() {
			return fmt.Errorf("%s is no wildcard of names: write a range of addresses as 192.0.2.0/24", quote(entry))
		}
		s.suffixes[h.name] = struct{}{}
		return nil
	case strings.Contains(entry, "*"):
		return fmt.Errorf("%s has a wildcard in a place other than its first label: write *.example.com, or * for every name", quote(entry))
	case strings.Contains(entry, "://"):
		return fmt.Errorf("%s is a URL: write the host alone", quote(entry))
	case strings.Contains(entry, "/"):
		p, err := parsePrefix(entry)
		if err == nil {
			s.ranges = append(s.ranges, p)
		}
		return err
	}
	h, err := ParseHost(entry)
	switch {
	case err != nil:
		return err
	case h.IsAddr():
		s.ranges = append(s.ranges, netip.PrefixFrom(h.addr, h.addr.BitLen()))
	default:
		s.names[h.name] = struct{}{}
	}
	return nil
}

// match judges the host that was named and, for a rule that stops, also the
// address that it leads to. "*" of a rule that lets through stands for names
// only: by an address the guest would get around the rules about its name.
func (s *hostSet) match(h Host, addr netip.Addr) bool {
	if s.every && (s.stops || !h.IsAddr()) {
		return true
	}
	if h.IsAddr() {
		return within(s.ranges, h.addr)
	}
	if _, ok := s.names[h.name]; ok {
		return true
	}
	if len(s.suffixes) > 0 {
		for rest := h.name; ; {
			_, after, ok := strings.Cut(rest, ".")
			if !ok {
				break
			}
			if _, ok := s.suffixes[after]; ok {
				return true
			}
			rest = after
		}
	}
	return s.stops && addr.IsValid() && within(s.ranges, addr)
}

// within compares addresses as sockets do: the IPv4-mapped form is the IPv4 address.
func within(ranges []netip.Prefix, a netip.Addr) bool {
	for _, p := range ranges {
		if p.Contains(a) || p.Contains(a.Unmap()) {
			return true
		}
	}
	return false
}

// parsePrefix reads an address or a CIDR range.
func parsePrefix(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%s is neither an address nor a range such as 192.0.2.0/24", quote(s))
	case p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%s is a range of IPv4-mapped addresses: write it as IPv4", quote(s))
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%s has bits after its prefix: write %s", quote(s), p.Masked())
	}
	return p, nil
}
