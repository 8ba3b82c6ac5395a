//go:build linux

package sandboxd

import (
	"errors"
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/pid1"
	"github.com/gondolin-go/gondolin/guest/wire"
)

// parts are the parts of the guest that are started when the host first asks for them: a
// session that needs none pays for none.
type parts struct {
	mu      sync.Mutex
	ingress chan struct{} // closed when it has ended; nil: it was not started yet
}

// serve answers wire.OpServe: once that the part runs, and once more when it has ended.
func (p *parts) serve(stream net.Conn, m *wire.Serve) *wire.Error {
	if m.Port != wire.PortIngress {
		return badRequest("no part of the guest serves port %q on demand", m.Port)
	}
	ended, before, err := p.run()
	if err != nil {
		return spawnError("sandboxingress", err, "")
	}
	if wire.SendReply(stream, wire.Served{Before: before}, nil) != nil {
		return nil
	}
	select {
	case <-ended:
		_ = wire.SendReply(stream, nil, nil)
	case <-closed(stream):
	}
	return nil
}

// run starts the part unless it runs, and says whether it did.
func (p *parts) run() (ended <-chan struct{}, before bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ingress != nil {
		select {
		case <-p.ingress:
		default:
			return p.ingress, true, nil
		}
	}
	pid, err := pid1.Spawn("sandboxingress")
	if err != nil {
		return nil, false, err
	}
	done := make(chan struct{})
	p.ingress = done
	go func() { // ends with the part
		defer close(done)
		for {
			if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	return done, false, nil
}
