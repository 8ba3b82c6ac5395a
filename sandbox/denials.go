package sandbox

import (
	"slices"
	"sync"
	"time"
)

// Denial is one thing that the host refused the guest, in words for whoever works in it.
type Denial struct {
	Time   time.Time // the last, if it was refused several times in a row
	Count  int
	Kind   string // "file" or "network"
	What   string // what the guest tried, such as "write" or "GET"
	Path   string // on what: a path of the guest, or a URL without its query
	Rule   string // the rule that refused it
	Reason string
	Remedy string
}

// maxDenials is how many denials a log keeps.
const maxDenials = 256

// DenialLog keeps the latest denials of one session. The zero value is empty and ready.
// It is passed to what refuses (providers, the network) and to Options.Denials.
type DenialLog struct {
	mu   sync.Mutex
	list []Denial // oldest first
}

// Add notes a denial. One that equals a recent one only counts.
func (l *DenialLog) Add(d Denial) {
	if d.Time.IsZero() {
		d.Time = time.Now()
	}
	d.Count = 1
	l.mu.Lock()
	defer l.mu.Unlock()
	const recent = 16 // a guest that tries in a loop tries a few things
	for i := len(l.list) - 1; i >= max(len(l.list)-recent, 0); i-- {
		if o := l.list[i]; o.Kind == d.Kind && o.What == d.What && o.Path == d.Path && o.Rule == d.Rule {
			d.Count += o.Count
			l.list = slices.Delete(l.list, i, i+1)
			break
		}
	}
	l.list = append(l.list, d)
	if over := len(l.list) - maxDenials; over > 0 {
		l.list = slices.Delete(l.list, 0, over)
	}
}

// Since returns the denials after a time, oldest first.
func (l *DenialLog) Since(t time.Time) []Denial {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := len(l.list)
	for i > 0 && l.list[i-1].Time.After(t) {
		i--
	}
	return slices.Clone(l.list[i:])
}

// Denials returns what the host refused the session's guest after a time, oldest first.
func (s *Session) Denials(since time.Time) []Denial {
	list := append(s.denials.Since(since), s.networkDenials(since)...)
	slices.SortStableFunc(list, func(a, b Denial) int { return a.Time.Compare(b.Time) })
	return list
}
