package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Host is a host in the one form that rules are matched against: either a DNS
// name or an address. The zero value is no host.
type Host struct {
	name string
	addr netip.Addr
}

// maxHostInput bounds what is looked at, in bytes: a name in Unicode may be
// longer than the 253 bytes that it has in ASCII.
const maxHostInput = 1024

// ParseHost canonicalises a host as a URL, a Host header, an SNI, a DNS query
// or a configuration writes it, without a port. Names become lower case, lose a
// trailing dot and are converted to ASCII (UTS #46, lookup). What a browser or
// curl would take for an IPv4 address is one, in all its forms: "127.1",
// "0x7f.1", "2130706433", "0177.0.0.1" (WHATWG URL, "ends in a number"). An IPv6
// address stands with or without brackets; one with a zone is refused.
//
// It refuses NUL and every other byte that is no letter, digit, hyphen or
// underscore, empty labels, labels over 63 and names over 253 bytes.
func ParseHost(s string) (Host, error) {
	switch {
	case s == "":
		return Host{}, errors.New("the host is empty")
	case len(s) > maxHostInput:
		return Host{}, fmt.Errorf("the host has %d bytes: a name has at most 253", len(s))
	case s[0] == '[':
		inner, ok := strings.CutSuffix(s[1:], "]")
		if !ok || !strings.Contains(inner, ":") {
			return Host{}, fmt.Errorf("the host %s is no address in brackets", quote(s))
		}
		return parseIPv6(inner)
	case strings.Contains(s, ":"):
		return parseIPv6(s)
	}
	name, err := toASCII(s)
	if err != nil {
		return Host{}, err
	}
	name = strings.TrimSuffix(name, ".")
	if endsInNumber(name) {
		addr, err := parseIPv4(name)
		if err != nil {
			return Host{}, fmt.Errorf("the host %s ends in a number and is no IPv4 address: %w", quote(s), err)
		}
		return Host{addr: addr}, nil
	}
	if err := checkName(name); err != nil {
		return Host{}, fmt.Errorf("the host %s %w", quote(s), err)
	}
	return Host{name: name}, nil
}

// IsAddr tells an address from a name.
func (h Host) IsAddr() bool { return h.addr.IsValid() }

// Addr is the address, or the zero Addr when the host is a name.
func (h Host) Addr() netip.Addr { return h.addr }

// String is the canonical name or address, without brackets.
func (h Host) String() string {
	if h.addr.IsValid() {
		return h.addr.String()
	}
	return h.name
}

func parseIPv6(s string) (Host, error) {
	addr, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return Host{}, fmt.Errorf("the host %s is no IPv6 address (a port does not belong here)", quote(s))
	case addr.Zone() != "":
		return Host{}, fmt.Errorf("the host %s has a zone: zones mean something on one machine only", quote(s))
	}
	return Host{addr: addr}, nil
}

// toASCII lower-cases plain names itself and leaves the others to IDNA. Plain
// names may have underscores and hyphens in third and fourth place, which IDNA would
// refuse and which exist.
func toASCII(s string) (string, error) {
	plain, upper := true, false
	for i := range len(s) {
		plain = plain && s[i] < 0x80
		upper = upper || 'A' <= s[i] && s[i] <= 'Z'
	}
	if plain && upper {
		s = strings.ToLower(s)
	}
	if plain && !strings.Contains(s, "xn--") {
		return s, nil
	}
	name, err := idna.Lookup.ToASCII(s)
	if err != nil || !utf8.ValidString(s) {
		return "", fmt.Errorf("the host %s is no internationalised name", quote(s))
	}
	return name, nil
}

func checkName(name string) error {
	if name == "" || len(name) > 253 {
		return fmt.Errorf("has %d bytes: a name has 1 to 253", len(name))
	}
	start := 0
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '.' {
			if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return fmt.Errorf("has the byte %#02x, which is not for host names", c)
			}
			continue
		}
		switch label := name[start:i]; {
		case label == "":
			return errors.New("has an empty label")
		case len(label) > 63:
			return errors.New("has a label of more than 63 bytes")
		case label[0] == '-' || label[len(label)-1] == '-':
			return errors.New("has a label that begins or ends with a hyphen")
		}
		start = i + 1
	}
	return nil
}

// endsInNumber is the WHATWG URL standard's test for what is to be parsed as
// IPv4, on a lower-case name.
func endsInNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	if last == "" {
		return false
	}
	if strings.Trim(last, "0123456789") == "" {
		return true
	}
	hex, ok := strings.CutPrefix(last, "0x")
	return ok && strings.Trim(hex, "0123456789abcdef") == ""
}

// parseIPv4 is the WHATWG URL standard's IPv4 parser.
func parseIPv4(name string) (netip.Addr, error) {
	parts := strings.Split(name, ".")
	if len(parts) > 4 {
		return netip.Addr{}, errors.New("it has more than four parts")
	}
	var value uint64
	for i, p := range parts {
		n, err := parsePart(p)
		if err != nil {
			return netip.Addr{}, err
		}
		bits := 8
		if i == len(parts)-1 {
			bits = 8 * (5 - len(parts))
		}
		if n >= 1<<bits {
			return netip.Addr{}, errors.New("a part is too large")
		}
		value = value<<bits | n
	}
	return netip.AddrFrom4([4]byte{byte(value >> 24), byte(value >> 16), byte(value >> 8), byte(value)}), nil
}

func parsePart(p string) (uint64, error) {
	base := 10
	switch {
	case p == "":
		return 0, errors.New("a part is empty")
	case strings.HasPrefix(p, "0x"):
		if p, base = p[2:], 16; p == "" {
			return 0, nil
		}
	case len(p) > 1 && p[0] == '0':
		p, base = p[1:], 8
	}
	n, err := strconv.ParseUint(p, base, 33)
	if err != nil {
		return 0, errors.New("a part is no number")
	}
	return n, nil
}

// quote shows what strangers wrote: printable, and not for ever.
func quote(s string) string {
	const most = 100
	if r := []rune(s[:min(len(s), 4*most+4)]); len(r) > most {
		s = string(r[:most]) + "…"
	}
	return strconv.QuoteToASCII(s)
}
