package netguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/miekg/dns"
)

// resolvConf names the host's resolvers.
const resolvConf = "/etc/resolv.conf"

const (
	maxResolvers = 3  // as the C library has it
	maxRecords   = 64 // of an answer passed on
)

// forwardable says which types DNSOpen passes on. Not among them: HTTPS and SVCB, whose
// keys for encrypted ClientHellos would only make the guest's TLS fail here; transfers;
// what is between two servers only.
func forwardable(qtype uint16) bool {
	switch qtype {
	case dns.TypeTXT, dns.TypeMX, dns.TypeSRV, dns.TypeNS, dns.TypeSOA, dns.TypeCNAME, dns.TypeCAA, dns.TypeNAPTR, dns.TypeSSHFP, dns.TypeTLSA, dns.TypeDS, dns.TypeDNSKEY:
		return true
	}
	return false
}

// forwardOther passes a query for something else than addresses on to the host's
// resolvers, and of the answer the records that were asked for.
func (s *dnsServer) forwardOther(ctx context.Context, q *dnsQuery) *dns.Msg {
	question := q.msg.Question[0]
	// Made anew, so that nothing but name and type goes out: no options, no case.
	out := new(dns.Msg)
	out.SetQuestion(dns.Fqdn(q.name), question.Qtype)
	out.SetEdns0(maxUDP, false)
	in, err := s.exchange(ctx, out)
	if err != nil {
		return q.reply(dns.RcodeServerFailure, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeNetworkError, ExtraText: err.Error()})
	}
	m := q.reply(in.Rcode, nil)
	if in.Rcode != dns.RcodeSuccess && in.Rcode != dns.RcodeNameError {
		m.Rcode = dns.RcodeServerFailure
	}
	for _, rr := range in.Answer {
		if t := rr.Header().Rrtype; (t == question.Qtype || t == dns.TypeCNAME) && len(m.Answer) < maxRecords {
			m.Answer = append(m.Answer, rr)
		}
	}
	return m
}

func (s *dnsServer) exchange(ctx context.Context, m *dns.Msg) (*dns.Msg, error) {
	servers, err := s.resolvers()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, server := range servers {
		c := dns.Client{Net: "udp", Timeout: forwardTimeout / 2, UDPSize: maxUDP}
		in, _, err := c.ExchangeContext(ctx, m, server.String())
		if err == nil && in.Truncated {
			c.Net = "tcp"
			in, _, err = c.ExchangeContext(ctx, m, server.String())
		}
		if err == nil {
			return in, nil
		}
		errs = append(errs, fmt.Errorf("asking the resolver %s: %w", server, err))
	}
	return nil, errors.Join(errs...)
}

func (s *dnsServer) resolvers() ([]netip.AddrPort, error) {
	if r := s.g.o.Upstream.Resolvers; len(r) > 0 {
		return r, nil
	}
	conf, err := dns.ClientConfigFromFile(resolvConf)
	if err != nil {
		return nil, fmt.Errorf("looking for the host's resolvers: %w", err)
	}
	var out []netip.AddrPort
	for _, server := range conf.Servers[:min(len(conf.Servers), maxResolvers)] {
		ap, err := netip.ParseAddrPort(net.JoinHostPort(server, conf.Port))
		if err != nil {
			return nil, fmt.Errorf("looking for the host's resolvers: %w", err)
		}
		out = append(out, ap)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s names no resolver", resolvConf)
	}
	return out, nil
}
