package netguard

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// sshChannel is a channel that the guest has opened, and the one to the server that it
// leads to. Its serve reads the guest's requests until the guest has closed the channel; the
// first that starts something is seen through by run, in a goroutine of its own.
type sshChannel struct {
	c      *sshConn
	opens  ssh.NewChannel
	ctx    context.Context // done when nothing more is to be carried
	cancel context.CancelCauseFunc

	guest  ssh.Channel
	call   policy.SSHCall // set before run begins
	env    []sshEnv
	pty    []byte        // the request for a terminal
	direct []byte        // of a forward: what the server is asked
	left   chan struct{} // of a forward: closed when the guest has closed it
	sayer  chan struct{} // is held while something is written to the guest's stderr

	sent, received atomic.Int64
	drained        chan struct{} // closed when the guest's bytes have all been passed on, or never will be
	over           chan struct{} // closed when the guest has been told all
	markDrained    func()

	mu     sync.Mutex
	judged bool   // there is something for a new policy to judge
	asked  bool   // a human has allowed it
	rule   string // that has allowed it

	late  sync.Mutex // may be held while the server is written to
	up    ssh.Channel
	early []sshHeld // requests that came before up
}

func newSSHChannel(c *sshConn, opens ssh.NewChannel) *sshChannel {
	ch := &sshChannel{c: c, opens: opens, sayer: make(chan struct{}, 1), drained: make(chan struct{}), over: make(chan struct{})}
	ch.markDrained = sync.OnceFunc(func() { close(ch.drained) })
	ch.ctx, ch.cancel = context.WithCancelCause(c.ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.channels[ch] = struct{}{}
	return ch
}

// end makes the channel end for a reason that the guest is told. From then on nothing that
// the guest sends is passed on.
func (ch *sshChannel) end(r *refusal) { ch.cancel(r) }

func (ch *sshChannel) serve() {
	defer func() {
		ch.cancel(errGuestGone)
		ch.c.mu.Lock()
		delete(ch.c.channels, ch)
		ch.c.mu.Unlock()
		ch.c.s.give()
	}()
	if ch.opens.ChannelType() != "session" {
		ch.forward()
		return
	}
	guest, requests, err := ch.opens.Accept()
	if err != nil {
		ch.markDrained()
		close(ch.over)
		return // the connection is gone
	}
	done := make(chan struct{})
	started := false
	ch.adopt(guest)
	ch.requests(requests, func(call policy.SSHCall) {
		started = true
		ch.call = call
		ch.c.spawn(func() { defer close(done); ch.run() })
	})
	if !started {
		ch.markDrained()
		close(ch.over)
		ch.discardInput()
		return
	}
	ch.guestLeft()
	<-done
}

// adopt takes over the guest's side of the channel.
func (ch *sshChannel) adopt(guest ssh.Channel) {
	b := ch.c.wire.backlog
	b.join(3) // data, what some clients send as their stderr, and requests
	ch.guest = guest
	ch.c.spawn(func() { discard(b, guest.Stderr()) })
}

// discardInput reads the guest's data to their end where nobody else does.
func (ch *sshChannel) discardInput() { discard(ch.c.wire.backlog, ch.guest) }

// guestLeft lets the server have what the guest sent before it closed the channel.
func (ch *sshChannel) guestLeft() {
	patience := time.NewTimer(sshDrain)
	defer patience.Stop()
	select {
	case <-ch.drained:
	case <-patience.C:
	case <-ch.ctx.Done():
	}
	ch.cancel(errGuestGone)
}

// requests answers the guest's requests on a session until the guest closes it. start is
// called once, for the first one that starts something.
func (ch *sshChannel) requests(requests <-chan *ssh.Request, start func(policy.SSHCall)) {
	b := ch.c.wire.backlog
	defer b.leave()
	started := false
	for {
		r, ok := next(b, requests)
		if !ok {
			return
		}
		granted := false
		switch r.Type {
		case "exec", "shell", "subsystem":
			call, err := parseSSHStart(r.Type, r.Payload)
			if granted = err == nil && !started; granted {
				started = true
				call.User = ch.c.account
				// Granted before it is judged: only on an open channel can the guest be told
				// why it is refused, and be given an exit status.
				if r.Reply(true, nil) != nil {
					continue
				}
				start(call)
				continue
			}
		case "env":
			if v, ok := parseSSHEnv(r.Payload); ok && !started && len(ch.env) < maxSSHEnv {
				ch.env, granted = append(ch.env, v), true
			}
		case "pty-req":
			if granted = !started && len(r.Payload) <= maxSSHPty; granted {
				ch.pty = r.Payload
			}
		case "window-change":
			granted = ssh.Unmarshal(r.Payload, &sshSize{}) == nil && ch.passOn(r)
		case "signal":
			granted = parseSSHSignal(r.Payload) && ch.passOn(r)
		case "auth-agent-req@openssh.com":
			ch.c.refuseFeature("forwarding of an agent")
		case "x11-req":
			ch.c.refuseFeature("forwarding of X11")
		}
		// An error means that the guest has gone, of which requests tells as well.
		_ = r.Reply(granted, nil)
	}
}

// passOn sends a signal or a new size to the program on the server, or keeps it until there
// is one: the guest may want to break off what has not begun yet.
func (ch *sshChannel) passOn(r *ssh.Request) bool {
	if ch.call.Kind != policy.SSHExec && ch.call.Kind != policy.SSHShell || ch.ctx.Err() != nil {
		return false
	}
	ch.late.Lock()
	defer ch.late.Unlock()
	if ch.up == nil {
		if len(ch.early) >= maxSSHEarly || len(r.Payload) > maxSSHPty {
			return false
		}
		ch.early = append(ch.early, sshHeld{r.Type, r.Payload})
		return true
	}
	_, err := ch.up.SendRequest(r.Type, false, r.Payload)
	return err == nil
}

// started makes up the channel that requests are passed on to, beginning with the early ones.
func (ch *sshChannel) started(up ssh.Channel) {
	ch.late.Lock()
	defer ch.late.Unlock()
	ch.up = up
	for _, r := range ch.early {
		_, _ = up.SendRequest(r.kind, false, r.payload) // fails as the connection does
	}
	ch.early = nil
}

// say writes a line to the guest's stderr. A guest that does not read is not waited for.
func (ch *sshChannel) say(text string) {
	newline := "\n"
	if ch.pty != nil {
		newline = "\r\n" // its terminal is in raw mode
	}
	said := make(chan struct{})
	ch.c.spawn(func() {
		defer close(said)
		ch.sayer <- struct{}{}
		defer func() { <-ch.sayer }()
		_, _ = io.WriteString(ch.guest.Stderr(), text+newline) // fails if the guest has gone
	})
	select {
	case <-said:
	case <-time.After(sshFarewell):
	}
}

// discard reads to the end as a reader of b.
func discard(b *backlog, r io.Reader) {
	defer b.leave()
	buf := make([]byte, 4<<10)
	for {
		b.wait()
		n, err := r.Read(buf)
		b.got(n)
		if err != nil {
			return
		}
	}
}
