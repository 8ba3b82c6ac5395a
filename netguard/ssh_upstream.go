package netguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// sshUpstream is a connection to a server. All channels of one connection of the guest's
// use it.
type sshUpstream struct {
	client ssh.Conn
	wire   *sshWire
	addr   netip.Addr // not valid behind a proxy
	gone   chan struct{}
}

func (u *sshUpstream) alive() bool {
	select {
	case <-u.gone:
		return false
	default:
		return true
	}
}

// upstream is the connection to the server, if there is one.
func (c *sshConn) upstream() *sshUpstream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.up
}

// closeUpstream ends the connection to the server and prevents another one.
func (c *sshConn) closeUpstream() {
	c.mu.Lock()
	c.shut = true
	up := c.up
	c.mu.Unlock()
	if up != nil {
		_ = up.client.Close()
	}
}

// connect returns the connection to the server, which it makes if there is none. An
// existing one is used only if the policy allows the channel with its address.
func (c *sshConn) connect(ch *sshChannel) (*sshUpstream, *refusal) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ch.ctx.Done():
		return nil, interrupted(ch.ctx)
	}
	if up := c.upstream(); up != nil && up.alive() {
		if d := ch.decide(up.addr); !ch.granted(d) {
			return nil, denied(d)
		}
		return up, nil
	}
	up, r := c.dial(ch)
	if r != nil {
		return nil, r
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shut {
		_ = up.client.Close()
		return nil, interrupted(ch.ctx)
	}
	c.up = up
	return up, nil
}

// dial connects to the server and logs in.
func (c *sshConn) dial(ch *sshChannel) (*sshUpstream, *refusal) {
	host, port := c.flow.Host(), c.flow.Dst.Port()
	address := net.JoinHostPort(host, strconv.Itoa(int(port)))
	known, r := c.s.hostKeys(address)
	if r != nil {
		return nil, r // without it the server's key could not be checked
	}
	conn, err := c.g.dialer.Dial(ch.ctx, Target{Host: host, Port: port, Decide: func(a netip.Addr) policy.Decision {
		d := ch.decide(a)
		if ch.granted(d) {
			d.Verdict = policy.Allow
		}
		return d
	}})
	if err != nil {
		var failed *DialError
		if errors.As(err, &failed) && failed.Why == FailedBlocked {
			return nil, denied(failed.Decision)
		}
		if ch.ctx.Err() != nil {
			return nil, interrupted(ch.ctx)
		}
		return nil, &refusal{failed: true, rule: "upstream", reason: err.Error(), remedy: "check that the server is up and that the name is right"}
	}
	up := &sshUpstream{gone: make(chan struct{})}
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		up.addr = a.AddrPort().Addr().Unmap()
	}
	up.wire = &sshWire{Conn: conn, backlog: &backlog{all: &c.s.backlog}, moved: &c.moved}
	stop := context.AfterFunc(ch.ctx, func() { conn.Close() })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(sshHandshake)); err != nil {
		conn.Close()
		return nil, &refusal{failed: true, rule: "upstream", reason: "the connection to " + address + " is gone", remedy: "try again"}
	}
	login := c.s.newLogin()
	defer login.close()
	client, channels, requests, err := ssh.NewClientConn(up.wire, address, &ssh.ClientConfig{
		User: c.account, Auth: login.methods(),
		HostKeyCallback: known.check, HostKeyAlgorithms: known.algorithms,
	})
	if err != nil {
		up.wire.backlog.close()
		return nil, c.loginFailed(ch, known, login, err)
	}
	if !stop() || conn.SetDeadline(time.Time{}) != nil {
		client.Close()
		up.wire.backlog.close()
		return nil, interrupted(ch.ctx)
	}
	up.client = client
	up.wire.backlog.join(2)
	c.spawn(func() { up.refuseChannels(channels) })
	c.spawn(func() { up.refuseRequests(requests) })
	c.spawn(func() {
		defer close(up.gone)
		defer up.wire.backlog.close()
		_ = client.Wait() // why it ended is told by each channel
	})
	return up, nil
}

// loginFailed tells why there is no session on the server.
func (c *sshConn) loginFailed(ch *sshChannel, known *knownKeys, login *sshLogin, err error) *refusal {
	r := &refusal{failed: true, rule: "upstream"}
	var timeout interface{ Timeout() bool }
	switch {
	case known.refused != nil:
		return known.refused
	case ch.ctx.Err() != nil:
		return interrupted(ch.ctx)
	case strings.Contains(err.Error(), "unable to authenticate"): // x/crypto/ssh has no type for it
		r.reason = fmt.Sprintf("the server %s does not let %s in with %s", c.flow.Host(), quoted(c.account), login.describe())
		r.remedy = "the operator has to add a key that the server accepts to the host's ssh-agent or key files"
	case errors.As(err, &timeout) && timeout.Timeout():
		r.reason = fmt.Sprintf("the server %s did not finish the SSH handshake within %s", c.flow.Host(), sshHandshake)
		r.remedy = "try again later"
	default:
		r.reason = fmt.Sprintf("the SSH handshake with the server %s failed: %s", c.flow.Host(), oneLine(err.Error()))
		r.remedy = "check that it is an SSH server"
	}
	return r
}

// refuseChannels refuses what the server wants to open towards the guest: forwarded
// ports, X11, agents.
func (u *sshUpstream) refuseChannels(channels <-chan ssh.NewChannel) {
	defer u.wire.backlog.leave()
	for {
		opens, ok := next(u.wire.backlog, channels)
		if !ok {
			return
		}
		_ = opens.Reject(ssh.Prohibited, "not carried") // fails as the connection does
	}
}

func (u *sshUpstream) refuseRequests(requests <-chan *ssh.Request) {
	defer u.wire.backlog.leave()
	for {
		r, ok := next(u.wire.backlog, requests)
		if !ok {
			return
		}
		_ = r.Reply(false, nil) // fails as the connection does
	}
}
