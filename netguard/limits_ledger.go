package netguard

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	maxDenials = 256         // refusals remembered
	sameDenial = time.Second // within which an equal refusal is the same one: A and AAAA, a client that tries again

	// A guest that is refused in a loop must not fill the host's disk.
	denialsPerSecond = 20
	denialsBurst     = 200
)

// ledger records decisions: all of them with the Recorder, and refusals in a ring
// too, from which calls tell the agent what was refused meanwhile. It is the
// Recorder that the rest of the package uses.
type ledger struct {
	next Recorder // nil: none
	now  func() time.Time

	mu       sync.Mutex
	ring     []Event // the refusal number n is at n % maxDenials
	count    uint64
	pace     *rate.Limiter
	unsaid   int // refusals withheld from next since the last one
	lastSeen map[denialKey]time.Time
}

type denialKey struct {
	protocol, host       string
	port                 uint16
	method, path, reason string
}

var _ Recorder = (*ledger)(nil)

func newLedger(next Recorder, now func() time.Time) *ledger {
	return &ledger{next: next, now: now, pace: rate.NewLimiter(denialsPerSecond, denialsBurst), lastSeen: map[denialKey]time.Time{}}
}

// Record implements Recorder. For a refusal its error means nothing: what is
// refused stays refused.
func (l *ledger) Record(e Event) error {
	if e.Time.IsZero() {
		e.Time = l.now()
	}
	if e.Verdict == "deny" && !l.remember(&e) {
		return nil
	}
	if l.next == nil {
		return nil
	}
	return l.next.Record(e)
}

// remember keeps a refusal and says whether to pass it on.
func (l *ledger) remember(e *Event) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := denialKey{e.Protocol, e.Host, e.Port, e.Method, e.Path + e.Command, e.Reason}
	seen, again := l.lastSeen[key]
	if again && e.Time.Sub(seen) < sameDenial {
		return false
	}
	if len(l.lastSeen) >= maxDenials {
		clear(l.lastSeen)
	}
	l.lastSeen[key] = e.Time
	if len(l.ring) < maxDenials {
		l.ring = append(l.ring, *e)
	} else {
		l.ring[l.count%maxDenials] = *e
	}
	l.count++
	if !l.pace.AllowN(e.Time, 1) {
		l.unsaid++
		return false
	}
	if l.unsaid > 0 {
		e.Reason += fmt.Sprintf(" (%d refusals before this one came too fast to be recorded)", l.unsaid)
		l.unsaid = 0
	}
	return true
}

// since returns the refusals after the first n.
func (l *ledger) since(n uint64) []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count > maxDenials {
		n = max(n, l.count-maxDenials)
	}
	var out []Event
	for ; n < l.count; n++ {
		out = append(out, l.ring[n%maxDenials])
	}
	return out
}

func (l *ledger) seen() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count
}
