package secret

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"
)

// Target is where a request goes.
type Target struct {
	Host string // canonical: lower case, ASCII, no trailing dot; or an address without brackets
	Port uint16
	TLS  bool // encrypted, with the server's certificate checked
}

// binding is one host that may get a secret.
type binding struct {
	name   string
	suffix bool // name stands for what ends in a dot and it
	addr   netip.Addr
	port   uint16 // 0 for any
}

func parseBinding(s string) (binding, error) {
	var b binding
	host := s
	if strings.Contains(s, "/") {
		return b, fmt.Errorf("%s is no host name, *.name or address", quote(s))
	}
	if h, port, err := net.SplitHostPort(s); err == nil {
		n, perr := strconv.ParseUint(port, 10, 16)
		if perr != nil || n == 0 {
			return b, fmt.Errorf("%s has no valid port", quote(s))
		}
		host, b.port = h, uint16(n)
	}
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil && addr.Zone() == "" {
		b.addr = addr.Unmap()
		return b, nil
	}
	host, b.suffix = strings.CutPrefix(host, "*.")
	name, err := idna.Lookup.ToASCII(strings.ReplaceAll(strings.TrimSuffix(host, "."), "_", "u")) // IDNA knows no underscore
	switch {
	case s == "*" || host == "*":
		return b, errors.New("a secret cannot be bound to every host: name those that may get it")
	case err != nil || name == "" || strings.ContainsAny(host, "*: "):
		return b, fmt.Errorf("%s is no host name, *.name or address", quote(s))
	}
	if strings.Contains(host, "_") {
		name = strings.ToLower(strings.TrimSuffix(host, "."))
	}
	if suffix, registry := publicsuffix.PublicSuffix(name); b.suffix && suffix == name && (registry || strings.Contains(name, ".")) {
		return b, fmt.Errorf("%s would bind the secret to names that anybody can register", quote(s))
	}
	b.name = name
	return b, nil
}

func (b binding) match(t Target) bool {
	if b.port != 0 && b.port != t.Port {
		return false
	}
	if b.addr.IsValid() {
		addr, err := netip.ParseAddr(strings.Trim(t.Host, "[]"))
		return err == nil && addr.Unmap() == b.addr
	}
	host := strings.ToLower(strings.TrimSuffix(t.Host, "."))
	if b.suffix {
		return strings.HasSuffix(host, "."+b.name)
	}
	return host == b.name
}
