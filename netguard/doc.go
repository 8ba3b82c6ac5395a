// Package netguard is the network of one session's guest. There is no NAT: the guest's
// Ethernet frames end here in a TCP/IP stack of our own, and what goes on from here does so
// as a connection that the host makes, after a decision of netguard/policy, with the
// secrets of netguard/secret put in on the way.
//
// # A packet's walk
//
//	link     frames from QEMU's socket; admit drops what an ordinary host would not send
//	stack    gVisor: IPv4, IPv6, ARP, neighbour discovery; every address is played by us
//	dns      UDP and TCP port 53 of any address; everything else over UDP is unreachable
//	flow     a TCP connection: refused with an RST, or accepted and looked at
//	tcpmap   a mapped port: bytes both ways
//	sniff    the first bytes: HTTP, TLS, SSH; anything else is reset
//	tls http ws   TLS is ended, each request judged, changed and passed on
//	dial     resolves on the host, judges each address, connects to the one it judged
//
// New makes a Guard, Guard.Serve plays the network to one guest, and Config is what
// the guest has to be configured with. Guard.SetPolicy replaces the policy at any time.
//
// # Names
//
// A flow is judged by a name, and the name is known because each one that the guest looks up
// gets addresses of its own, from 198.19.0.0/16 and fd67:6f6e:646f:1::/64. So a name
// that is allowed opens no address that a denied one shares, and no query leaves the
// host. A connection to an address that stands for no name is judged by the
// address. Where the operator wants real answers (DNSTrusted, DNSOpen) several names may
// share an address: then what the client says tells them apart, and still decides
// nothing by itself. The connection to the server never goes to the address that the
// guest dialled but to one that the host finds for the name, and that was judged.
//
// A denied name is NXDOMAIN, with the reason in an Extended DNS Error. Names of which an
// open flow makes use are not forgotten, and the address of a forgotten one is given to
// nobody for two minutes.
//
// # Refusals
//
// A refusal is an answer and comes at once: an HTTP 403 with the rule, reason and remedy, a
// TLS alert, NXDOMAIN, an ICMP port unreachable, an RST. Guard.Denials has the reason of
// each for those who can only be told by RST. What cannot be recorded, or whose hook fails,
// is refused.
//
// # Bounds
//
// Whatever a hostile guest does, the guard's memory and time stay within:
//
//	flows               512  open at once (Limits.Flows); then RST
//	half-open           128  connections in their handshake (Limits.HalfOpen), 5 s each
//	buffers of flows    50 MiB towards the guest, 78 MiB from it (see buffers), and
//	                    16 MiB of those that copy mapped flows
//	frames to the guest 1024 or 4 MiB waiting; then dropped
//	names               4096 remembered (Limits.Names), 16 real addresses each
//	sniffing            16 KiB and 15 s (Limits.Sniff), a ClientHello included
//	silence             5 min (Limits.Idle)
//	DNS                 1232 bytes a query (4096 over TCP), 32 lookups on the host at
//	                    once for 5 s each, 32 TCP connections of 10 s of silence
//	dialling            64 addresses of a name judged, 6 tried, 15 s
//	SSH                 32 connections of 16 channels, 64 channels in all, 32 MiB that
//	                    nobody has taken yet
//	refusals            256 remembered, 20 a second recorded, failed handshakes with them
//
// Fragments, forged sources, extension headers and multicast are dropped before the stack.
//
// # Errors
//
// Serve's error is the link's. Dialers return *DialError, which says what failed on what
// and why. Errors of gVisor's are turned into those of the standard library by guestConn
// and reach nothing beyond. A panic while a flow is served ends that flow.
//
// # Goroutines
//
// New starts none. Serve owns the link's writer, the stack's own goroutines, and one for each
// flow and forwarded lookup, and returns when all of them have ended. A flow's goroutine
// owns its connection until nothing is left of it, lingering included.
package netguard
