package netguard

import (
	"container/list"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

const (
	// maxPoolNames is how many addresses there are to give: a /16 without the first and
	// the last, which look like a network's own.
	maxPoolNames = 1<<16 - 2
	// quarantine is how long an address whose name was forgotten belongs to nobody. It
	// is twice what the answers say they may be kept.
	quarantine = 2 * answerTTL * time.Second
	// answerTTL of our answers, in seconds.
	answerTTL = 60
	// maxRealAddresses of one name are remembered.
	maxRealAddresses = 16
)

// nameTable knows which addresses stand for which names. Each name gets addresses of
// its own; where lookups are forwarded it has real ones too, which it may share. The
// names longest unused are forgotten when there are too many, but none with an open flow.
type nameTable struct {
	max  int
	pool uint32 // addresses that there are
	now  func() time.Time

	mu     sync.Mutex
	byName map[string]*named
	byPool map[uint32]*named
	byReal map[netip.Addr][]*named // the last looked up first
	used   *list.List              // of *named, the last used first
	next   uint32                  // the pool's addresses from here on were never given
	freed  list.List               // of freedAddress, the longest free first
}

type named struct {
	name  string
	index uint32 // in the pool
	real  []netip.Addr
	flows int
	place *list.Element
}

type freedAddress struct {
	index uint32
	at    time.Time
}

var (
	errNamesBusy     = errors.New("all names that can be remembered have open connections")
	errNamesTooFast  = errors.New("too many names were looked up in too short a time")
	errNameForgotten = errors.New("the address belongs to no name (any more)")
)

func newNameTable(limit int, now func() time.Time) *nameTable {
	return &nameTable{
		max: limit, pool: maxPoolNames, now: now, next: 1,
		byName: map[string]*named{}, byPool: map[uint32]*named{}, byReal: map[netip.Addr][]*named{}, used: list.New(),
	}
}

// addresses gives a name its addresses, of both families, the same as long as it
// is remembered.
func (t *nameTable) addresses(name string) (v4, v6 netip.Addr, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.get(name)
	if err != nil {
		return v4, v6, err
	}
	v4, v6 = namedAddress(n.index)
	return v4, v6, nil
}

// remember notes real addresses of a name that the guest was told.
func (t *nameTable) remember(name string, addrs []netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.get(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		t.byReal[a] = append([]*named{n}, without(t.byReal[a], n)...)
		n.real = append([]netip.Addr{a}, without(n.real, a)...)
	}
	for len(n.real) > maxRealAddresses {
		last := len(n.real) - 1
		t.unlink(n.real[last], n)
		n.real = n.real[:last]
	}
	return nil
}

// take returns the names by which the guest may have come to an address, the last
// looked up first, and holds them until release. It is an error if the address
// is of the pool and stands for no name.
func (t *nameTable) take(a netip.Addr) ([]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	found := t.byReal[a]
	if i, ok := namedIndex(a); ok {
		n := t.byPool[i]
		if n == nil {
			return nil, fmt.Errorf("%s: %w", a, errNameForgotten)
		}
		found = []*named{n}
	}
	var names []string
	for _, n := range found {
		n.flows++
		t.used.MoveToFront(n.place)
		names = append(names, n.name)
	}
	return names, nil
}

// release lets go of what take returned.
func (t *nameTable) release(names []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range names {
		if n := t.byName[name]; n != nil {
			n.flows--
		}
	}
}

// name is the one that an address stands for, for reverse lookups.
func (t *nameTable) name(a netip.Addr) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i, ok := namedIndex(a); ok {
		if n := t.byPool[i]; n != nil {
			return n.name, true
		}
		return "", false
	}
	if found := t.byReal[a]; len(found) > 0 {
		return found[0].name, true
	}
	return "", false
}

func (t *nameTable) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byName)
}

func (t *nameTable) get(name string) (*named, error) {
	if n := t.byName[name]; n != nil {
		t.used.MoveToFront(n.place)
		return n, nil
	}
	if len(t.byName) >= t.max {
		if err := t.forgetOne(); err != nil {
			return nil, err
		}
	}
	index, err := t.freeAddress()
	if err != nil {
		return nil, err
	}
	n := &named{name: name, index: index}
	n.place = t.used.PushFront(n)
	t.byName[name], t.byPool[index] = n, n
	return n, nil
}

func (t *nameTable) forgetOne() error {
	for e := t.used.Back(); e != nil; e = e.Prev() {
		n := e.Value.(*named)
		if n.flows > 0 {
			continue
		}
		t.used.Remove(e)
		delete(t.byName, n.name)
		delete(t.byPool, n.index)
		for _, a := range n.real {
			t.unlink(a, n)
		}
		t.freed.PushBack(freedAddress{n.index, t.now()})
		return nil
	}
	return errNamesBusy
}

func (t *nameTable) freeAddress() (uint32, error) {
	if t.next <= t.pool {
		t.next++
		return t.next - 1, nil
	}
	e := t.freed.Front()
	if e == nil || t.now().Sub(e.Value.(freedAddress).at) < quarantine {
		return 0, errNamesTooFast
	}
	return t.freed.Remove(e).(freedAddress).index, nil
}

func (t *nameTable) unlink(a netip.Addr, n *named) {
	if rest := without(t.byReal[a], n); len(rest) > 0 {
		t.byReal[a] = rest
	} else {
		delete(t.byReal, a)
	}
}

func without[T comparable](list []T, v T) []T {
	return slices.DeleteFunc(slices.Clone(list), func(x T) bool { return x == v })
}

// canonicalName is a name as rules are matched against, or "" if it is none.
func canonicalName(s string) string {
	h, err := policy.ParseHost(s)
	if err != nil || h.IsAddr() {
		return ""
	}
	return h.String()
}
