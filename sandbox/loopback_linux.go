package sandbox

import (
	"crypto/rand"
	"net/netip"
)

// ownLoopback returns an address that nothing else on this computer is likely to use: all of
// 127.0.0.0/8 is the loopback.
func ownLoopback() netip.Addr {
	b := [4]byte{127}
	_, _ = rand.Read(b[1:]) // cannot fail since Go 1.24
	b[1], b[3] = 64+b[1]%128, 1+b[3]%254
	return netip.AddrFrom4(b)
}
