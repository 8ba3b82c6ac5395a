package qemu

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// settleLimit is how long the ports may take until nothing moves on them. It is a matter of milliseconds.
const settleLimit = 10 * time.Second

// ports are the open connections to a machine's ports.
type ports struct {
	opening chan struct{} // holds a token unless a connection is being opened, or none may be

	mu   sync.Mutex
	open map[*portConn]struct{}
}

func newPorts() *ports {
	p := &ports{opening: make(chan struct{}, 1), open: map[*portConn]struct{}{}}
	p.opening <- struct{}{}
	return p
}

// portConn is one of them.
type portConn struct {
	net.Conn
	ports *ports
	turn  chan struct{} // holds a token unless somebody writes, or nobody may
	gone  chan struct{} // closed when it is
	shut  sync.Once
	reads atomic.Uint64 // that have ended
	limit atomic.Int64  // of a write, in nanoseconds; 0 is none
}

// Dial connects to a port. The caller closes the connection; the guest sees
// the port opened and closed.
func (vm *VM) Dial(ctx context.Context, port string) (net.Conn, error) {
	p := vm.ports
	select {
	case <-p.opening:
		defer func() { p.opening <- struct{}{} }()
	case <-ctx.Done():
		return nil, fmt.Errorf("connecting to port %s: %w", port, context.Cause(ctx))
	}
	conn, err := dial(ctx, filepath.Join(vm.dir, port))
	if err != nil {
		return nil, fmt.Errorf("connecting to port %s: %w", port, err)
	}
	c := &portConn{Conn: conn, ports: p, turn: make(chan struct{}, 1), gone: make(chan struct{})}
	c.turn <- struct{}{}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[c] = struct{}{}
	return c, nil
}

func (c *portConn) Read(b []byte) (int, error) {
	defer c.reads.Add(1)
	return c.Conn.Read(b)
}

// SetWriteDeadline gives each following write the time that is left now. A wait for the machine's
// memory to be copied is not part of it.
func (c *portConn) SetWriteDeadline(t time.Time) error {
	var limit time.Duration
	if !t.IsZero() {
		limit = max(time.Until(t), 1)
	}
	c.limit.Store(int64(limit))
	return nil
}

func (c *portConn) Write(b []byte) (int, error) {
	select {
	case <-c.turn:
		defer func() { c.turn <- struct{}{} }()
	case <-c.gone:
		return 0, net.ErrClosed
	}
	if limit := c.limit.Load(); limit > 0 {
		if err := c.Conn.SetWriteDeadline(time.Now().Add(time.Duration(limit))); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(b)
}

func (c *portConn) Close() error {
	c.shut.Do(func() { close(c.gone) })
	c.ports.mu.Lock()
	delete(c.ports.open, c)
	c.ports.mu.Unlock()
	return c.Conn.Close()
}

// StopQuietly stops a machine and returns when nothing of it changes any more, until release is
// called. Its disks and its network card stand still with the machine, but QEMU's serial
// ports go on: what is written to one then still goes into the machine's memory, and a
// copy that is taken meanwhile lacks some of it. Nobody may therefore write to a port, or
// open one, before release.
func (vm *VM) StopQuietly(ctx context.Context) (release func(), err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, settleLimit, errors.New("its ports do not come to rest: try again"))
	defer cancel()
	held, err := vm.ports.hold(ctx)
	release = sync.OnceFunc(func() {
		for _, turn := range held {
			turn <- struct{}{}
		}
	})
	if err == nil {
		err = vm.Stop()
	}
	if err == nil {
		err = vm.settle(ctx)
	}
	if err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// hold takes the turn of everybody who could write to a port. It is done while the machine runs and takes
// what is being written to it.
func (p *ports) hold(ctx context.Context) (held []chan struct{}, err error) {
	take := func(turn chan struct{}) bool {
		select {
		case <-turn:
			held = append(held, turn)
			return true
		case <-ctx.Done():
			return false
		}
	}
	if !take(p.opening) {
		return held, context.Cause(ctx)
	}
	for _, c := range p.conns() {
		if !take(c.turn) {
			return held, context.Cause(ctx)
		}
	}
	return held, nil
}

func (p *ports) conns() []*portConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.open))
}

// settle waits until QEMU has passed on what is under way on the ports of a machine that stands still.
func (vm *VM) settle(ctx context.Context) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		before := vm.ports.state()
		// By two answers later QEMU has looked at all its sockets.
		for range 2 {
			if err := vm.qmp.execute("query-status", nil, nil); err != nil {
				return err
			}
		}
		if slices.Equal(before, vm.ports.state()) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// state tells whether something has moved.
func (p *ports) state() []uint64 {
	var sum, in, out uint64
	for _, c := range p.conns() {
		i, o := unread(c.Conn)
		sum, in, out = sum+c.reads.Load(), in+i, out+o
	}
	return []uint64{sum, in, out}
}
