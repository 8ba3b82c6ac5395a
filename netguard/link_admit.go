package netguard

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// admit decides on a frame before the stack sees it: what remains is what an
// ordinary host behind one gateway sends, and nothing that would make the
// stack remember something.
//
//   - ARP and neighbour solicitation for the gateway only. The stack, which plays
//     every server, would claim each address, the guest's own among them
//     when the guest looks whether it is free.
//   - Echo requests to the gateway only: other hosts are not there.
//   - Packets from the guest's own address. Another one is forged.
//   - No fragments: an MTU of 65000 leaves no use for them. No IPv6 extension headers,
//     no multicast, no other ICMP.
func admit(frame []byte) bool {
	if len(frame) < header.EthernetMinimumSize {
		return false
	}
	eth, p := header.Ethernet(frame), frame[header.EthernetMinimumSize:]
	switch eth.Type() {
	case header.ARPProtocolNumber:
		h := header.ARP(p)
		return h.IsValid() && h.Op() == header.ARPRequest && addr4(h.ProtocolAddressTarget()) == gateway4
	case header.IPv4ProtocolNumber:
		return admit4(p)
	case header.IPv6ProtocolNumber:
		return admit6(p)
	}
	return false
}

func admit4(p []byte) bool {
	h := header.IPv4(p)
	if len(p) < header.IPv4MinimumSize || p[0]>>4 != 4 || int(h.HeaderLength()) < header.IPv4MinimumSize || int(h.HeaderLength()) > len(p) {
		return false
	}
	src, dst := addr4(p[12:16]), addr4(p[16:20])
	if src != guest4 || !unicast(dst) || dst == guest4 || h.More() || h.FragmentOffset() != 0 {
		return false
	}
	switch p[9] {
	case uint8(header.ICMPv4ProtocolNumber):
		body := p[h.HeaderLength():]
		return dst == gateway4 && len(body) >= header.ICMPv4MinimumSize && body[0] == byte(header.ICMPv4Echo)
	case 2: // IGMP
		return false
	}
	return true
}

func admit6(p []byte) bool {
	if len(p) < header.IPv6MinimumSize || p[0]>>4 != 6 {
		return false
	}
	h := header.IPv6(p)
	src, dst := addr6(p[8:24]), addr6(p[24:40])
	switch h.NextHeader() {
	case 0, 43, 44, 51, 60, 135: // hop-by-hop, routing, fragment, AH, destination options, mobility
		return false
	case uint8(header.ICMPv6ProtocolNumber):
		body := p[header.IPv6MinimumSize:]
		if len(body) < header.ICMPv6MinimumSize {
			return false
		}
		switch header.ICMPv6Type(body[0]) {
		case header.ICMPv6EchoRequest:
			return src == guest6 && dst == gateway6
		case header.ICMPv6NeighborSolicit:
			// The source may be the guest's link-local address, or none.
			return len(body) >= header.ICMPv6NeighborSolicitMinimumSize && addr6(body[8:24]) == gateway6
		}
		return false
	}
	return src == guest6 && unicast(dst) && dst != guest6
}

// unicast lets IPv4 link-local addresses pass, since the guest routes those of cloud
// metadata here and should get its refusal at once.
func unicast(a netip.Addr) bool { return !a.IsMulticast() && a != broadcast4 }

func addr4(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }
func addr6(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b)) }

// broadcast4 is the one address that Is4 and IsMulticast do not tell apart.
var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// namedAddress is the i-th address of the pools from which names get theirs.
func namedAddress(i uint32) (netip.Addr, netip.Addr) {
	b4, b6 := pool4.Addr().As4(), pool6.Addr().As16()
	binary.BigEndian.PutUint32(b4[:], binary.BigEndian.Uint32(b4[:])+i)
	binary.BigEndian.PutUint32(b6[12:], i)
	return netip.AddrFrom4(b4), netip.AddrFrom16(b6)
}

// namedIndex is the inverse of namedAddress.
func namedIndex(a netip.Addr) (uint32, bool) {
	switch {
	case pool4.Contains(a):
		b, base := a.As4(), pool4.Addr().As4()
		return binary.BigEndian.Uint32(b[:]) - binary.BigEndian.Uint32(base[:]), true
	case pool6.Contains(a):
		b := a.As16()
		for _, x := range b[8:12] {
			if x != 0 {
				return 0, false
			}
		}
		return binary.BigEndian.Uint32(b[12:]), true
	}
	return 0, false
}
