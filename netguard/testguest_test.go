package netguard

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testGuest is a machine on a Guard's link: a network stack of its own that speaks the
// framing of QEMU, configured as Config says. It asks for link addresses, as a real one does.
type testGuest struct {
	t     testing.TB
	Guard *Guard
	stack *stack.Stack
}

// newTestGuest serves a Guard to a guest over a Unix socket. Both end with the test.
func newTestGuest(t testing.TB, o Options) *testGuest {
	t.Helper()
	g, err := New(o)
	require.NoError(t, err)
	conn := serveGuard(t, g)
	c := Config()
	l := newLink(conn, tcpip.LinkAddress(c.MAC), gatewayMAC, func([]byte) bool { return true })
	s, err := newStack(resolvingLink{l}, c.Addresses...)
	require.NoError(t, err)
	var routes []tcpip.Route
	for i, a := range c.Addresses {
		on, err := tcpip.NewSubnet(toStack(a.Masked().Addr()), tcpip.MaskFromBytes(net.CIDRMask(a.Bits(), a.Addr().BitLen())))
		require.NoError(t, err)
		all := header.IPv4EmptySubnet
		if a.Addr().Is6() {
			all = header.IPv6EmptySubnet
		}
		routes = append(routes, tcpip.Route{Destination: on, NIC: nicID}, tcpip.Route{Destination: all, Gateway: toStack(c.Gateways[i]), NIC: nicID})
	}
	s.SetRouteTable(routes)
	var loops sync.WaitGroup
	loops.Add(2)
	go func() { defer loops.Done(); _ = l.readLoop() }()
	go func() { defer loops.Done(); _ = l.writeLoop() }()
	t.Cleanup(func() {
		l.shut()
		conn.Close()
		loops.Wait()
		s.Destroy()
	})
	return &testGuest{t: t, Guard: g, stack: s}
}

// resolvingLink makes the guest's stack ask for link addresses.
type resolvingLink struct{ *link }

func (resolvingLink) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityResolutionRequired
}

// serveGuard returns the guest's end of a link that a Guard serves until the test ends.
func serveGuard(t testing.TB, g *Guard) net.Conn {
	t.Helper()
	guest, host := socketPair(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Serve(ctx, host) }()
	t.Cleanup(func() {
		cancel()
		guest.Close()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Error("Serve did not return")
		}
	})
	return guest
}

func socketPair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	dir, err := os.MkdirTemp("", "ng") // short: a socket's path has 104 bytes at most
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	require.NoError(t, err)
	defer l.Close()
	a, err := net.Dial("unix", l.Addr().String())
	require.NoError(t, err)
	b, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// DialTCP connects to a name, which it looks up, or an address.
func (g *testGuest) DialTCP(host string, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return g.Dial(ctx, "tcp4", net.JoinHostPort(host, fmt.Sprint(port)))
}

// Dial is for http.Transport and the like. The network tcp6 goes by AAAA.
func (g *testGuest) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		qtype := dns.TypeA
		if network == "tcp6" {
			qtype = dns.TypeAAAA
		}
		addrs, err := g.Lookup(host, qtype)
		if err != nil {
			return nil, err
		}
		addr = addrs[0]
	}
	n, err := net.LookupPort("tcp", port)
	if err != nil {
		return nil, err
	}
	return gonet.DialContextTCP(ctx, g.stack, tcpip.FullAddress{NIC: nicID, Addr: toStack(addr), Port: uint16(n)}, protocolOf(addr))
}

// Lookup asks the nameserver for a name's addresses.
func (g *testGuest) Lookup(name string, qtype uint16) ([]netip.Addr, error) {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	m.SetEdns0(maxUDP, false)
	in, err := g.Query(m)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, rr := range in.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			a, _ := netip.AddrFromSlice(rr.A.To4())
			out = append(out, a)
		case *dns.AAAA:
			a, _ := netip.AddrFromSlice(rr.AAAA)
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return nil, &net.DNSError{Err: dns.RcodeToString[in.Rcode] + " " + extendedError(in), Name: name, IsNotFound: in.Rcode == dns.RcodeNameError}
	}
	return out, nil
}

// Query asks the nameserver over UDP.
func (g *testGuest) Query(m *dns.Msg) (*dns.Msg, error) {
	b, err := m.Pack()
	if err != nil {
		return nil, err
	}
	answer, err := g.UDP(Config().Nameserver, 53, b)
	if err != nil {
		return nil, err
	}
	in := new(dns.Msg)
	return in, in.Unpack(answer)
}

// UDP sends a datagram and returns the answer to it.
func (g *testGuest) UDP(to netip.Addr, port uint16, b []byte) ([]byte, error) {
	conn, err := gonet.DialUDP(g.stack, nil, &tcpip.FullAddress{NIC: nicID, Addr: toStack(to), Port: port}, protocolOf(to))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := conn.Write(b); err != nil {
		return nil, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	buf := make([]byte, 65536)
	n, err := conn.Read(buf)
	return buf[:n], err
}

func extendedError(m *dns.Msg) string {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if ede, ok := o.(*dns.EDNS0_EDE); ok {
				return ede.String()
			}
		}
	}
	return ""
}

// writeFrame injects a raw frame.
func writeFrame(t testing.TB, conn net.Conn, frame []byte) {
	t.Helper()
	_, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...))
	require.NoError(t, err)
}

// readFrame returns the next frame, or nil when none comes within wait.
func readFrame(t testing.TB, conn net.Conn, wait time.Duration) []byte {
	t.Helper()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(wait)))
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil
	}
	frame := make([]byte, binary.BigEndian.Uint32(size[:]))
	_, err := io.ReadFull(conn, frame)
	require.NoError(t, err)
	return frame
}

// mustPolicy compiles rules.
func mustPolicy(t testing.TB, rules ...policy.Rule) *policy.Policy {
	t.Helper()
	p, err := policy.Compile(policy.Spec{Rules: rules})
	require.NoError(t, err)
	return p
}

// allowing is a policy with one rule for hosts, on any port, with HTTP, TLS and TCP.
func allowing(t testing.TB, hosts ...string) *policy.Policy {
	t.Helper()
	return mustPolicy(t, policy.Rule{
		Name: "test", Action: policy.ActionAllow, Hosts: hosts, Ports: []string{"*"},
		Protocols:      []policy.Protocol{policy.HTTP, policy.HTTPS, policy.TCP},
		AllowAddresses: []string{"127.0.0.0/8", "::1"},
	})
}

// echoServer answers every byte with itself, on loopback, until the test ends. It
// returns its address.
func echoServer(t testing.TB) string {
	t.Helper()
	return tcpServer(t, func(c net.Conn) {
		_, _ = io.Copy(c, c)
		_ = c.(*net.TCPConn).CloseWrite()
	})
}

// tcpServer serves connections on loopback until the test ends.
func tcpServer(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var work sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	work.Add(1)
	go func() {
		defer work.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			work.Add(1)
			go func() {
				defer work.Done()
				defer c.Close()
				serve(c)
			}()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		work.Wait()
	})
	return l.Addr().String()
}
