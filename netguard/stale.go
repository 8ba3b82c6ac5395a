package netguard

import (
	"net/netip"
	"slices"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// maxStale bounds what ResetStale remembers until a link is there.
const maxStale = 4096

// staleFlow is a connection that the guest has and the guard has not.
type staleFlow struct{ guest, peer netip.AddrPort }

// ResetStale resets a connection that the guest believes to have, as a machine does that goes on
// from a copy of another: the guard does not know it, and a guest that only reads would wait for
// ever. The guest is asked where the connection stands, by a SYN that cannot be meant for it; what
// it answers is refused by the stack with a reset in the right place (RFC 5961, section 4).
func (g *Guard) ResetStale(guest, peer netip.AddrPort) {
	f := staleFlow{guest, peer}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.link == nil {
		if len(g.stale) < maxStale {
			g.stale = append(g.stale, f)
		}
		return
	}
	g.link.probe(f)
}

// connected notes the link that is served, nil when it ends.
func (g *Guard) connected(l *link) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.link = l
	if l != nil {
		for _, f := range g.stale {
			l.probe(f)
		}
		g.stale = nil
	}
}

// probe sends the guest the SYN of ResetStale.
func (l *link) probe(f staleFlow) {
	src, dst := f.peer.Addr(), f.guest.Addr()
	if src.Is4() != dst.Is4() || dst != guest4 && dst != guest6 {
		return
	}
	tcp := header.TCP(make([]byte, header.TCPMinimumSize))
	tcp.Encode(&header.TCPFields{
		SrcPort: f.peer.Port(), DstPort: f.guest.Port(), DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 1,
	})
	pseudo := header.PseudoHeaderChecksum(header.TCPProtocolNumber, toStack(src), toStack(dst), header.TCPMinimumSize)
	tcp.SetChecksum(^checksum.Checksum(tcp, pseudo))
	var ip []byte
	var protocol tcpip.NetworkProtocolNumber
	if dst.Is4() {
		h := header.IPv4(make([]byte, header.IPv4MinimumSize))
		h.Encode(&header.IPv4Fields{
			TotalLength: header.IPv4MinimumSize + header.TCPMinimumSize, TTL: 64, Protocol: uint8(header.TCPProtocolNumber),
			SrcAddr: toStack(src), DstAddr: toStack(dst),
		})
		h.SetChecksum(^h.CalculateChecksum())
		ip, protocol = h, header.IPv4ProtocolNumber
	} else {
		h := header.IPv6(make([]byte, header.IPv6MinimumSize))
		h.Encode(&header.IPv6Fields{
			PayloadLength: header.TCPMinimumSize, TransportProtocol: header.TCPProtocolNumber, HopLimit: 64,
			SrcAddr: toStack(src), DstAddr: toStack(dst),
		})
		ip, protocol = h, header.IPv6ProtocolNumber
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(l.MaxHeaderLength()), Payload: buffer.MakeWithData(slices.Concat(ip, []byte(tcp))),
	})
	defer pkt.DecRef()
	pkt.NetworkProtocolNumber = protocol
	l.AddHeader(pkt)
	var one stack.PacketBufferList
	one.PushBack(pkt)
	_, _ = l.WritePackets(one) // a link that takes nothing is ending
}

// Inherit lets the guard's guest reach names by the addresses that it was given by another
// guard, of whose guest it is a copy. It is called before Serve.
func (g *Guard) Inherit(from *Guard) { g.names.inherit(from.names) }

func (t *nameTable) inherit(from *nameTable) {
	from.mu.Lock()
	defer from.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next = from.next
	for e := from.used.Back(); e != nil; e = e.Prev() {
		old := e.Value.(*named)
		n := &named{name: old.name, index: old.index, real: slices.Clone(old.real)}
		n.place = t.used.PushFront(n)
		t.byName[n.name], t.byPool[n.index] = n, n
	}
	for a, list := range from.byReal {
		for _, old := range list {
			t.byReal[a] = append(t.byReal[a], t.byName[old.name])
		}
	}
	for e := from.freed.Front(); e != nil; e = e.Next() {
		t.freed.PushBack(e.Value)
	}
}
