package netguard

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// Bounds of SSH. With them all, what a guest can make SSH hold is some 80 MiB: the
// backlog and a third of it, 0.3 MiB a connection and side, and 0.2 MiB a channel.
const (
	maxSSHConns    = 32       // connections of a guest's at once
	maxSSHChannels = 16       // open at once on one connection
	maxSSHTotal    = 64       // open at once on all of them
	maxSSHBacklog  = 32 << 20 // bytes received on either side that nobody takes, all connections together

	sshHandshake = 15 * time.Second // with the guest, and with a server once it is connected to
	sshStart     = 30 * time.Second // for a server to open a channel and start what is asked for
	sshDrain     = 5 * time.Second  // for a server to take what the guest sent before it closed the channel
	sshFarewell  = 2 * time.Second  // for the guest to take the reason why something ends
)

// SSHOptions say how the guard reaches SSH servers. The guest holds none of this, and
// the agent is not forwarded to it. With the zero value no server is known, so that every
// SSH connection is refused.
type SSHOptions struct {
	// KnownHosts are files as OpenSSH's known_hosts; one that does not exist counts as
	// empty. They are read for each connection.
	KnownHosts []string
	// Agent is the socket of the host's ssh-agent (SSH_AUTH_SOCK); empty: none.
	Agent string
	// KeyFiles are private keys, tried in this order before the agent's others. One
	// with a passphrase is used if the agent holds it.
	KeyFiles []string
	// Users maps what the guest calls itself to an account on the server. The keys
	// are "user@host", "@host" for any user there, and "user" for any host; the first of
	// these that exists counts. Without one the guest's own choice stands.
	Users map[string]string
}

// account is who the guest is on the server.
func (o SSHOptions) account(user, host string) string {
	for _, key := range []string{user + "@" + host, "@" + host, user} {
		if name, ok := o.Users[key]; ok {
			return name
		}
	}
	return user
}

// sshServer carries the SSH connections of one guard. Towards the guest it is the server
// and shows a host certificate of the session's authority, towards the target it is the
// client: so each command is seen in the clear and judged, the guest needs no
// credential, and a server is trusted only if the host knows its key. The server is
// connected to when the first request of a connection has been allowed, and serves the
// later ones of the same connection too.
type sshServer struct {
	g       *Guard
	backlog atomic.Int64 // of all connections

	mu       sync.Mutex
	conns    map[*sshConn]struct{}
	channels int
}

func newSSHServer(g *Guard) *sshServer {
	return &sshServer{g: g, conns: map[*sshConn]struct{}{}}
}

// serveSSH carries one SSH connection of the guest's. It returns when everything that
// belongs to it has ended, and closes conn.
func (g *Guard) serveSSH(ctx context.Context, f *Flow, conn net.Conn) {
	s := g.ssh
	refuse := func(reason, remedy string) {
		g.refuse(Event{Flow: f.ID, Protocol: string(policy.SSH), Host: f.Host(), Port: f.Dst.Port(), Reason: reason, Remedy: remedy})
		resetConn(conn)
	}
	if g.o.CA == nil {
		refuse("the session has no certificate authority, so that SSH cannot be looked into", "use HTTPS")
		return
	}
	c := newSSHConn(ctx, s, f, conn)
	if !s.add(c) {
		c.cancel(nil)
		refuse(fmt.Sprintf("%d SSH connections are open, and that is the limit", maxSSHConns), "close some")
		return
	}
	defer s.remove(c)
	c.serve()
}

func (s *sshServer) add(c *sshConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= maxSSHConns {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *sshServer) remove(c *sshConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// take counts a channel, if there may be one more.
func (s *sshServer) take() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.channels >= maxSSHTotal {
		return false
	}
	s.channels++
	return true
}

func (s *sshServer) give() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.channels--
}

// policyChanged ends the channels that the policy in force does not allow. When it
// returns, nothing more that the guest sends on them is passed on.
func (s *sshServer) policyChanged() {
	for _, ch := range s.all() {
		ch.rejudge()
	}
}

// all are the open channels.
func (s *sshServer) all() []*sshChannel {
	s.mu.Lock()
	defer s.mu.Unlock()
	var open []*sshChannel
	for c := range s.conns {
		open = append(open, c.open()...)
	}
	return open
}
