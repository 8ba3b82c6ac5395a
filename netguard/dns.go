package netguard

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// DNSMode says where the answers to the guest's lookups come from.
type DNSMode string

// The modes. In each the policy judges a name before anything else happens to it.
const (
	// DNSSynthetic, the default, gives each allowed name an address of its own. No query
	// leaves the host, so that nothing can be told to anybody in the form of names.
	DNSSynthetic DNSMode = "synthetic"
	// DNSTrusted looks allowed names up on the host and answers with their real
	// addresses. A name's owner sees that it is looked up; where a rule allows
	// *.example.com, the owner of example.com can be told anything in the names below it.
	DNSTrusted DNSMode = "trusted"
	// DNSOpen forwards queries of other types (TXT, MX, SRV and so on) as well, whose
	// answers bring in whatever the name's owner writes there.
	DNSOpen DNSMode = "open"
)

func (m DNSMode) check() (DNSMode, error) {
	switch m {
	case "":
		return DNSSynthetic, nil
	case DNSSynthetic, DNSTrusted, DNSOpen:
		return m, nil
	}
	return "", fmt.Errorf("the DNS mode %q is none of synthetic, trusted and open", m)
}

const (
	dnsPort = 53

	// minUDP is what every client takes (RFC 1035, 4.2.1), and maxUDP what we send at
	// most to one that says it takes more, in bytes (DNS flag day 2020). Queries are
	// never longer.
	minUDP = dns.MinMsgSize
	maxUDP = 1232
	// maxTCPQuery is generous: a query has one name and perhaps a few options.
	maxTCPQuery = 4096
)

// dnsQuery is a query that is well-formed.
type dnsQuery struct {
	msg  *dns.Msg
	name string // canonical; empty if no host can be called so
	tcp  bool
}

// parseQuery checks a message from the guest. Where there is something to answer to
// but no proper query, the reply is returned; where there is nothing, neither is.
func parseQuery(b []byte, tcp bool) (*dnsQuery, *dns.Msg) {
	if len(b) < 12 || b[2]&0x80 != 0 {
		return nil, nil // no header, or a response: answering one could go on for ever
	}
	q := &dnsQuery{msg: new(dns.Msg), tcp: tcp}
	limit := maxUDP
	if tcp {
		limit = maxTCPQuery
	}
	if opcode := int(b[2]>>3) & 0xf; opcode != dns.OpcodeQuery {
		return nil, headerOnly(b, dns.RcodeNotImplemented)
	}
	if len(b) > limit || q.msg.Unpack(b) != nil || len(q.msg.Question) != 1 || len(q.msg.Answer) > 0 || len(q.msg.Ns) > 0 {
		return nil, headerOnly(b, dns.RcodeFormatError)
	}
	if opt := q.msg.IsEdns0(); opt != nil && opt.Version() != 0 {
		return nil, q.reply(dns.RcodeBadVers, nil)
	}
	question := q.msg.Question[0]
	if question.Qclass != dns.ClassINET {
		return nil, q.reply(dns.RcodeRefused, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeNotSupported, ExtraText: "only the class IN is answered"})
	}
	// In a name's presentation a byte that no host name has is written with a backslash.
	if !strings.Contains(question.Name, `\`) {
		q.name = canonicalName(question.Name)
	}
	return q, nil
}

// headerOnly answers what is too broken to be quoted.
func headerOnly(b []byte, rcode int) *dns.Msg {
	m := new(dns.Msg)
	m.Id = uint16(b[0])<<8 | uint16(b[1])
	m.Response, m.RecursionAvailable, m.Rcode = true, true, rcode
	m.Opcode = int(b[2]>>3) & 0xf
	m.RecursionDesired = b[2]&1 != 0
	return m
}

// maxExtraText of an extended error, in bytes: it has to fit with the rest.
const maxExtraText = 250

// reply makes an answer without records. ede says why (RFC 8914), to a client that
// speaks EDNS.
func (q *dnsQuery) reply(rcode int, ede *dns.EDNS0_EDE) *dns.Msg {
	m := new(dns.Msg).SetRcode(q.msg, rcode)
	m.RecursionAvailable = true
	opt := q.msg.IsEdns0()
	if opt == nil {
		return m
	}
	m.SetEdns0(maxUDP, false)
	if ede != nil {
		ede.ExtraText = ede.ExtraText[:min(len(ede.ExtraText), maxExtraText)]
		ours := m.IsEdns0()
		ours.Option = append(ours.Option, ede)
	}
	return m
}

// answer makes an answer with addresses.
func (q *dnsQuery) answer(addrs ...netip.Addr) *dns.Msg {
	m := q.reply(dns.RcodeSuccess, nil)
	qtype := q.msg.Question[0].Qtype
	for _, a := range addrs {
		h := dns.RR_Header{Name: q.msg.Question[0].Name, Class: dns.ClassINET, Rrtype: qtype, Ttl: answerTTL}
		switch {
		case qtype == dns.TypeA && a.Is4():
			m.Answer = append(m.Answer, &dns.A{Hdr: h, A: a.AsSlice()})
		case qtype == dns.TypeAAAA && a.Is6():
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: h, AAAA: a.AsSlice()})
		}
	}
	return m
}

// pack writes a reply, cut to what the client takes.
func (q *dnsQuery) pack(m *dns.Msg) []byte {
	limit := dns.MaxMsgSize
	if !q.tcp {
		limit = minUDP
		if opt := q.msg.IsEdns0(); opt != nil {
			limit = min(max(int(opt.UDPSize()), minUDP), maxUDP)
		}
	}
	m.Truncate(limit) // sets TC
	return packMsg(m)
}

// packMsg returns nil for what cannot be written: then the client gets nothing and
// asks again.
func packMsg(m *dns.Msg) []byte {
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

// localhost names never leave the machine (RFC 6761, 6.3).
func isLocalhost(name string) bool {
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}

// reverseAddress reads the name of a PTR query.
func reverseAddress(name string) (netip.Addr, bool) {
	if labels, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(labels, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return a, err == nil
	}
	labels, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(labels) != 63 {
		return netip.Addr{}, false
	}
	var text strings.Builder
	for i := 62; i >= 0; i -= 2 {
		text.WriteByte(labels[i])
		if i%8 == 0 && i > 0 {
			text.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(text.String())
	return a, err == nil
}

// denial is the answer to a name that the policy denies. It is NXDOMAIN, because on REFUSED
// resolvers go on to the next server, wait, and call it a temporary failure.
func (q *dnsQuery) denial(d policy.Decision) *dns.Msg {
	return q.reply(dns.RcodeNameError, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeBlocked, ExtraText: d.Reason})
}
