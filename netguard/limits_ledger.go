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
	unsaid   int // withheld from next since what was passed on last
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

// recordFailure enters with r a connection that came to nothing before anything was asked on
// it. A guest can make many of those, so that the ledger keeps their pace as it does
// refusals'.
func recordFailure(r Recorder, e Event) error {
	l, ok := r.(*ledger)
	if !ok || e.Verdict == "deny" {
		return r.Record(e)
	}
	if e.Time.IsZero() {
		e.Time = l.now()
	}
	l.mu.Lock()
	withheld := l.again(&e)
	if withheld {
		l.unsaid++
	}
	withheld = withheld || !l.paced(&e)
	l.mu.Unlock()
	if withheld || l.next == nil {
		return nil
	}
	return l.next.Record(e)
}

// settle records how many were withheld last, when no more will come.
func (l *ledger) settle() error {
	l.mu.Lock()
	n := l.unsaid
	l.unsaid = 0
	l.mu.Unlock()
	if n == 0 || l.next == nil {
		return nil
	}
	return l.next.Record(Event{Time: l.now(), Verdict: "deny", Reason: fmt.Sprintf("%d refusals and failed handshakes came too fast to be recorded", n)})
}

// remember keeps a refusal and says whether to pass it on.
func (l *ledger) remember(e *Event) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.again(e) {
		return false
	}
	if len(l.ring) < maxDenials {
		l.ring = append(l.ring, *e)
	} else {
		l.ring[l.count%maxDenials] = *e
	}
	l.count++
	return l.paced(e)
}

// again says whether the same was seen just now; the lock is held.
func (l *ledger) again(e *Event) bool {
	key := denialKey{e.Protocol, e.Host, e.Port, e.Method, e.Path + e.Command, e.Reason}
	if seen, ok := l.lastSeen[key]; ok && e.Time.Sub(seen) < sameDenial {
		return true
	}
	if len(l.lastSeen) >= maxDenials {
		clear(l.lastSeen)
	}
	l.lastSeen[key] = e.Time
	return false
}

// paced says whether the record's pace allows for e, which then tells how many it did
// not allow for before; the lock is held.
func (l *ledger) paced(e *Event) bool {
	if !l.pace.AllowN(e.Time, 1) {
		l.unsaid++
		return false
	}
	if l.unsaid > 0 {
		e.Reason += fmt.Sprintf(" (%d refusals and failed handshakes before came too fast to be recorded)", l.unsaid)
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
