//go:build linux

package sandboxd

import (
	"context"
	"errors"
	"net"
	"runtime"

	"time"

	"github.com/gondolin-go/gondolin/guest/port"
	"github.com/gondolin-go/gondolin/guest/wire"
)

// rehearsal is how long a rehearsal may take.
const rehearsal = 20 * time.Second

// rehearse serves a host within this process and runs a command for it. What a first connection and a
// first command make once is then there before the machine is saved as a template, and in
// each clone: how messages are coded, a cgroup, the accounts, the runtime's threads. Nothing of
// it is seen later. What fails makes a first command slower, no more.
func (a *agent) rehearse(ctx context.Context) {
	host, guest := net.Pipe()
	limit := time.Now().Add(rehearsal)
	_ = host.SetDeadline(limit)
	_ = guest.SetDeadline(limit)
	served := make(chan struct{})
	go func() {
		defer close(served)
		defer guest.Close()
		if port.Greet(guest, a.announce, func(*wire.Hello) error { return nil }) == nil {
			_ = a.serve(ctx, guest)
		}
	}()
	_ = playHost(host)
	host.Close()
	<-served
	a.procs.mu.Lock()
	a.procs.next = 0
	a.procs.mu.Unlock()
	// What it left would have to be collected in the middle of a clone's first command.
	runtime.GC()
}

// playHost is the host's side of a rehearsal.
func playHost(conn net.Conn) error {
	var hi wire.Announce
	var ready wire.Ready
	if err := errors.Join(wire.ReadHandshake(conn, &hi), wire.WriteHandshake(conn, wire.Hello{Version: hi.Version}), wire.ReadHandshake(conn, &ready)); err != nil {
		return err
	}
	mux, err := wire.Client(conn)
	if err != nil {
		return err
	}
	defer mux.Close()
	// A request that changes nothing, for its form.
	if b, err := wire.Marshal(wire.Trust{}); err == nil {
		_ = wire.Unmarshal(b, &wire.Trust{})
	}
	for range 2 {
		if err := runOne(mux.Open); err != nil {
			return err
		}
	}
	return nil
}

func runOne(open func() (net.Conn, error)) error {
	st, err := open()
	if err != nil {
		return err
	}
	defer st.Close()
	var started wire.Started
	if err := wire.SendRequest(st, wire.OpStart, wire.Start{Argv: []string{"/bin/true"}, Dir: "/"}); err != nil {
		return err
	}
	if err := wire.ReadReply(st, &started); err != nil {
		return err
	}
	frames := wire.NewFrameReader(st)
	for {
		kind, payload, err := frames.Next()
		if err != nil {
			return err
		}
		if kind == wire.FrameEnd {
			var exit wire.Exit
			return errors.Join(wire.Unmarshal(payload, &exit), wire.WriteAck(st, wire.EndSeen))
		}
	}
}
