package policy

import "net/netip"

// block is a range of addresses that nothing reaches unless a rule opens it.
type block struct {
	prefix netip.Prefix
	reason string
}

func blocks(list ...string) []block {
	var out []block
	for i := 0; i+1 < len(list); i += 2 {
		out = append(out, block{netip.MustParsePrefix(list[i]), list[i+1]})
	}
	return out
}

// metadata are the addresses where clouds give credentials to whoever asks. A
// range in allow_addresses does not open them, only their own address does.
var metadata = blocks(
	"169.254.169.254/32", "cloud metadata", // AWS, Azure, Google, Oracle, DigitalOcean and others
	"169.254.169.253/32", "cloud resolver", // AWS
	"169.254.170.2/32", "cloud metadata", // AWS ECS
	"169.254.170.23/32", "cloud metadata", // AWS EKS
	"169.254.0.23/32", "cloud metadata", // Tencent
	"169.254.42.42/32", "cloud metadata", // Scaleway
	"100.100.100.200/32", "cloud metadata", // Alibaba
	"168.63.129.16/32", "cloud platform", // Azure, in a public range
	"192.0.0.192/32", "cloud metadata", // Oracle, older
	"fd00:ec2::254/128", "cloud metadata", // AWS
	"fd00:ec2::253/128", "cloud resolver", // AWS
	"fd00:ec2::23/128", "cloud metadata", // AWS EKS
	"fd20:ce::254/128", "cloud metadata", // Google
	"fd00:42::42/128", "cloud metadata", // Scaleway
)

// blocked4 follows the IANA IPv4 Special-Purpose Address Registry (RFC 6890).
var blocked4 = blocks(
	"0.0.0.0/8", "this network", // RFC 791; 0.0.0.0 connects to the host itself
	"10.0.0.0/8", "private network", // RFC 1918
	"100.64.0.0/10", "carrier-grade NAT", // RFC 6598
	"127.0.0.0/8", "loopback", // RFC 1122
	"169.254.0.0/16", "link-local", // RFC 3927
	"172.16.0.0/12", "private network", // RFC 1918
	"192.0.0.0/24", "reserved", // RFC 6890
	"192.0.2.0/24", "documentation", // RFC 5737
	"192.88.99.0/24", "reserved", // RFC 7526, formerly 6to4 relays
	"192.168.0.0/16", "private network", // RFC 1918
	"198.18.0.0/15", "benchmarking", // RFC 2544
	"198.51.100.0/24", "documentation", // RFC 5737
	"203.0.113.0/24", "documentation", // RFC 5737
	"224.0.0.0/4", "multicast", // RFC 5771
	"240.0.0.0/4", "reserved", // RFC 1112, with the broadcast address
)

// blocked6 is about addresses that carry no IPv4 address; the first that
// matches names the reason. What is outside of 2000::/3 is no global unicast
// address and blocked as a whole (IANA IPv6 Address Space).
var blocked6 = blocks(
	"::/128", "unspecified", // RFC 4291; connects to the host itself
	"::1/128", "loopback", // RFC 4291
	"::/96", "IPv4-compatible", // RFC 4291, deprecated
	"64:ff9b:1::/48", "local-use NAT64", // RFC 8215
	"100::/64", "discard-only", // RFC 6666
	"5f00::/16", "segment routing", // RFC 9602
	"fc00::/7", "unique local", // RFC 4193
	"fe80::/10", "link-local", // RFC 4291
	"fec0::/10", "site-local", // RFC 3879, deprecated
	"ff00::/8", "multicast", // RFC 4291
	"2001:db8::/32", "documentation", // RFC 3849
	"3fff::/20", "documentation", // RFC 9637
	"2001:2::/48", "benchmarking", // RFC 5180
	"2001::/23", "reserved", // RFC 2928: ORCHID, AMT, AS112 and the like
)

var (
	globalUnicast = netip.MustParsePrefix("2000::/3")
	nat64         = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052
	sixToFour     = netip.MustParsePrefix("2002::/16")    // RFC 3056
	teredo        = netip.MustParsePrefix("2001::/32")    // RFC 4380
)

// Blocked says why an address is reached only if a rule opens it: "loopback",
// "private network", "cloud metadata" and so on. Addresses that carry an IPv4
// address (IPv4-mapped, NAT64, 6to4, Teredo, ISATAP) are judged by that one, and the
// reason tells: "NAT64 form of loopback". What is no address, or has a zone,
// is blocked.
func Blocked(a netip.Addr) (reason string, blocked bool) {
	switch {
	case !a.IsValid():
		return "no address", true
	case a.Zone() != "":
		return "address with a zone", true
	}
	if reason, ok := find(metadata, a.Unmap()); ok {
		return reason, true
	}
	if a.Is4() {
		return find(blocked4, a)
	}
	for _, e := range embedded(a) {
		if reason, ok := Blocked(e.addr); ok {
			return e.form + " form of " + reason, true
		}
	}
	if a.Is4In6() || nat64.Contains(a) || teredo.Contains(a) {
		return "", false
	}
	if reason, ok := find(blocked6, a); ok {
		return reason, true
	}
	if !globalUnicast.Contains(a) {
		return "reserved", true
	}
	return "", false
}

func find(list []block, a netip.Addr) (string, bool) {
	for _, b := range list {
		if b.prefix.Contains(a) {
			return b.reason, true
		}
	}
	return "", false
}

type carried struct {
	addr netip.Addr
	form string
}

// embedded returns the IPv4 addresses that an IPv6 address leads to.
func embedded(a netip.Addr) []carried {
	b := a.As16()
	v4 := func(at int, xor byte) netip.Addr {
		return netip.AddrFrom4([4]byte{b[at] ^ xor, b[at+1] ^ xor, b[at+2] ^ xor, b[at+3] ^ xor})
	}
	switch {
	case a.Is4In6():
		return []carried{{v4(12, 0), "IPv4-mapped"}}
	case nat64.Contains(a):
		return []carried{{v4(12, 0), "NAT64"}}
	case sixToFour.Contains(a):
		return []carried{{v4(2, 0), "6to4"}}
	case teredo.Contains(a):
		// The server in the clear, the client's address inverted (RFC 4380, 4).
		return []carried{{v4(4, 0), "Teredo"}, {v4(12, 0xff), "Teredo"}}
	case b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe:
		return []carried{{v4(12, 0), "ISATAP"}} // RFC 5214, 6.1
	}
	return nil
}

// opens says whether a rule's allow_addresses open an address that is blocked
// by default. The IPv4-mapped form is the same socket and counts as the IPv4
// address; the other forms have to be named as they are.
func opens(list []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap()
	_, meta := find(metadata, a)
	for _, p := range list {
		if p.Contains(a) && (!meta || p.IsSingleIP()) {
			return true
		}
	}
	return false
}
