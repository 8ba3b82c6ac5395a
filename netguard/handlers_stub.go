package netguard

import (
	"context"
	"net"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// serveSSH refuses.
func (g *Guard) serveSSH(_ context.Context, f *Flow, conn net.Conn) {
	g.refuse(Event{
		Flow: f.ID, Protocol: string(policy.SSH), Host: f.Host(), Port: f.Dst.Port(),
		Reason: "SSH is not carried yet", Remedy: "use HTTPS",
	})
	resetConn(conn)
}
