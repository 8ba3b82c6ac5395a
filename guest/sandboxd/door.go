//go:build linux

package sandboxd

import (
	"sync"
	"sync/atomic"
	"time"
)

// door is what commands pass when they are started. It is shut while processes are held: a
// child that begins in a frozen cgroup gets no further, and the runtime's thread that made
// it waits for it, which can be the only one that the agent has.
type door struct {
	entry  sync.Mutex   // held to come in: who shuts it lets nobody in before
	inside sync.RWMutex // read: somebody starts a command; written: it is shut
	copies atomic.Int64 // that the machine is of others, one after the other
}

// enter waits until the door is open. It reports false in a copy of the machine in which
// somebody began to wait.
func (d *door) enter() bool {
	before := d.copies.Load()
	d.entry.Lock()
	d.inside.RLock()
	d.entry.Unlock()
	if d.copies.Load() != before {
		d.inside.RUnlock()
		return false
	}
	return true
}

func (d *door) leave() { d.inside.RUnlock() }

// shut lets nobody in any more and reports whether all who were inside have left within the limit.
func (d *door) shut(limit time.Duration) bool {
	d.entry.Lock()
	defer d.entry.Unlock()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !d.inside.TryLock() {
		if time.Now().After(deadline) {
			return false
		}
		<-tick.C
	}
	return true
}

// open ends shut.
func (d *door) open() { d.inside.Unlock() }
