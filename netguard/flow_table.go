package netguard

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// openFlow is a Flow and what the guard keeps about it.
type openFlow struct {
	Flow
	names []string // that have led the guest to Dst, the one last looked up first
	began time.Time

	mu      sync.Mutex
	protos  []policy.Protocol // once its first bytes have told; nil: any
	conn    *guestConn        // nil until the handshake is done
	cancel  context.CancelFunc
	ctx     context.Context // done when the flow has to end
	aborted bool
	served  bool // nothing is left to do but to let the guest read the rest
}

// connected hands the flow its connection; false if it was aborted meanwhile.
func (f *openFlow) connected(ctx context.Context, c *guestConn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.aborted {
		return false
	}
	f.conn, f.Conn = c, c
	f.ctx, f.cancel = context.WithCancel(ctx)
	return true
}

// abort resets the connection and ends the context of whoever serves it.
func (f *openFlow) abort() {
	f.mu.Lock()
	conn, cancel := f.conn, f.cancel
	f.aborted = true
	f.mu.Unlock()
	if conn != nil {
		cancel()
		conn.abort()
	}
}

// hosts are what a policy can judge the flow by: its name, those that it may
// have as long as that is open, or the address.
func (f *openFlow) hosts() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.Name == "" && len(f.names) > 0 {
		return f.names
	}
	return []string{f.Host()}
}

// identify settles the name, by what the client says where several are possible.
func (f *openFlow) identify(said string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case len(f.names) == 0:
	case slices.Contains(f.names, said):
		f.Name = said
	default:
		f.Name = f.names[0]
	}
}

// meant sets what the flow is to: one of its names, or its address.
func (f *openFlow) meant(host string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.Name = host; host == f.Dst.Addr().String() {
		f.Name = ""
	}
}

func (f *openFlow) setProtocols(p ...policy.Protocol) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.protos = p
}

func (f *openFlow) protocols() []policy.Protocol {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.protos
}

// flowTable bounds the flows and gives them numbers.
type flowTable struct {
	max int

	mu    sync.Mutex
	last  uint64
	flows map[*openFlow]struct{}
}

func newFlowTable(limit int) *flowTable {
	return &flowTable{max: limit, flows: map[*openFlow]struct{}{}}
}

// add makes a flow, or returns nil when the table is full. One that is served and
// waits for the guest to read its end makes room.
func (t *flowTable) add(dst netip.AddrPort, names []string) *openFlow {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.flows) >= t.max {
		oldest := t.oldestServed()
		if oldest == nil {
			return nil
		}
		delete(t.flows, oldest)
		defer oldest.abort()
	}
	t.last++
	f := &openFlow{Flow: Flow{ID: t.last, Dst: dst}, names: names, began: time.Now()}
	if len(names) == 1 {
		f.Name = names[0]
	}
	t.flows[f] = struct{}{}
	return f
}

func (t *flowTable) oldestServed() *openFlow {
	var oldest *openFlow
	for f := range t.flows {
		f.mu.Lock()
		served := f.served
		f.mu.Unlock()
		if served && (oldest == nil || f.ID < oldest.ID) {
			oldest = f
		}
	}
	return oldest
}

func (t *flowTable) remove(f *openFlow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.flows, f)
}

// open are the flows that are not served yet.
func (t *flowTable) open() []*openFlow {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*openFlow
	for f := range t.flows {
		f.mu.Lock()
		if !f.served {
			out = append(out, f)
		}
		f.mu.Unlock()
	}
	return out
}

func (t *flowTable) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.flows)
}
