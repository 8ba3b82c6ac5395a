package netguard

import (
	"context"
	"errors"
	"maps"
	"net"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// errGuestGone ends what belongs to a channel or connection that the guest has closed.
var errGuestGone = errors.New("the guest closed it")

// sshConn is one SSH connection of the guest's, and the one to the server that
// belongs to it. The goroutine that calls serve owns all others.
type sshConn struct {
	s    *sshServer
	g    *Guard
	flow *Flow
	wire *sshWire

	ctx    context.Context // done when the channels have to end
	cancel context.CancelCauseFunc
	work   sync.WaitGroup
	moved  atomic.Int64  // when something last did on either side, in ns
	turn   chan struct{} // is held while the server is connected to

	user, account string // as the guest calls itself, and on the server

	mu       sync.Mutex
	up       *sshUpstream
	shut     bool // nothing is connected to any more
	channels map[*sshChannel]struct{}
}

func newSSHConn(ctx context.Context, s *sshServer, f *Flow, conn net.Conn) *sshConn {
	c := &sshConn{s: s, g: s.g, flow: f, turn: make(chan struct{}, 1), channels: map[*sshChannel]struct{}{}}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	c.wire = &sshWire{Conn: conn, backlog: &backlog{all: &s.backlog}, moved: &c.moved}
	c.moved.Store(time.Now().UnixNano())
	return c
}

// spawn runs a part of the connection. A panic ends the connection, and no more.
func (c *sshConn) spawn(part func()) {
	c.work.Add(1)
	go func() {
		defer c.work.Done()
		defer func() {
			if p := recover(); p != nil {
				c.g.o.Log.Error("carrying SSH panicked", "flow", c.flow.ID, "panic", p, "stack", string(debug.Stack()))
				c.cancel(errors.New("an internal error"))
				_ = c.wire.Close()
			}
		}()
		part()
	}()
}

func (c *sshConn) serve() {
	defer c.wire.backlog.close()
	defer c.work.Wait()
	defer c.closeUpstream()
	defer c.cancel(errGuestGone)
	defer c.wire.Close()
	stop := context.AfterFunc(c.ctx, c.hurry)
	defer stop()
	guest, channels, requests, err := c.handshake()
	if err != nil {
		c.handshakeFailed(err)
		return
	}
	c.wire.backlog.join(2)
	c.spawn(func() { c.accept(channels) })
	c.spawn(func() { c.globals(requests) })
	c.watch(guest)
}

// hurry puts an end to reads and writes once nothing more will be carried: at once
// before there is a channel, and else after the guest had time to read why.
func (c *sshConn) hurry() {
	patience := sshFarewell
	if len(c.open()) == 0 {
		patience = 0
	}
	_ = c.wire.SetDeadline(time.Now().Add(patience)) // fails only if the connection is gone
}

// handshake plays the server. The guest holds no credential and needs none: who it is
// does not matter, only what it asks for, so any public key and none at all are accepted.
func (c *sshConn) handshake() (*ssh.ServerConn, <-chan ssh.NewChannel, <-chan *ssh.Request, error) {
	host, err := c.g.o.CA.HostCertificate(c.flow.Host())
	if err != nil {
		return nil, nil, nil, err
	}
	conf := &ssh.ServerConfig{
		NoClientAuth:      true,
		PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, nil },
		ServerVersion:     "SSH-2.0-gondolin",
	}
	// Nobody listens between guest and host: the hybrid exchanges would cost an emulated
	// guest time for nothing.
	conf.KeyExchanges = slices.DeleteFunc(ssh.SupportedAlgorithms().KeyExchanges, func(k string) bool { return k == ssh.KeyExchangeMLKEM768X25519 })
	conf.AddHostKey(host)
	if cert, ok := host.PublicKey().(*ssh.Certificate); ok {
		conf.AddHostKey(bareSigner{host, cert.Key}) // for clients that know no certificates
	}
	if err := c.wire.SetDeadline(time.Now().Add(sshHandshake)); err != nil {
		return nil, nil, nil, err
	}
	guest, channels, requests, err := ssh.NewServerConn(c.wire, conf)
	if err != nil {
		return nil, nil, nil, err
	}
	c.user = guest.User()
	if len(c.user) > 255 || !plainText(c.user) {
		guest.Close()
		return nil, nil, nil, errors.New("the guest's name for itself is no name of an account")
	}
	c.account = c.g.o.SSH.account(c.user, c.flow.Host())
	if err := c.wire.SetDeadline(time.Time{}); err != nil {
		return nil, nil, nil, err
	}
	if err := c.ctx.Err(); err != nil { // it came before the deadline was taken back
		return nil, nil, nil, context.Cause(c.ctx)
	}
	return guest, channels, requests, nil
}

// bareSigner signs with the key of a certificate, and shows only the key.
type bareSigner struct {
	ssh.Signer
	key ssh.PublicKey
}

// PublicKey implements ssh.Signer.
func (s bareSigner) PublicKey() ssh.PublicKey { return s.key }

func (c *sshConn) handshakeFailed(err error) {
	if c.ctx.Err() != nil {
		return // told by whoever ended it
	}
	e := c.event()
	e.Verdict, e.Reason = "error", "the SSH handshake with the guest failed: "+oneLine(err.Error())
	e.Remedy = "the guest's ssh has to trust the session's host authority"
	if err := recordFailure(c.g.recorder, e); err != nil {
		c.g.o.Log.Error("recording a failed handshake", "error", err, "flow", c.flow.ID)
	}
}

// watch returns when the connection is over: the guest has left, ctx is done or nothing
// moved for too long. What the guest sent before it left still reaches the server.
func (c *sshConn) watch(guest ssh.Conn) {
	gone := make(chan struct{})
	c.spawn(func() {
		defer close(gone)
		if err := guest.Wait(); errors.Is(err, errSSHBacklog) {
			c.cancel(&refusal{rule: "limit", reason: errSSHBacklog.Error(), remedy: "send less at once"})
		}
	})
	idle := c.g.o.Limits.Idle
	look := time.NewTicker(max(idle/8, time.Millisecond))
	defer look.Stop()
	for c.ctx.Err() == nil {
		select {
		case <-gone:
			c.settle(sshDrain, func(ch *sshChannel) <-chan struct{} { return ch.drained })
			return
		case <-look.C:
			if time.Since(time.Unix(0, c.moved.Load())) >= idle {
				c.cancel(&refusal{rule: "limit", failed: true, reason: "nothing was sent for " + idle.String(), remedy: "keep the connection busy (ServerAliveInterval)"})
			}
		case <-c.ctx.Done():
		}
	}
	c.settle(sshFarewell, func(ch *sshChannel) <-chan struct{} { return ch.over })
}

// settle waits until all channels have reached a point, at most for patience.
func (c *sshConn) settle(patience time.Duration, point func(*sshChannel) <-chan struct{}) {
	end := time.NewTimer(patience)
	defer end.Stop()
	for _, ch := range c.open() {
		select {
		case <-point(ch):
		case <-end.C:
			return
		}
	}
}

// accept takes the channels that the guest opens.
func (c *sshConn) accept(channels <-chan ssh.NewChannel) {
	defer c.wire.backlog.leave()
	for {
		opens, ok := next(c.wire.backlog, channels)
		if !ok {
			return
		}
		switch kind := opens.ChannelType(); {
		case kind != "session" && kind != "direct-tcpip":
			c.turnDown(opens, &refusal{rule: "protocol", reason: "SSH channels of the type " + quoted(kind) + " are not carried", remedy: "run a command"})
		case len(c.open()) >= maxSSHChannels || !c.s.take():
			c.turnDown(opens, &refusal{rule: "limit", reason: "too many SSH channels are open", remedy: "close some, or connect again later"})
		default:
			c.spawn(newSSHChannel(c, opens).serve)
		}
	}
}

// turnDown refuses a channel that the guest wants to open.
func (c *sshConn) turnDown(opens ssh.NewChannel, r *refusal) {
	e := c.event()
	r.event(&e)
	e.Status = 0
	c.record(e)
	_ = opens.Reject(ssh.Prohibited, sshMessage(r)) // fails as the connection does
}

// globals answers requests that are about the whole connection. None is granted: they
// would have the server listen for the guest.
func (c *sshConn) globals(requests <-chan *ssh.Request) {
	defer c.wire.backlog.leave()
	for {
		r, ok := next(c.wire.backlog, requests)
		if !ok {
			return
		}
		if r.Type == "tcpip-forward" || r.Type == "streamlocal-forward@openssh.com" {
			c.refuseFeature("a server that listens for the guest (" + r.Type + ")")
		}
		if r.Reply(false, nil) != nil {
			return // the connection is gone
		}
	}
}

// refuseFeature records that something beside the running of commands was asked for.
func (c *sshConn) refuseFeature(what string) {
	e := c.event()
	e.Verdict, e.Reason, e.Remedy = "deny", "SSH is carried without "+what, "do without it"
	c.record(e)
}

func (c *sshConn) open() []*sshChannel {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.channels))
}

// event is the beginning of an entry for the record.
func (c *sshConn) event() Event {
	return Event{Flow: c.flow.ID, Protocol: string(policy.SSH), Host: c.flow.Host(), Port: c.flow.Dst.Port()}
}

// record enters what is no permission, so that nothing depends on its success.
func (c *sshConn) record(e Event) {
	if err := c.g.recorder.Record(e); err != nil {
		c.g.o.Log.Error("recording what became of an SSH request", "error", err, "flow", c.flow.ID, "reason", e.Reason)
	}
}
