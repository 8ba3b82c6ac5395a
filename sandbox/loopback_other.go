//go:build !linux

package sandbox

import "net/netip"

// ownLoopback returns the one loopback address that there is.
func ownLoopback() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 1}) }
