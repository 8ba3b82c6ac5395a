package netguard

import (
	"golang.org/x/crypto/ssh"
)

// forward sees a direct-tcpip channel through: a connection that the server is to make for
// the guest. Unlike a session it is accepted only once the server has opened it, since a
// refusal can stand in the answer.
func (ch *sshChannel) forward() {
	call, payload, err := parseSSHDirect(ch.opens.ExtraData())
	if err != nil {
		ch.markDrained()
		ch.c.turnDown(ch.opens, &refusal{rule: "protocol", reason: err.Error(), remedy: "name a host and a port"})
		close(ch.over)
		return
	}
	ch.call, ch.direct = call, payload
	ch.call.User = ch.c.account
	ch.run()
	if ch.guest != nil {
		<-ch.left
	}
}

// acceptForward gives the guest its channel. No request is of use on it; their end is
// that of the channel.
func (ch *sshChannel) acceptForward() error {
	guest, requests, err := ch.opens.Accept()
	if err != nil {
		return err
	}
	ch.adopt(guest)
	ch.left = make(chan struct{})
	ch.c.spawn(func() {
		defer close(ch.left)
		ch.ignore(requests)
		ch.guestLeft()
	})
	return nil
}

func (ch *sshChannel) ignore(requests <-chan *ssh.Request) {
	b := ch.c.wire.backlog
	defer b.leave()
	for {
		r, ok := next(b, requests)
		if !ok {
			return
		}
		_ = r.Reply(false, nil) // fails if the guest has gone
	}
}
