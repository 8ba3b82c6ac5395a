package vfs

import (
	"context"
	"encoding/binary"
	"sync"
	"syscall"
	"time"

	"github.com/gondolin-go/gondolin/guest/fsport"
)

// notifier tells the guest's kernel what changed on the host, so that it asks
// before its timeouts end. Nothing depends on it: what it drops is found a moment
// later.
type notifier struct {
	c       *conn
	cancel  context.CancelFunc
	running sync.WaitGroup
	wake    chan struct{}

	mu      sync.Mutex
	pending map[event]struct{}
}

// event is a change in a mount.
type event struct {
	m *mount
	Changed
}

const (
	// maxEvents is how many changes wait to be sent; more are dropped.
	maxEvents = 4096
	// gather is how long changes are gathered: programs change a file many times over.
	gather = 20 * time.Millisecond
)

func startNotifier(c *conn) *notifier {
	ctx, cancel := context.WithCancel(c.ctx)
	n := &notifier{c: c, cancel: cancel, wake: make(chan struct{}, 1), pending: map[event]struct{}{}}
	n.running.Add(1)
	go func() {
		defer n.running.Done()
		n.send(ctx)
	}()
	for _, m := range c.s.mounts {
		w, ok := m.Root.(Watcher)
		if !ok {
			continue
		}
		n.running.Add(1)
		go func() {
			defer n.running.Done()
			c.guard(func() {
				defer m.complete.Store(false)
				if err := w.Watch(ctx, func(ch Changed) { n.add(event{m, ch}) }); err != nil && ctx.Err() == nil {
					c.s.log.Warn("changes on the host reach the guest after its timeouts only", "mount", m.Name, "error", err)
				}
			})
		}()
	}
	return n
}

// stop ends the notifier and waits for its goroutines.
func (n *notifier) stop() {
	n.cancel()
	n.running.Wait()
}

func (n *notifier) add(e event) {
	if e.Complete || e.Missed {
		e.m.complete.Store(e.Complete)
		return
	}
	n.mu.Lock()
	if len(n.pending) < maxEvents {
		n.pending[e] = struct{}{}
	} else {
		e.m.complete.Store(false)
	}
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *notifier) send(ctx context.Context) {
	for {
		full := false
		select {
		case <-ctx.Done():
			return
		case <-n.c.raw.t.crowded:
			full = true
		case <-n.wake:
		}
		wait := time.NewTimer(gather)
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case <-wait.C:
		}
		if full {
			n.thin(ctx)
		}
		n.mu.Lock()
		batch := n.pending
		n.pending = map[event]struct{}{}
		n.mu.Unlock()
		for e := range batch {
			n.c.guard(func() { n.tell(ctx, e) })
		}
	}
}

// tell sends what e makes stale: what differs from that which the kernel last heard.
// The guest's own changes come here too, and are no news.
func (n *notifier) tell(ctx context.Context, e event) {
	t := n.c.raw.t
	if e.Ino != 0 {
		n.attr(ctx, e.m, e.Ino)
	}
	if e.Name == "" {
		return
	}
	id, _ := t.find(e.m, e.Dir)
	if id == 0 {
		return
	}
	n.attr(ctx, e.m, e.Dir)
	if n.moved(ctx, id, e) {
		n.frame(invalEntry(id, e.Name))
	}
}

// attr has the kernel ask for attributes that it believes and that have changed.
func (n *notifier) attr(ctx context.Context, m *mount, ino uint64) {
	t := n.c.raw.t
	id, _ := t.find(m, ino)
	if id == 0 {
		return
	}
	e, err := t.use(id)
	if err != nil {
		return
	}
	defer t.done(e)
	if a, err := e.node.Attr(ctx); err != nil || t.changed(e, a) {
		n.frame(invalInode(id))
	}
}

// moved reports whether the name in e leads elsewhere than the kernel believes. A
// directory that is still there is spared anyway: to invalidate its name would take away
// what is mounted there and the working directories of processes.
func (n *notifier) moved(ctx context.Context, dirID uint64, e event) bool {
	t := n.c.raw.t
	dir, err := t.use(dirID)
	if err != nil {
		return false
	}
	defer t.done(dir)
	believed := t.namedBy(hint{dirID, e.Name})
	node, err := dir.node.Lookup(ctx, e.Name)
	if err != nil {
		return believed != 0 || Errno(err) != syscall.ENOENT
	}
	defer node.Release()
	a, err := node.Attr(ctx)
	return err != nil || a.Ino != believed
}

// thin asks the kernel to forget some files, since the table fills up.
func (n *notifier) thin(ctx context.Context) {
	for _, h := range n.c.raw.t.thin() {
		if ctx.Err() != nil {
			return
		}
		n.frame(invalEntry(h.parent, h.name))
	}
}

func (n *notifier) frame(b []byte) {
	if err := n.c.write(b); err != nil {
		n.c.fail(err)
	}
}

// invalInode makes the kernel ask for a node's attributes before it uses its
// cache again. The content goes only if they show a change: offset -1 spares it.
func invalInode(id uint64) []byte {
	b := dataReply(make(frame, inHeader), make([]byte, 24))
	putNotify(b, fsport.NoteInvalInode)
	binary.LittleEndian.PutUint64(b[outHeader:], id)
	binary.LittleEndian.PutUint64(b[outHeader+8:], ^uint64(0))
	return b
}

func invalEntry(parent uint64, name string) []byte {
	b := dataReply(make(frame, inHeader), append(make([]byte, 16, 16+len(name)+1), name+"\x00"...))
	putNotify(b, fsport.NoteInvalEntry)
	binary.LittleEndian.PutUint64(b[outHeader:], parent)
	binary.LittleEndian.PutUint32(b[outHeader+8:], uint32(len(name)))
	return b
}

// putNotify makes a notification of a frame: its code stands in place of the error.
func putNotify(b []byte, code syscall.Errno) { binary.LittleEndian.PutUint32(b[4:], uint32(code)) }
