package netguard

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

const (
	// maxForwards bounds the lookups on the host that wait for an answer, and
	// forwardTimeout each.
	maxForwards    = 32
	forwardTimeout = 5 * time.Second

	maxDNSConns = 32               // DNS connections over TCP at once
	dnsIdle     = 10 * time.Second // without a whole query
)

// dnsServer answers the guest's lookups.
type dnsServer struct {
	g        *Guard
	host     *hostDialer
	forwards chan struct{} // a token each
	conns    chan struct{}
}

func newDNSServer(g *Guard, host *hostDialer) *dnsServer {
	return &dnsServer{g: g, host: host, forwards: make(chan struct{}, maxForwards), conns: make(chan struct{}, maxDNSConns)}
}

// serveUDP answers a datagram: at once, or, where the host has to be asked, from a
// goroutine of n's.
func (s *dnsServer) serveUDP(n *network, b []byte, reply func([]byte)) {
	q, early := parseQuery(b, false)
	if q == nil {
		if early != nil {
			reply(packMsg(early))
		}
		return
	}
	m, forward := s.judge(q)
	if !forward {
		reply(q.pack(m))
		return
	}
	if !s.begin() {
		reply(q.pack(s.overloaded(q)))
		return
	}
	if !n.enter() {
		s.end()
		return
	}
	go func() {
		defer n.work.Done()
		defer s.end()
		reply(q.pack(s.forward(n.ctx, q)))
	}()
}

// serveTCP answers queries on a connection, one after the other (RFC 7766).
func (s *dnsServer) serveTCP(ctx context.Context, conn *guestConn) {
	select {
	case s.conns <- struct{}{}:
		defer func() { <-s.conns }()
	default:
		conn.abort()
		return
	}
	var size [2]byte
	buf := make([]byte, maxTCPQuery)
	for {
		// The write of the answer is included: whoever does not read it is done as well.
		if conn.SetDeadline(time.Now().Add(dnsIdle)) != nil {
			return
		}
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(size[:]))
		if n < 12 || n > maxTCPQuery {
			conn.abort()
			return
		}
		if _, err := io.ReadFull(conn, buf[:n]); err != nil {
			return
		}
		b := s.answer(ctx, buf[:n])
		if b == nil {
			conn.abort()
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
			return
		}
	}
}

// answer is serveUDP for a caller that can wait.
func (s *dnsServer) answer(ctx context.Context, b []byte) []byte {
	q, early := parseQuery(b, true)
	if q == nil {
		if early == nil {
			return nil
		}
		return packMsg(early)
	}
	m, forward := s.judge(q)
	if forward {
		if !s.begin() {
			return q.pack(s.overloaded(q))
		}
		defer s.end()
		m = s.forward(ctx, q)
	}
	return q.pack(m)
}

func (s *dnsServer) begin() bool {
	select {
	case s.forwards <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s *dnsServer) end() { <-s.forwards }

func (s *dnsServer) overloaded(q *dnsQuery) *dns.Msg {
	return q.reply(dns.RcodeServerFailure, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeNotReady, ExtraText: "too many lookups are under way"})
}

// judge answers without leaving the host, or says that the query may be forwarded.
func (s *dnsServer) judge(q *dnsQuery) (m *dns.Msg, forward bool) {
	qtype := q.msg.Question[0].Qtype
	switch {
	case q.name == "":
		s.g.refuse(Event{Protocol: string(policy.DNS), Host: shown(q.msg.Question[0].Name), Reason: "no host can have this name", Remedy: "check the spelling"})
		return q.reply(dns.RcodeNameError, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeOther, ExtraText: "no host can have this name"}), false
	case qtype == dns.TypePTR:
		return s.reverse(q), false
	case isLocalhost(q.name):
		return q.answer(netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()), false
	}
	d := s.g.Policy().Decide(policy.Request{Protocol: policy.DNS, Host: q.name})
	if d.Verdict == policy.Deny {
		s.g.refuse(Event{Protocol: string(policy.DNS), Host: q.name, Rule: d.Rule, Reason: d.Reason, Remedy: d.Remedy})
		return q.denial(d), false
	}
	addressed := qtype == dns.TypeA || qtype == dns.TypeAAAA
	switch {
	// A name that a human has yet to allow stays here.
	case d.Verdict == policy.Allow && s.g.o.DNS != DNSSynthetic && (addressed || s.g.o.DNS == DNSOpen && forwardable(qtype)):
		if err := s.g.recorder.Record(Event{Protocol: string(policy.DNS), Host: q.name, Verdict: "allow", Rule: d.Rule, Reason: d.Reason}); err != nil {
			s.g.o.Log.Error("recording a lookup; it is refused", "error", err)
			return q.reply(dns.RcodeServerFailure, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeOther, ExtraText: "the lookup cannot be recorded"}), false
		}
		return nil, true
	case addressed:
		return s.synthetic(q), false
	}
	return q.reply(dns.RcodeSuccess, nil), false
}

func (s *dnsServer) synthetic(q *dnsQuery) *dns.Msg {
	v4, v6, err := s.g.names.addresses(q.name)
	if err != nil {
		return q.reply(dns.RcodeServerFailure, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeNotReady, ExtraText: err.Error()})
	}
	return q.answer(v4, v6)
}

// reverse answers from what was given out, without the policy: the guest has been told.
func (s *dnsServer) reverse(q *dnsQuery) *dns.Msg {
	a, ok := reverseAddress(q.name)
	if !ok {
		return q.reply(dns.RcodeNameError, nil)
	}
	name, ok := s.g.names.name(a)
	if a.IsLoopback() {
		name, ok = "localhost", true
	}
	if !ok {
		return q.reply(dns.RcodeNameError, nil)
	}
	m := q.reply(dns.RcodeSuccess, nil)
	m.Answer = append(m.Answer, &dns.PTR{
		Hdr: dns.RR_Header{Name: q.msg.Question[0].Name, Class: dns.ClassINET, Rrtype: dns.TypePTR, Ttl: answerTTL}, Ptr: dns.Fqdn(name),
	})
	return m
}

// forward asks the host.
func (s *dnsServer) forward(ctx context.Context, q *dnsQuery) *dns.Msg {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	qtype := q.msg.Question[0].Qtype
	if qtype != dns.TypeA && qtype != dns.TypeAAAA {
		return s.forwardOther(ctx, q)
	}
	addrs, err := s.host.look(ctx, q.name)
	var missing *net.DNSError
	switch {
	case errors.As(err, &missing) && missing.IsNotFound:
		return q.reply(dns.RcodeNameError, nil)
	case err != nil:
		return q.reply(dns.RcodeServerFailure, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeNetworkError, ExtraText: err.Error()})
	}
	var told []netip.Addr
	for _, a := range addrs {
		a = a.Unmap()
		// Addresses of ours would stand for what we say they do.
		if ours(a) || len(told) == maxRealAddresses || a.Is4() != (qtype == dns.TypeA) {
			continue
		}
		told = append(told, a)
	}
	if err := s.g.names.remember(q.name, told); err != nil {
		return q.reply(dns.RcodeServerFailure, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeNotReady, ExtraText: err.Error()})
	}
	return q.answer(told...)
}

func ours(a netip.Addr) bool {
	return a == gateway4 || a == guest4 || a == gateway6 || a == guest6 || pool4.Contains(a) || pool6.Contains(a)
}

// shown is a name from the guest that is none, cut to what a record should bear.
func shown(name string) string { return name[:min(len(name), 100)] }
