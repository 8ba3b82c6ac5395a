package netguard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// sshLeg is the server's side of a channel.
type sshLeg struct {
	up       *sshUpstream
	channel  ssh.Channel
	requests <-chan *ssh.Request
	note     string                  // for the guest, before anything else
	exit     atomic.Pointer[sshHeld] // once the server has told how it ended
}

// sshHeld is a request to be sent later: a signal before a program has begun, or how it ended.
type sshHeld struct {
	kind    string
	payload []byte
}

// run sees the channel through, from the decision to the last word to the guest.
func (ch *sshChannel) run() {
	began := time.Now()
	d, leg, r := ch.begin()
	if r == nil {
		r = ch.carry(leg, d)
	} else if ch.guest != nil {
		ch.c.spawn(ch.discardInput)
	}
	ch.markDrained()
	ch.record(d, leg, r, time.Since(began))
	ch.tell(leg, r)
	close(ch.over)
}

// begin decides, connects and starts what was asked for.
func (ch *sshChannel) begin() (policy.Decision, *sshLeg, *refusal) {
	d, r := ch.admit()
	if r != nil {
		return d, nil, r
	}
	up, r := ch.c.connect(ch)
	if r != nil {
		return d, nil, r
	}
	leg, r := ch.start(up)
	if r != nil {
		return d, nil, r
	}
	if ch.guest == nil {
		if err := ch.acceptForward(); err != nil {
			leg.abandon(ch.c)
			return d, nil, interrupted(ch.ctx)
		}
	}
	ch.started(leg.channel)
	return d, leg, nil
}

// start has the server open the channel and begin. Where ctx ends first, whatever still comes
// of it is closed.
func (ch *sshChannel) start(up *sshUpstream) (*sshLeg, *refusal) {
	type result struct {
		leg *sshLeg
		r   *refusal
	}
	results := make(chan result, 1)
	ch.c.spawn(func() {
		leg, r := ch.put(up)
		results <- result{leg, r}
	})
	patience := time.NewTimer(sshStart)
	defer patience.Stop()
	var r *refusal
	select {
	case got := <-results:
		return got.leg, got.r
	case <-patience.C:
		r = &refusal{failed: true, rule: "upstream", reason: fmt.Sprintf("the server did not start it within %s", sshStart), remedy: "try again later"}
	case <-ch.ctx.Done():
		r = interrupted(ch.ctx)
	}
	ch.c.spawn(func() {
		if got := <-results; got.leg != nil {
			got.leg.abandon(ch.c)
		}
	})
	return nil, r
}

// put puts the guest's request to the server, with what is passed on of its surroundings.
func (ch *sshChannel) put(up *sshUpstream) (*sshLeg, *refusal) {
	kind, payload := "session", []byte(nil)
	if ch.call.Kind == policy.SSHForward {
		kind, payload = "direct-tcpip", ch.direct
	}
	channel, requests, err := up.client.OpenChannel(kind, payload)
	if err != nil {
		return nil, ch.serverRefused("to open a channel", err)
	}
	up.wire.backlog.join(3)
	leg := &sshLeg{up: up, channel: channel, requests: requests}
	if kind != "session" {
		return leg, nil
	}
	// A subsystem is a program's: it has no terminal, and no language.
	if ch.call.Kind != policy.SSHSubsystem {
		if err := ch.surroundings(leg); err != nil {
			leg.abandon(ch.c)
			return nil, ch.serverRefused("to prepare it", err)
		}
	}
	payload = nil
	if ch.call.Kind != policy.SSHShell {
		payload = ssh.Marshal(sshText{ch.call.Command})
	}
	ok, err := channel.SendRequest(string(ch.call.Kind), true, payload)
	if err != nil || !ok {
		leg.abandon(ch.c)
		return nil, ch.serverRefused("to start it", err)
	}
	return leg, nil
}

func (ch *sshChannel) surroundings(leg *sshLeg) error {
	if ch.pty != nil {
		ok, err := leg.channel.SendRequest("pty-req", true, ch.pty)
		if err != nil {
			return err
		}
		if !ok {
			leg.note = "gondolin: the server gives no terminal"
		}
	}
	for _, v := range ch.env {
		if _, err := leg.channel.SendRequest("env", false, ssh.Marshal(v)); err != nil {
			return err
		}
	}
	return nil
}

// serverRefused is a request that the server did not grant.
func (ch *sshChannel) serverRefused(what string, err error) *refusal {
	r := &refusal{failed: true, rule: "upstream", reason: fmt.Sprintf("the server %s refused %s", ch.c.flow.Host(), what)}
	var open *ssh.OpenChannelError
	switch {
	case errors.As(err, &open):
		r.reason += ": " + oneLine(open.Message)
	case err != nil:
		r.reason = fmt.Sprintf("the server %s ended the connection when it was asked %s", ch.c.flow.Host(), what)
	}
	return r
}

// abandon closes a leg that nobody wants any more, and reads what is left of it.
func (l *sshLeg) abandon(c *sshConn) {
	b := l.up.wire.backlog
	_ = l.channel.Close() // fails as the connection does
	c.spawn(func() { discard(b, l.channel) })
	c.spawn(func() { discard(b, l.channel.Stderr()) })
	c.spawn(func() {
		defer b.leave()
		for {
			if _, ok := next(b, l.requests); !ok {
				return
			}
		}
	})
}

// record enters how it ended.
func (ch *sshChannel) record(d policy.Decision, leg *sshLeg, r *refusal, took time.Duration) {
	e := ch.event()
	e.Verdict, e.Rule, e.Reason = "allow", d.Rule, d.Reason
	if r != nil {
		r.event(&e)
		e.Status = 0 // is HTTP's
		if e.Rule == "" {
			e.Rule = d.Rule
		}
	} else if errors.Is(context.Cause(ch.ctx), errGuestGone) && (leg == nil || leg.exit.Load() == nil) {
		e.Reason += "; the guest broke it off"
	}
	if up := ch.c.upstream(); up != nil && up.addr.IsValid() {
		e.Addr = netip.AddrPortFrom(up.addr, ch.c.flow.Dst.Port()).String()
	}
	e.Sent, e.Received, e.Duration = ch.sent.Load(), ch.received.Load(), took
	ch.c.record(e)
}

// tell gives the guest the reason, or how the program ended, and closes the channel.
// Its errors mean that the guest has gone.
func (ch *sshChannel) tell(leg *sshLeg, r *refusal) {
	if ch.guest == nil {
		if r != nil {
			_ = ch.opens.Reject(ssh.Prohibited, sshMessage(r))
		}
		return
	}
	if ch.call.Kind != policy.SSHForward {
		if r != nil {
			ch.say(sshMessage(r))
			_, _ = ch.guest.SendRequest("exit-status", false, ssh.Marshal(sshExit{1}))
		} else if last := leg.exit.Load(); last != nil {
			_, _ = ch.guest.SendRequest(last.kind, false, last.payload)
		}
	}
	_ = ch.guest.Close()
}
