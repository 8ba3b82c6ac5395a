package netguard

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// queried asks a Guard's server without a link.
func queried(t testing.TB, g *Guard, m *dns.Msg) *dns.Msg {
	t.Helper()
	b, err := m.Pack()
	require.NoError(t, err)
	out := g.dns.answer(context.Background(), b)
	require.NotNil(t, out)
	in := new(dns.Msg)
	require.NoError(t, in.Unpack(out))
	return in
}

func question(name string, qtype uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype).SetEdns0(maxUDP, false)
}

func newGuard(t testing.TB, o Options) *Guard {
	t.Helper()
	g, err := New(o)
	require.NoError(t, err)
	return g
}

// forbiddenLook fails the test when a name reaches the resolver.
func forbiddenLook(t testing.TB) func(context.Context, string) ([]netip.Addr, error) {
	return func(_ context.Context, name string) ([]netip.Addr, error) {
		t.Errorf("the resolver was asked for %q", name)
		return nil, errors.New("no")
	}
}

func TestEachNameHasAddressesOfItsOwn(t *testing.T) {
	g := newTestGuest(t, Options{Policy: allowing(t, "*.example"), Upstream: Upstream{Look: forbiddenLook(t)}})
	seen := map[netip.Addr]string{}
	for i := range 20 {
		name := fmt.Sprintf("host%d.example", i)
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			addrs, err := g.Lookup(name, qtype)
			require.NoError(t, err)
			require.Len(t, addrs, 1)
			assert.Empty(t, seen[addrs[0]])
			seen[addrs[0]] = name
			again, err := g.Lookup(strings.ToUpper(name), qtype)
			require.NoError(t, err)
			assert.Equal(t, addrs, again)
			reversed, err := dns.ReverseAddr(addrs[0].String())
			require.NoError(t, err)
			in, err := g.Query(question(reversed, dns.TypePTR))
			require.NoError(t, err)
			require.Len(t, in.Answer, 1)
			assert.Equal(t, name+".", in.Answer[0].(*dns.PTR).Ptr)
		}
	}
	for _, name := range []string{"localhost", "a.b.localhost"} {
		addrs, err := g.Lookup(name, dns.TypeA)
		require.NoError(t, err)
		assert.True(t, addrs[0].IsLoopback())
	}
}

func TestADeniedNameIsAnsweredAtOnceWithTheReason(t *testing.T) {
	for _, mode := range []DNSMode{DNSSynthetic, DNSTrusted, DNSOpen} {
		g := newTestGuest(t, Options{Policy: allowing(t, "ok.example"), DNS: mode, Upstream: Upstream{Look: forbiddenLook(t)}})
		begin := time.Now()
		_, err := g.Lookup("evil.example", dns.TypeA)
		assert.ErrorContains(t, err, "NXDOMAIN", mode)
		assert.ErrorContains(t, err, "Blocked")
		assert.ErrorContains(t, err, "evil.example")
		_, err = g.Lookup("evil.example", dns.TypeAAAA)
		assert.Error(t, err)
		assert.Less(t, time.Since(begin), time.Second)
		denials := g.Guard.Denials(0)
		require.Len(t, denials, 1, "A and AAAA are one refusal")
		assert.Equal(t, "dns", denials[0].Protocol)
		assert.Equal(t, "evil.example", denials[0].Host)
		assert.NotEmpty(t, denials[0].Remedy)
	}
}

func TestHoleDNSExfiltrationUnderDenyAll(t *testing.T) {
	for _, mode := range []DNSMode{DNSSynthetic, DNSTrusted, DNSOpen} {
		g := newGuard(t, Options{DNS: mode, Upstream: Upstream{Look: forbiddenLook(t), Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}}})
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeMX, dns.TypeHTTPS, dns.TypeANY, dns.TypeNS} {
			in := queried(t, g, question("secret-data.evil.example", qtype))
			assert.Equal(t, dns.RcodeNameError, in.Rcode, "%s %s", mode, dns.TypeToString[qtype])
		}
	}
}

func TestHoleADeniedNameReachesTheHostsResolver(t *testing.T) {
	ask := policy.Rule{Name: "ask", Action: policy.ActionAsk, Hosts: []string{"maybe.example"}}
	var mu sync.Mutex
	var asked []string
	look := func(_ context.Context, name string) ([]netip.Addr, error) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, name)
		return []netip.Addr{netip.MustParseAddr("93.184.216.34")}, nil
	}
	allow := policy.Rule{Name: "ok", Action: policy.ActionAllow, Hosts: []string{"ok.example"}}
	g := newGuard(t, Options{Policy: mustPolicy(t, ask, allow), DNS: DNSTrusted, Upstream: Upstream{Look: look}})
	for _, name := range []string{"ok.example", "maybe.example", "denied.example"} {
		queried(t, g, question(name, dns.TypeA))
	}
	assert.Equal(t, []string{"ok.example"}, asked)
}

func TestTrustedAnswersStandForTheirNames(t *testing.T) {
	shared := netip.MustParseAddr("93.184.216.34")
	look := func(_ context.Context, name string) ([]netip.Addr, error) {
		switch name {
		case "gone.example":
			return nil, &net.DNSError{IsNotFound: true}
		case "broken.example":
			return nil, errors.New("the resolver is away")
		case "ours.example":
			return []netip.Addr{netip.MustParseAddr("198.19.0.1"), gateway4}, nil
		}
		return []netip.Addr{shared, netip.MustParseAddr("2606:2800::1")}, nil
	}
	g := newGuard(t, Options{Policy: allowing(t, "*.example"), DNS: DNSTrusted, Upstream: Upstream{Look: look}})
	in := queried(t, g, question("a.example", dns.TypeA))
	require.Len(t, in.Answer, 1)
	assert.Equal(t, shared.String(), in.Answer[0].(*dns.A).A.String())
	queried(t, g, question("b.example", dns.TypeA))
	names, err := g.names.take(shared)
	require.NoError(t, err)
	assert.Equal(t, []string{"b.example", "a.example"}, names)

	assert.Equal(t, dns.RcodeNameError, queried(t, g, question("gone.example", dns.TypeA)).Rcode)
	broken := queried(t, g, question("broken.example", dns.TypeA))
	assert.Equal(t, dns.RcodeServerFailure, broken.Rcode)
	assert.Contains(t, extendedError(broken), "the resolver is away")
	assert.Empty(t, queried(t, g, question("ours.example", dns.TypeA)).Answer, "nobody outside speaks for our addresses")
}

func TestOpenForwardsOtherTypesWithNothingButNameAndType(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	got := make(chan *dns.Msg, 10)
	server := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		got <- m
		r := new(dns.Msg).SetReply(m)
		r.Answer = append(r.Answer,
			&dns.TXT{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 5}, Txt: []string{"hello"}},
			&dns.A{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}, A: net.IPv4(1, 2, 3, 4)})
		_ = w.WriteMsg(r)
	})}
	done := make(chan error, 1)
	go func() { done <- server.ActivateAndServe() }()
	t.Cleanup(func() { _ = server.Shutdown(); <-done })
	g := newTestGuest(t, Options{Policy: allowing(t, "*.example"), DNS: DNSOpen, Upstream: Upstream{Resolvers: []netip.AddrPort{netip.MustParseAddrPort(pc.LocalAddr().String())}}})
	q := question("oK.example", dns.TypeTXT)
	q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte("smuggled")})
	in, err := g.Query(q)
	require.NoError(t, err)
	require.Len(t, in.Answer, 1)
	assert.Equal(t, []string{"hello"}, in.Answer[0].(*dns.TXT).Txt)
	m := <-got
	assert.Equal(t, "ok.example.", m.Question[0].Name)
	assert.Empty(t, m.IsEdns0().Option)
	in, err = g.Query(question("ok.example", dns.TypeHTTPS))
	require.NoError(t, err)
	assert.Empty(t, in.Answer)
	assert.Empty(t, got)
}

func TestHoleNamesThatCannotExistResolve(t *testing.T) {
	g := newGuard(t, Options{Policy: allowing(t, "*")})
	for name, raw := range map[string]string{
		"NUL":           "\x02a\x00\x07example\x00",
		"space":         "\x03a b\x07example\x00",
		"dot in label":  "\x03a.b\x07example\x00",
		"not ASCII":     "\x02\xc3\xa9\x07example\x00",
		"control":       "\x02a\n\x07example\x00",
		"slash":         "\x03a/b\x07example\x00",
		"root":          "\x00",
		"an address":    "\x03127\x010\x010\x011\x00",
		"hexadecimal":   "\x0a0x7f000001\x00",
		"hyphen first":  "\x02-a\x07example\x00",
		"only a number": "\x0a2130706433\x00",
	} {
		b := make([]byte, 12)
		b[5] = 1
		b = append(b, raw...)
		b = append(b, 0, 1, 0, 1)
		out := g.dns.answer(context.Background(), b)
		require.NotNil(t, out, name)
		in := new(dns.Msg)
		require.NoError(t, in.Unpack(out), name)
		assert.Equal(t, dns.RcodeNameError, in.Rcode, name)
	}
}

func TestMalformedQueriesAreRefused(t *testing.T) {
	g := newGuard(t, Options{Policy: allowing(t, "ok.example")})
	change := func(f func(m *dns.Msg)) *dns.Msg {
		m := question("ok.example", dns.TypeA)
		f(m)
		return m
	}
	assert.Equal(t, dns.RcodeSuccess, queried(t, g, change(func(*dns.Msg) {})).Rcode)
	for name, c := range map[string]struct {
		m     *dns.Msg
		rcode int
	}{
		"two questions": {change(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		"none":          {change(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		"update":        {change(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		"class CH":      {change(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		"an answer": {change(func(m *dns.Msg) {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: "ok.example.", Rrtype: dns.TypeA, Class: 1}, A: net.IPv4(1, 2, 3, 4)})
		}), dns.RcodeFormatError},
		"EDNS 1": {change(func(m *dns.Msg) { m.IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
	} {
		assert.Equal(t, c.rcode, queried(t, g, c.m).Rcode, name)
	}
	response, err := change(func(m *dns.Msg) { m.Response = true }).Pack()
	require.NoError(t, err)
	assert.Nil(t, g.dns.answer(context.Background(), response), "a response is never answered")
	q, early := parseQuery(make([]byte, 1233), false)
	assert.Nil(t, q)
	assert.Equal(t, dns.RcodeFormatError, early.Rcode)
	in := queried(t, g, question("ok.example", dns.TypeMX))
	assert.Equal(t, dns.RcodeSuccess, in.Rcode)
	assert.Empty(t, in.Answer)
	assert.Nil(t, queried(t, g, new(dns.Msg).SetQuestion("no.example.", dns.TypeA)).IsEdns0(), "no EDNS to who does not speak it")
}

func TestDNSOverTCPIsBounded(t *testing.T) {
	g := newTestGuest(t, Options{Policy: allowing(t, "ok.example")})
	conn, err := g.DialTCP("192.0.2.53", 53)
	require.NoError(t, err)
	defer conn.Close()
	b, err := question("ok.example", dns.TypeA).Pack()
	require.NoError(t, err)
	for range 3 {
		_, err = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
		require.NoError(t, err)
		var size [2]byte
		_, err = io.ReadFull(conn, size[:])
		require.NoError(t, err)
		in := make([]byte, binary.BigEndian.Uint16(size[:]))
		_, err = io.ReadFull(conn, in)
		require.NoError(t, err)
	}
	_, err = conn.Write([]byte{0xff, 0xff, 0})
	require.NoError(t, err)
	_, err = conn.Read(b)
	assert.ErrorContains(t, err, "reset")
}

func TestHoleARecycledAddressOpensAnotherName(t *testing.T) {
	now := time.Now()
	table := newNameTable(3, func() time.Time { return now })
	table.pool = 4
	first, _, err := table.addresses("a")
	require.NoError(t, err)
	held, err := table.take(first)
	require.NoError(t, err)
	for _, name := range []string{"b", "c", "d"} {
		_, _, err := table.addresses(name)
		require.NoError(t, err)
	}
	again, _, err := table.addresses("a")
	require.NoError(t, err)
	assert.Equal(t, first, again, "a name with an open connection is kept")
	_, _, err = table.addresses("e")
	assert.ErrorIs(t, err, errNamesTooFast, "an address is in quarantine after its name was forgotten")
	gone, _ := namedAddress(2) // b's
	_, err = table.take(gone)
	assert.ErrorIs(t, err, errNameForgotten)

	now = now.Add(quarantine + time.Second)
	got, _, err := table.addresses("f")
	require.NoError(t, err)
	assert.Equal(t, gone, got)
	table.release(held)
	assert.Equal(t, 3, table.size())

	busy := newNameTable(1, time.Now)
	only, _, err := busy.addresses("a")
	require.NoError(t, err)
	_, err = busy.take(only)
	require.NoError(t, err)
	_, _, err = busy.addresses("b")
	assert.ErrorIs(t, err, errNamesBusy)
}

func TestTenThousandNamesStayWithinTheirBound(t *testing.T) {
	g := newGuard(t, Options{Policy: allowing(t, "*.example")})
	before := heap()
	for i := range 10_000 {
		in := queried(t, g, question(fmt.Sprintf("h%d.example", i), dns.TypeA))
		require.Equal(t, dns.RcodeSuccess, in.Rcode)
	}
	assert.Equal(t, defaultNames, g.Stats().Names)
	assert.Less(t, heap()-before, int64(16<<20))
}

func FuzzQuery(f *testing.F) {
	for _, m := range []*dns.Msg{question("ok.example", dns.TypeA), question("1.0.19.198.in-addr.arpa", dns.TypePTR), question("x.ip6.arpa", dns.TypePTR), question("localhost", dns.TypeAAAA)} {
		b, err := m.Pack()
		require.NoError(f, err)
		f.Add(b, true)
		f.Add(b, false)
	}
	g := newGuard(f, Options{Policy: allowing(f, "*.example")})
	f.Fuzz(func(t *testing.T, b []byte, tcp bool) {
		q, early := parseQuery(b, tcp)
		if q == nil {
			if early != nil && packMsg(early) == nil {
				t.Fatal("an answer that cannot be written")
			}
			return
		}
		m, forward := g.dns.judge(q)
		if forward {
			t.Fatal("forwarded")
		}
		out := q.pack(m)
		if out == nil {
			t.Fatal("an answer that cannot be written")
		}
		if !tcp && len(out) > maxUDP {
			t.Fatalf("%d bytes over UDP", len(out))
		}
		if len(m.Answer) > 0 && q.name == "" {
			t.Fatal("an impossible name has an answer")
		}
	})
}
