package policy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// §10: 0.0.0.0, ::, ::ffff:127.0.0.1, decimal/octal/hex host forms.
func TestAddressesInDisguiseAreAddresses(t *testing.T) {
	for host, want := range map[string]string{
		"127.0.0.1": "127.0.0.1", "127.1": "127.0.0.1", "0x7f.1": "127.0.0.1", "0X7F.0.0.1": "127.0.0.1", "2130706433": "127.0.0.1", "0177.0.0.1": "127.0.0.1",
		"017700000001": "127.0.0.1", "0x7f000001": "127.0.0.1", "0": "0.0.0.0", "0x": "0.0.0.0", "127.0.0.1.": "127.0.0.1", "0.0.0.0": "0.0.0.0",
		"１２７.0.0.1": "127.0.0.1", "127。0。0。1": "127.0.0.1", "[::1]": "::1", "::1": "::1", "::": "::", "[::ffff:127.0.0.1]": "::ffff:127.0.0.1", "::ffff:7f00:1": "::ffff:127.0.0.1",
	} {
		h, err := ParseHost(host)
		require.NoError(t, err, host)
		assert.True(t, h.IsAddr(), host)
		assert.Equal(t, want, h.String(), host)
		_, blocked := Blocked(h.Addr())
		assert.True(t, blocked, host)
		p := compiled(t, Rule{Action: ActionAllow, Hosts: []string{"*", "0.0.0.0/0", "::/0"}})
		d := p.Decide(Request{Protocol: HTTP, Host: host, Port: 80, HTTP: HTTPCall{Method: "GET", Path: "/"}})
		assert.Equal(t, Deny, d.Verdict, host)
		assert.Contains(t, d.Reason, "blocked unless a rule opens it", host)
		assert.Equal(t, Deny, p.Decide(Request{Protocol: DNS, Host: host}).Verdict, host)
	}
	for _, host := range []string{
		"256.1.1.1", "1.2.3.4.5", "1.2.3.256", "0x1g.1", "09", "1..1", "4294967296", "127.0.0.0x100", "a.1", "example.0x10", "[127.0.0.1]", "[::1", "::1]", "[::1%25lo]", "fe80::1%lo",
		"1.2.3.4:80", "a:b", "[]", "999999999999999999999",
	} {
		_, err := ParseHost(host)
		assert.Error(t, err, host)
	}
}

func TestNamesAreMadeCanonicalOrRefused(t *testing.T) {
	for in, want := range map[string]string{
		"Example.COM": "example.com", "example.com.": "example.com", "localhost": "localhost", "_dmarc.my_host.example": "_dmarc.my_host.example",
		"r3---sn-x.example": "r3---sn-x.example", "1a.example": "1a.example", "straße.example": "xn--strae-oqa.example", "xn--bcher-kva.example": "xn--bcher-kva.example",
		strings.Repeat("a", 63) + ".example": strings.Repeat("a", 63) + ".example", "0x.example": "0x.example", "1.example": "1.example",
	} {
		h, err := ParseHost(in)
		require.NoError(t, err, in)
		assert.Equal(t, want, h.String(), in)
		assert.False(t, h.IsAddr(), in)
		again, err := ParseHost(h.String())
		require.NoError(t, err)
		assert.Equal(t, h, again)
	}
	for _, in := range []string{
		"", ".", "..", "a..b", ".a", "a..", "a b", "a\x00", "a\n", "a/b", "a%2eb", "a@b", "-a.b", "a-.b", "*.a", "a,b", "xn--a\u00e9", "xn--zzzzzz-", "\u200d.example",
		strings.Repeat("a", 64) + ".b", strings.Repeat("a.", 128), strings.Repeat("a.", 2000), "\xff\xfe.example",
	} {
		_, err := ParseHost(in)
		assert.Error(t, err, "%q", in)
	}
}

func TestAddressesOfSpecialUseAreBlocked(t *testing.T) {
	for addr, want := range map[string]string{
		"127.0.0.1": "loopback", "127.255.255.254": "loopback", "10.1.2.3": "private network", "172.16.0.1": "private network", "172.31.255.255": "private network", "192.168.1.1": "private network",
		"169.254.1.1": "link-local", "169.254.169.254": "cloud metadata", "100.64.0.1": "carrier-grade NAT", "100.100.100.200": "cloud metadata", "168.63.129.16": "cloud platform",
		"0.0.0.0": "this network", "0.1.2.3": "this network", "224.0.0.1": "multicast", "239.255.255.255": "multicast", "240.0.0.1": "reserved", "255.255.255.255": "reserved",
		"198.18.0.1": "benchmarking", "198.19.255.255": "benchmarking", "192.0.2.1": "documentation", "198.51.100.1": "documentation", "203.0.113.1": "documentation", "192.0.0.8": "reserved", "192.0.0.192": "cloud metadata",
		"::": "unspecified", "::1": "loopback", "::127.0.0.1": "IPv4-compatible", "::ffff:127.0.0.1": "IPv4-mapped form of loopback", "::ffff:0.0.0.0": "IPv4-mapped form of this network",
		"::ffff:169.254.169.254": "cloud metadata", "::ffff:10.0.0.1": "IPv4-mapped form of private network",
		"64:ff9b::127.0.0.1": "NAT64 form of loopback", "64:ff9b::a9fe:a9fe": "NAT64 form of cloud metadata", "64:ff9b:1::808:808": "local-use NAT64",
		"2002:7f00:1::": "6to4 form of loopback", "2002:a00:1::1": "6to4 form of private network", "2001:0:7f00:1::": "Teredo form of loopback", "2001:0:808:808::80ff:fffe": "Teredo form of loopback",
		"2600::5efe:10.0.0.1": "ISATAP form of private network", "2600::200:5efe:7f00:1": "ISATAP form of loopback",
		"fc00::1": "unique local", "fd00:ec2::254": "cloud metadata", "fd20:ce::254": "cloud metadata", "fe80::1": "link-local", "fec0::1": "site-local", "ff02::1": "multicast",
		"2001:db8::1": "documentation", "3fff::1": "documentation", "2001:2::1": "benchmarking", "2001:10::1": "reserved", "100::1": "discard-only", "5f00::1": "segment routing",
		"4000::1": "reserved", "1::1": "reserved", "::2:0:0": "reserved", "fe80::1%eth0": "address with a zone",
	} {
		reason, blocked := Blocked(netip.MustParseAddr(addr))
		assert.True(t, blocked, addr)
		assert.Equal(t, want, reason, addr)
	}
	_, blocked := Blocked(netip.Addr{})
	assert.True(t, blocked)
	for _, addr := range []string{
		"8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.0", "172.15.0.1", "172.32.0.1", "198.17.0.1", "198.20.0.1", "223.255.255.255", "11.0.0.1", "2001:4860:4860::8888", "2606:4700::1111",
		"::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1", "2001:0:808:808::f7f7:f7f7", "2001:200::1", "3ffe::1",
	} {
		reason, blocked := Blocked(netip.MustParseAddr(addr))
		assert.False(t, blocked, "%s: %s", addr, reason)
	}
}

// §10: redirect to an internal address; rebinding between check and dial; only
// the first of several addresses checked. Each address is judged by itself.
func TestAnAllowedNameDoesNotReachABlockedAddress(t *testing.T) {
	p := compiled(t, Rule{Name: "web", Action: ActionAllow, Hosts: []string{"a.example"}})
	r := request(t, "https://a.example/")
	for addr, want := range map[string]Verdict{"8.8.8.8": Allow, "127.0.0.1": Deny, "::ffff:127.0.0.1": Deny, "169.254.169.254": Deny, "64:ff9b::7f00:1": Deny, "fd00::1": Deny} {
		r.Addr = netip.MustParseAddr(addr)
		d := p.Decide(r)
		assert.Equal(t, want, d.Verdict, addr)
		assert.Equal(t, "web", d.Rule)
	}
}

func TestOnlyNamedAddressesAreOpened(t *testing.T) {
	p := compiled(t,
		Rule{Action: ActionAllow, Hosts: []string{"a.example"}, AllowAddresses: []string{"127.0.0.1", "10.1.0.0/16"}},
		Rule{Action: ActionAllow, Hosts: []string{"b.example"}, AllowAddresses: []string{"0.0.0.0/0", "::/0"}},
		Rule{Action: ActionAllow, Hosts: []string{"meta.example"}, AllowAddresses: []string{"169.254.169.254"}},
	)
	for _, c := range []struct {
		host, addr string
		want       Verdict
	}{
		{"a.example", "127.0.0.1", Allow}, {"a.example", "::ffff:127.0.0.1", Allow}, {"a.example", "127.0.0.2", Deny}, {"a.example", "10.1.2.3", Allow}, {"a.example", "10.2.0.1", Deny},
		{"a.example", "::1", Deny}, {"a.example", "64:ff9b::127.0.0.1", Deny}, {"b.example", "192.168.0.1", Allow}, {"b.example", "::1", Allow},
		{"b.example", "169.254.169.254", Deny}, {"b.example", "fd00:ec2::254", Deny}, {"b.example", "::ffff:169.254.169.254", Deny}, {"meta.example", "169.254.169.254", Allow},
	} {
		r := request(t, "https://"+c.host+"/")
		r.Addr = netip.MustParseAddr(c.addr)
		assert.Equal(t, c.want, p.Decide(r).Verdict, "%s at %s", c.host, c.addr)
	}
}
