package netguard

import (
	"context"
	"errors"
	"io"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// sshBuffer is what a channel copies with in each direction, in bytes: the data of one packet.
const sshBuffer = 32 << 10

// carry copies between guest and server until the server has closed the channel and all
// that it sent has been passed on, or ctx is done. A side that does not read holds up only
// its own direction: its window is not opened again.
func (ch *sshChannel) carry(leg *sshLeg, d policy.Decision) *refusal {
	if leg.note != "" {
		ch.say(leg.note)
	}
	count := func(n int) bool {
		if err := ch.c.g.limiter.Bytes(d, n); err != nil {
			ch.end(limited(err))
		}
		return ch.ctx.Err() == nil
	}
	ch.c.spawn(func() { ch.input(leg, count) })
	read, closed := make(chan struct{}), make(chan struct{})
	var outputs sync.WaitGroup
	outputs.Add(2)
	ch.c.spawn(func() { defer outputs.Done(); ch.output(leg, ch.guest, leg.channel, count) })
	ch.c.spawn(func() { defer outputs.Done(); ch.output(leg, lockedStderr{ch}, leg.channel.Stderr(), count) })
	ch.c.spawn(func() { defer close(read); outputs.Wait() })
	ch.c.spawn(func() { defer close(closed); ch.lastWords(leg) })

	select {
	case <-read:
		// The server has ended its output and may still read: so may the guest.
		_ = ch.guest.CloseWrite() // fails if the guest has gone
		select {
		case <-closed:
		case <-ch.ctx.Done():
		}
	case <-ch.ctx.Done():
	}
	_ = leg.channel.Close() // fails as the connection does
	switch cause := context.Cause(ch.ctx); {
	case cause == nil && leg.exit.Load() == nil && leg.up.wire.ended.Load():
		return &refusal{failed: true, rule: "upstream", reason: "the connection to the server " + ch.c.flow.Host() + " ended", remedy: "try again"}
	case cause == nil, errors.Is(cause, errGuestGone):
		return nil
	}
	return interrupted(ch.ctx)
}

// input passes on what the guest sends, and its end. Once that goes nowhere it is read all
// the same, so that the guest is not held up in what else it does.
func (ch *sshChannel) input(leg *sshLeg, count func(int) bool) {
	b := ch.c.wire.backlog
	defer b.leave()
	defer ch.markDrained()
	buf := make([]byte, sshBuffer)
	lost := false
	for {
		b.wait()
		n, err := ch.guest.Read(buf)
		b.got(n)
		if n > 0 && !lost {
			if !count(n) || write(leg.channel, buf[:n]) != nil {
				lost = true
				ch.markDrained()
			} else {
				ch.sent.Add(int64(n))
			}
		}
		if err != nil {
			if !lost {
				_ = leg.channel.CloseWrite() // fails as the connection does
			}
			return
		}
	}
}

// output passes on what the server sends, in the same way.
func (ch *sshChannel) output(leg *sshLeg, to io.Writer, from io.Reader, count func(int) bool) {
	b := leg.up.wire.backlog
	defer b.leave()
	buf := make([]byte, sshBuffer)
	lost := false
	for {
		b.wait()
		n, err := from.Read(buf)
		b.got(n)
		if n > 0 && !lost {
			if !count(n) || write(to, buf[:n]) != nil {
				lost = true
			} else {
				ch.received.Add(int64(n))
			}
		}
		if err != nil {
			return
		}
	}
}

func write(w io.Writer, p []byte) error {
	_, err := w.Write(p)
	return err
}

// lockedStderr is the guest's stderr, to which the guard itself writes as well.
type lockedStderr struct{ ch *sshChannel }

// Write implements io.Writer.
func (w lockedStderr) Write(p []byte) (int, error) {
	select {
	case w.ch.sayer <- struct{}{}:
		defer func() { <-w.ch.sayer }()
		return w.ch.guest.Stderr().Write(p)
	case <-w.ch.ctx.Done():
		return 0, context.Cause(w.ch.ctx)
	}
}

// lastWords takes the server's requests until it closes the channel. How the program ended is
// for the guest, and nothing else is.
func (ch *sshChannel) lastWords(leg *sshLeg) {
	b := leg.up.wire.backlog
	defer b.leave()
	for {
		r, ok := next(b, leg.requests)
		if !ok {
			return
		}
		switch r.Type {
		case "exit-status":
			var s sshExit
			if ssh.Unmarshal(r.Payload, &s) == nil {
				leg.exit.Store(&sshHeld{r.Type, ssh.Marshal(s)})
			}
		case "exit-signal":
			var s sshKilled
			if ssh.Unmarshal(r.Payload, &s) == nil {
				s.Signal, s.Message, s.Language = oneLine(s.Signal), oneLine(s.Message), ""
				leg.exit.Store(&sshHeld{r.Type, ssh.Marshal(s)})
			}
		}
		// Fails as the connection does, of which requests tells as well.
		_ = r.Reply(false, nil)
	}
}
