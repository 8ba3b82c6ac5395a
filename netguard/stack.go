package netguard

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	nicID = tcpip.NICID(1)

	// Locally administered addresses (second bit of the first byte).
	gatewayMAC = tcpip.LinkAddress("\x02gond\x01")
	guestMAC   = tcpip.LinkAddress("\x02gond\x02")
)

// network is what one link's guest sees: the stack and the goroutines of its flows.
type network struct {
	g     *Guard
	ctx   context.Context // done when the link ends
	stack *stack.Stack

	mu     sync.Mutex
	closed bool
	work   sync.WaitGroup // flows and lookups
}

func newNetwork(ctx context.Context, g *Guard, l stack.LinkEndpoint) (*network, error) {
	s, err := newStack(l, netip.PrefixFrom(gateway4, 30), netip.PrefixFrom(gateway6, 126))
	if err != nil {
		return nil, err
	}
	n := &network{g: g, ctx: ctx, stack: s}
	// Any address is ours: servers are played to the guest under their own.
	if err := s.SetPromiscuousMode(nicID, true); err != nil {
		return nil, fmt.Errorf("setting up the network stack: %s", err)
	}
	if err := s.SetSpoofing(nicID, true); err != nil {
		return nil, fmt.Errorf("setting up the network stack: %s", err)
	}
	_, receive := buffers(0)
	forwarder := tcp.NewForwarder(s, receive, g.o.Limits.HalfOpen, n.accept)
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, forwarder.HandlePacket)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, n.datagram)
	return n, nil
}

// newStack makes a stack with one interface. It forwards nothing, joins no multicast group
// that a guest could ask for, takes no router advertisements and needs no neighbour table.
func newStack(l stack.LinkEndpoint, addrs ...netip.Prefix) (*stack.Stack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{arp.NewProtocol, ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	for _, opt := range []tcpip.SettableTransportProtocolOption{
		// A send buffer's size goes below what is usual when its writes are tiny: see guestConn.
		&tcpip.TCPSendBufferSizeRangeOption{Min: 64, Default: maxBuffer, Max: maxBuffer},
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: 256 << 10, Max: maxBuffer},
		ptr(tcpip.TCPSACKEnabled(true)),
		ptr(tcpip.TCPDelayEnabled(false)),
		ptr(tcpip.TCPModerateReceiveBufferOption(true)),
		ptr(tcpip.TCPTimeWaitTimeoutOption(timeWait)),
		ptr(tcpip.TCPLingerTimeoutOption(finTimeout)),
	} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, opt); err != nil {
			return nil, fmt.Errorf("setting up the network stack: %T: %s", opt, err)
		}
	}
	if err := s.CreateNIC(nicID, l); err != nil {
		return nil, fmt.Errorf("setting up the network stack: %s", err)
	}
	for _, a := range addrs {
		pa := tcpip.ProtocolAddress{Protocol: protocolOf(a.Addr()), AddressWithPrefix: tcpip.AddressWithPrefix{Address: toStack(a.Addr()), PrefixLen: a.Bits()}}
		if err := s.AddProtocolAddress(nicID, pa, stack.AddressProperties{}); err != nil {
			return nil, fmt.Errorf("setting up the network stack: %s: %s", a, err)
		}
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}, {Destination: header.IPv6EmptySubnet, NIC: nicID}})
	return s, nil
}

// enter counts a goroutine that close waits for; false once it has begun to.
func (n *network) enter() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	n.work.Add(1)
	return true
}

// close ends the flows, waits for their goroutines and stops the stack's.
func (n *network) close() {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	done := make(chan struct{})
	go func() {
		n.work.Wait()
		close(done)
	}()
	// Again, because a flow that was about to be set up may not have been there yet.
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for open := true; open; {
		for _, ep := range n.stack.RegisteredEndpoints() {
			ep.Abort()
		}
		select {
		case <-done:
			open = false
		case <-again.C:
		}
	}
	n.stack.Close()
	n.stack.Wait()
}

// accept decides on a connection that the guest opens. The stack calls it in a goroutine of
// its own, of which there are Limits.HalfOpen until the connection is set up; further
// SYNs are ignored meanwhile, and the guest sends them again.
func (n *network) accept(r *tcp.ForwarderRequest) {
	if !n.enter() {
		r.Complete(false)
		return
	}
	defer n.work.Done()
	id := r.ID()
	dst := netip.AddrPortFrom(fromStack(id.LocalAddress), id.LocalPort)
	f := n.g.admitFlow(dst)
	if f == nil {
		r.Complete(true) // RST
		return
	}
	defer n.g.dropFlow(f)
	var wq waiter.Queue
	// The stack itself would wait two minutes.
	late := time.AfterFunc(handshakeTimeout, func() {
		proto := protocolOf(dst.Addr())
		if ep := n.stack.FindTransportEndpoint(proto, tcp.ProtocolNumber, id, nicID); ep != nil {
			ep.Abort()
		}
	})
	ep, err := r.CreateEndpoint(&wq)
	late.Stop()
	if err != nil {
		r.Complete(true)
		return
	}
	r.Complete(false)
	send, receive := buffers(n.g.flows.size())
	conn := newGuestConn(&wq, ep, send, receive)
	if !f.connected(n.ctx, conn) {
		conn.abort()
		return
	}
	n.g.serveFlow(f)
	conn.linger(n.g.o.Limits.Idle)
}

// datagram answers DNS queries, to whatever address they go. For anything else the stack
// says that the port is unreachable.
func (n *network) datagram(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	if id.LocalPort != 53 {
		return false
	}
	query := pkt.Data().AsRange().ToSlice()
	reply := func(msg []byte) {
		if msg != nil {
			n.sendUDP(id, msg)
		}
	}
	n.g.dns.serveUDP(n, query, reply)
	return true
}

// sendUDP answers the datagram that id is from. There is no socket: what is lost
// because the link is full, is lost.
func (n *network) sendUDP(id stack.TransportEndpointID, payload []byte) {
	proto := header.IPv4ProtocolNumber
	if id.RemoteAddress.Len() == header.IPv6AddressSize {
		proto = header.IPv6ProtocolNumber
	}
	route, err := n.stack.FindRoute(nicID, id.LocalAddress, id.RemoteAddress, proto, false)
	if err != nil {
		return
	}
	defer route.Release()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.UDPMinimumSize + int(route.MaxHeaderLength()),
		Payload:            buffer.MakeWithData(payload),
	})
	defer pkt.DecRef()
	pkt.TransportProtocolNumber = udp.ProtocolNumber
	h := header.UDP(pkt.TransportHeader().Push(header.UDPMinimumSize))
	length := uint16(header.UDPMinimumSize + len(payload))
	h.Encode(&header.UDPFields{SrcPort: id.LocalPort, DstPort: id.RemotePort, Length: length})
	sum := checksum.Combine(route.PseudoHeaderChecksum(udp.ProtocolNumber, length), pkt.Data().Checksum())
	if sum = ^h.CalculateChecksum(sum); sum == 0 {
		sum = 0xffff // 0 stands for none (RFC 768)
	}
	h.SetChecksum(sum)
	_ = route.WritePacket(stack.NetworkHeaderParams{Protocol: udp.ProtocolNumber, TTL: route.DefaultTTL()}, pkt)
}

func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return header.IPv4ProtocolNumber
	}
	return header.IPv6ProtocolNumber
}

func toStack(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

func fromStack(a tcpip.Address) netip.Addr {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return addr
}

func ptr[T any](v T) *T { return &v }
