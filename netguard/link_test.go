package netguard

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// etherFrame is a frame from the guest to the gateway.
func etherFrame(proto tcpip.NetworkProtocolNumber, packet []byte) []byte {
	b := make([]byte, header.EthernetMinimumSize, header.EthernetMinimumSize+len(packet))
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: guestMAC, DstAddr: gatewayMAC, Type: proto})
	return append(b, packet...)
}

// packet is an IP packet in a frame.
func packet(src, dst netip.Addr, proto tcpip.TransportProtocolNumber, payload []byte) []byte {
	if src.Is4() {
		b := make([]byte, header.IPv4MinimumSize)
		ip := header.IPv4(b)
		ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(b) + len(payload)), TTL: 64, Protocol: uint8(proto), SrcAddr: toStack(src), DstAddr: toStack(dst)})
		ip.SetChecksum(^ip.CalculateChecksum())
		return etherFrame(header.IPv4ProtocolNumber, append(b, payload...))
	}
	b := make([]byte, header.IPv6MinimumSize)
	hops := uint8(64)
	if proto == header.ICMPv6ProtocolNumber {
		hops = 255 // as neighbour discovery demands
	}
	header.IPv6(b).Encode(&header.IPv6Fields{PayloadLength: uint16(len(payload)), TransportProtocol: proto, HopLimit: hops, SrcAddr: toStack(src), DstAddr: toStack(dst)})
	return etherFrame(header.IPv6ProtocolNumber, append(b, payload...))
}

// icmp6 completes an ICMPv6 message.
func icmp6(src, dst netip.Addr, msg []byte) []byte {
	h := header.ICMPv6(msg)
	h.SetChecksum(0)
	h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: h, Src: toStack(src), Dst: toStack(dst)}))
	return packet(src, dst, header.ICMPv6ProtocolNumber, msg)
}

func echo4(dst netip.Addr) []byte {
	msg := make([]byte, header.ICMPv4MinimumSize+8)
	h := header.ICMPv4(msg)
	h.SetType(header.ICMPv4Echo)
	h.SetChecksum(^checksum.Checksum(msg, 0))
	return packet(guest4, dst, header.ICMPv4ProtocolNumber, msg)
}

func echo6(dst netip.Addr) []byte {
	msg := make([]byte, header.ICMPv6EchoMinimumSize+8)
	header.ICMPv6(msg).SetType(header.ICMPv6EchoRequest)
	return icmp6(guest6, dst, msg)
}

func arpRequest(target netip.Addr) []byte {
	b := make([]byte, header.ARPSize)
	h := header.ARP(b)
	h.SetIPv4OverEthernet()
	h.SetOp(header.ARPRequest)
	copy(h.HardwareAddressSender(), guestMAC)
	copy(h.ProtocolAddressSender(), guest4.AsSlice())
	copy(h.ProtocolAddressTarget(), target.AsSlice())
	return etherFrame(header.ARPProtocolNumber, b)
}

func solicitation(src, target netip.Addr) []byte {
	msg := make([]byte, header.ICMPv6NeighborSolicitMinimumSize)
	header.ICMPv6(msg).SetType(header.ICMPv6NeighborSolicit)
	copy(msg[8:], target.AsSlice())
	if src.IsValid() {
		msg = append(msg, 1, 1)
		msg = append(msg, guestMAC...)
	} else {
		src = netip.IPv6Unspecified()
	}
	group := header.SolicitedNodeAddr(toStack(target))
	return icmp6(src, fromStack(group), msg)
}

func udpTo(src, dst netip.Addr, port uint16) []byte {
	b := make([]byte, header.UDPMinimumSize+4)
	header.UDP(b).Encode(&header.UDPFields{SrcPort: 4444, DstPort: port, Length: uint16(len(b))})
	return packet(src, dst, header.UDPProtocolNumber, b)
}

// rawGuest is the guest's end of a link without a stack behind it.
func rawGuest(t testing.TB, o Options) net.Conn {
	g, err := New(o)
	require.NoError(t, err)
	return serveGuard(t, g)
}

// answered sends a frame and returns what comes back at once.
func answered(t testing.TB, conn net.Conn, frame []byte) []byte {
	writeFrame(t, conn, frame)
	return readFrame(t, conn, 200*time.Millisecond)
}

func TestHoleAnyAddressAnswersPing(t *testing.T) {
	conn := rawGuest(t, Options{Policy: allowing(t, "*", "192.0.2.1")})
	for _, dst := range []netip.Addr{gateway4, gateway6} {
		echo := echo4
		if dst.Is6() {
			echo = echo6
		}
		assert.NotNil(t, answered(t, conn, echo(dst)), dst)
	}
	for _, dst := range []string{"192.0.2.1", "8.8.8.8", "198.19.0.1", "127.0.0.1", "198.18.0.3", "224.0.0.1", "255.255.255.255", "198.18.0.2"} {
		assert.Nil(t, answered(t, conn, echo4(netip.MustParseAddr(dst))), dst)
	}
	for _, dst := range []string{"2001:db8::1", "fd67:6f6e:646f:1::1", "ff02::1", "fe80::1"} {
		assert.Nil(t, answered(t, conn, echo6(netip.MustParseAddr(dst))), dst)
	}
}

func TestOnlyTheGatewaysLinkAddressIsTold(t *testing.T) {
	conn := rawGuest(t, Options{})
	reply := answered(t, conn, arpRequest(gateway4))
	require.NotNil(t, reply)
	assert.Equal(t, []byte(gatewayMAC), header.ARP(reply[14:]).HardwareAddressSender())
	assert.Equal(t, []byte(guestMAC), reply[:6], "frames go to the guest")
	reply = answered(t, conn, solicitation(netip.MustParseAddr("fe80::2"), gateway6))
	require.NotNil(t, reply)
	assert.Equal(t, byte(header.ICMPv6NeighborAdvert), reply[14+40])

	// A guest that makes sure that its own address is free must find it so.
	assert.Nil(t, answered(t, conn, arpRequest(guest4)))
	assert.Nil(t, answered(t, conn, solicitation(netip.Addr{}, guest6)))
	assert.Nil(t, answered(t, conn, arpRequest(netip.MustParseAddr("198.18.0.3"))))
}

func TestAnUnreachableUDPPortIsSaidToBe(t *testing.T) {
	conn := rawGuest(t, Options{})
	reply := answered(t, conn, udpTo(guest4, netip.MustParseAddr("192.0.2.1"), 123))
	require.NotNil(t, reply)
	icmp := header.ICMPv4(reply[14+20:])
	assert.Equal(t, header.ICMPv4DstUnreachable, icmp.Type())
	assert.Equal(t, header.ICMPv4PortUnreachable, icmp.Code())
	reply = answered(t, conn, udpTo(guest6, netip.MustParseAddr("2001:db8::1"), 123))
	require.NotNil(t, reply)
	assert.Equal(t, header.ICMPv6DstUnreachable, header.ICMPv6(reply[14+40:]).Type())
}

func TestForgedAndFragmentedPacketsAreDropped(t *testing.T) {
	frames := map[string][]byte{
		"foreign source":      udpTo(netip.MustParseAddr("10.0.0.1"), gateway4, 123),
		"foreign IPv6 source": udpTo(netip.MustParseAddr("fd00::1"), gateway6, 123),
		"to itself":           udpTo(guest4, guest4, 123),
		"broadcast":           udpTo(guest4, broadcast4, 123),
		"multicast":           udpTo(guest4, netip.MustParseAddr("224.0.0.251"), 5353),
		"IGMP":                packet(guest4, gateway4, 2, make([]byte, 8)),
		"IPv6 fragment":       packet(guest6, gateway6, 44, make([]byte, 16)),
		"hop-by-hop":          packet(guest6, gateway6, 0, make([]byte, 16)),
		"short IPv4":          etherFrame(header.IPv4ProtocolNumber, []byte{0x45, 0}),
		"no IP":               etherFrame(0x8847, make([]byte, 40)),
		"only a header":       etherFrame(header.IPv6ProtocolNumber, nil),
	}
	fragment := udpTo(guest4, gateway4, 123)
	binary.BigEndian.PutUint16(fragment[14+6:], 0x2000) // more follow
	frames["fragment"] = fragment
	last := udpTo(guest4, gateway4, 123)
	binary.BigEndian.PutUint16(last[14+6:], 100)
	frames["last fragment"] = last
	for name, frame := range frames {
		assert.False(t, admit(frame), name)
	}
	assert.True(t, admit(udpTo(guest4, gateway4, 123)))
	assert.True(t, admit(udpTo(guest6, gateway6, 123)))
}

func TestAnImpossibleFrameEndsTheLink(t *testing.T) {
	for name, size := range map[string]uint32{"nothing": 0, "less than a header": 13, "above the MTU": maxFrame + 1, "absurd": 1 << 31} {
		g, err := New(Options{})
		require.NoError(t, err)
		guest, host := socketPair(t)
		done := make(chan error, 1)
		go func() { done <- g.Serve(context.Background(), host) }()
		_, err = guest.Write(binary.BigEndian.AppendUint32(nil, size))
		require.NoError(t, err)
		assert.ErrorIs(t, <-done, errFrame, name)
	}
}

func TestServeEndsWithItsLinkOrItsContext(t *testing.T) {
	g, err := New(Options{})
	require.NoError(t, err)
	guest, host := socketPair(t)
	done := make(chan error, 1)
	go func() { done <- g.Serve(context.Background(), host) }()
	guest.Close()
	assert.NoError(t, <-done)

	ctx, cancel := context.WithCancel(context.Background())
	guest, host = socketPair(t)
	go func() { done <- g.Serve(ctx, host) }()
	require.NotNil(t, answered(t, guest, arpRequest(gateway4)), "a guard serves one link after the other")
	cancel()
	assert.ErrorIs(t, <-done, context.Canceled)

	guest, host = socketPair(t)
	go func() { done <- g.Serve(context.Background(), host) }()
	_, err = guest.Write([]byte{0, 0, 0, 60, 1, 2}) // half a frame
	require.NoError(t, err)
	guest.Close()
	assert.ErrorContains(t, <-done, "unexpected EOF")
}

func TestAGuestThatDoesNotReadLosesFramesAndNothingGrows(t *testing.T) {
	l := newLink(nil, gatewayMAC, guestMAC, admit)
	conn := rawGuest(t, Options{})
	before := heap()
	big := echo4(gateway4)
	big = append(big[:14], packet(guest4, gateway4, header.ICMPv4ProtocolNumber, append(echo4(gateway4)[34:], make([]byte, 60000)...))[14:]...)
	h := header.ICMPv4(big[34:])
	h.SetChecksum(0)
	h.SetChecksum(^checksum.Checksum(h, 0))
	require.NotNil(t, answered(t, conn, big))
	for range 2000 { // 120 MB
		writeFrame(t, conn, big)
	}
	assert.Less(t, heap()-before, int64(32<<20))
	assert.Equal(t, uint32(mtu), l.MTU())
}

func FuzzFrame(f *testing.F) {
	for _, frame := range [][]byte{arpRequest(gateway4), echo4(gateway4), echo6(gateway6), udpTo(guest4, gateway4, 53), udpTo(guest6, gateway6, 53), solicitation(netip.MustParseAddr("fe80::2"), gateway6)} {
		f.Add(frame)
	}
	g, err := New(Options{})
	require.NoError(f, err)
	_, host := socketPair(f)
	l := newLink(host, gatewayMAC, guestMAC, admit)
	n, err := newNetwork(context.Background(), g, l)
	require.NoError(f, err)
	f.Cleanup(func() { n.close(); l.shut() })
	f.Fuzz(func(t *testing.T, frame []byte) {
		if !admit(frame) {
			return
		}
		l.mu.Lock()
		for _, p := range l.queue {
			p.DecRef()
		}
		l.queue, l.queued = nil, 0
		l.mu.Unlock()
		l.deliver(viewOf(frame))
	})
}
