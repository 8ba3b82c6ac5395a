//go:build linux

package sandboxd

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/pid1"
	"github.com/gondolin-go/gondolin/guest/wire"
)

// parts are the parts of the guest that are started when the host first asks for them: a
// session that needs none pays for none.
type parts struct {
	mu      sync.Mutex
	ingress bool // runs
}

// serve answers wire.OpServe.
func (p *parts) serve(m *wire.Serve) (any, *wire.Error) {
	if m.Port != wire.PortIngress {
		return nil, badRequest("no part of the guest serves port %q on demand", m.Port)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ingress {
		return wire.Served{Before: true}, nil
	}
	pid, err := pid1.Spawn("sandboxingress")
	if err != nil {
		return nil, spawnError("sandboxingress", err, "")
	}
	p.ingress = true
	go func() { // ends with the part
		for {
			if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		p.mu.Lock()
		p.ingress = false
		p.mu.Unlock()
	}()
	return wire.Served{}, nil
}
