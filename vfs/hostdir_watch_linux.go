package vfs

import (
	"bytes"
	"container/list"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// hostWatch watches the directories that a guest has looked into.
type hostWatch struct {
	fs    *hostFS
	file  *os.File // the inotify descriptor, in Go's poller
	fd    int
	limit int

	tell func(Changed)

	mu     sync.Mutex
	byWD   map[int]*list.Element
	byKey  map[hostKey]*list.Element
	recent list.List // of watchedDir, latest first
	once   sync.Once // tells of the limit
	ended  bool      // the descriptor is closed or about to be
}

type watchedDir struct {
	wd  int
	key hostKey
	num uint64
}

const hostEvents = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
	unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_EXCL_UNLINK

// Watch reports what host programs change in directories that the guest has looked into, until
// ctx ends. One Watch runs at a time; another fails with EBUSY. Where the host's limit of
// inotify watches or MaxWatches is reached, the longest unused directories are no longer
// watched, and a queue that overflows loses events: the guest's timeouts make up for both.
func (r *HostDirRoot) Watch(ctx context.Context, changed func(Changed)) error {
	f := r.fs
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watching %s: %w", r.path, err)
	}
	w := &hostWatch{
		fs: f, fd: fd, file: os.NewFile(uintptr(fd), "inotify"), limit: f.opts.MaxWatches,
		byWD: map[int]*list.Element{}, byKey: map[hostKey]*list.Element{}, tell: changed,
	}
	if w.limit <= 0 {
		w.limit = hostWatches
	}
	f.mu.Lock()
	busy := f.watch != nil
	if !busy {
		f.watch = w
	}
	f.mu.Unlock()
	if busy {
		w.file.Close()
		return fmt.Errorf("watching %s: %w", r.path, syscall.EBUSY)
	}
	defer w.end()
	stop := context.AfterFunc(ctx, func() { w.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	changed(Changed{Complete: true})
	err = w.read()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return fmt.Errorf("watching %s: %w", r.path, err)
}

// end takes the watch out of use and closes it.
func (w *hostWatch) end() {
	w.fs.mu.Lock()
	w.fs.watch = nil
	w.fs.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.file.Close()
}

// read reports events until reading fails.
func (w *hostWatch) read() error {
	buf := make([]byte, 64<<10)
	seen := map[Changed]bool{}
	for {
		n, err := w.file.Read(buf)
		if err != nil {
			return err
		}
		clear(seen) // a program that writes in small pieces is one change
		for rest := buf[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			wd := int(int32(binary.NativeEndian.Uint32(rest)))
			mask := binary.NativeEndian.Uint32(rest[4:])
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(rest[12:]))
			name := string(bytes.TrimRight(rest[unix.SizeofInotifyEvent:size], "\x00"))
			rest = rest[size:]
			if c, ok := w.change(wd, mask, name); ok && !seen[c] {
				seen[c] = true
				w.tell(c)
			}
		}
	}
}

// change turns an event into what the server should hear, if anything. The server's
// own changes are among them: it knows what it has told its guest.
func (w *hostWatch) change(wd int, mask uint32, name string) (Changed, bool) {
	if mask&unix.IN_Q_OVERFLOW != 0 {
		return Changed{Missed: true}, true
	}
	w.mu.Lock()
	e := w.byWD[wd]
	if e == nil {
		w.mu.Unlock()
		return Changed{}, false
	}
	dir := e.Value.(watchedDir)
	if mask&unix.IN_IGNORED != 0 { // the directory is gone
		w.drop(e)
	}
	w.mu.Unlock()
	switch {
	case mask&(unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_MOVED_TO) != 0:
		return Changed{Dir: dir.num, Name: name}, true
	case mask&(unix.IN_MODIFY|unix.IN_ATTRIB) != 0:
		n := w.node(dir.key, name)
		if n == nil {
			return Changed{}, false
		}
		return Changed{Ino: n.num}, true
	}
	return Changed{}, false
}

// node returns the held node that name in a directory leads to, nil if the guest holds none.
func (w *hostWatch) node(dir hostKey, name string) *hostNode {
	w.fs.mu.Lock()
	d := w.fs.nodes[dir]
	w.fs.mu.Unlock()
	if d == nil || name == "" {
		return d
	}
	dfd, err := d.use()
	if err != nil {
		return nil
	}
	defer d.done()
	st, err := statAt(dfd, name)
	if err != nil {
		return nil
	}
	w.fs.mu.Lock()
	defer w.fs.mu.Unlock()
	return w.fs.nodes[keyOf(&st)]
}

// add watches a directory that is open on dfd, or renews its place in the order.
func (w *hostWatch) add(n *hostNode, dfd int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	if e := w.byKey[n.key]; e != nil {
		w.recent.MoveToFront(e)
		return
	}
	if w.recent.Len() >= w.limit {
		w.unwatch(w.recent.Back())
		w.tell(Changed{Missed: true})
	}
	wd, err := unix.InotifyAddWatch(w.fd, procPath(dfd), hostEvents)
	if err == syscall.ENOSPC && w.recent.Len() > 0 {
		w.limit = w.recent.Len()
		w.unwatch(w.recent.Back())
		w.tell(Changed{Missed: true})
		wd, err = unix.InotifyAddWatch(w.fd, procPath(dfd), hostEvents)
	}
	if err != nil {
		if err == syscall.ENOSPC {
			w.limitReached()
		}
		w.tell(Changed{Missed: true}) // not watched: timeouts
		return
	}
	if e := w.byWD[wd]; e != nil { // the same directory by another identity, as overlays may show
		w.drop(e)
	}
	e := w.recent.PushFront(watchedDir{wd: wd, key: n.key, num: n.num})
	w.byWD[wd], w.byKey[n.key] = e, e
}

func (w *hostWatch) limitReached() {
	w.once.Do(func() {
		w.fs.log.Warn("the host's limit of inotify watches is reached: changes on the host show in the guest only after its caches' timeouts",
			"sysctl", "fs.inotify.max_user_watches")
	})
}

// forget ends the watch of a directory that the guest no longer holds.
func (w *hostWatch) forget(key hostKey) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e := w.byKey[key]; e != nil && !w.ended {
		w.unwatch(e)
	}
}

// unwatch and drop are called with w.mu held.
func (w *hostWatch) unwatch(e *list.Element) {
	// A directory that is gone has no watch any more: that error says nothing new.
	_, _ = unix.InotifyRmWatch(w.fd, uint32(e.Value.(watchedDir).wd))
	w.drop(e)
}

func (w *hostWatch) drop(e *list.Element) {
	d := e.Value.(watchedDir)
	w.recent.Remove(e)
	delete(w.byWD, d.wd)
	delete(w.byKey, d.key)
}

// watchNames has a directory in use watched, if anybody watches.
func (n *hostNode) watchNames() {
	n.fs.mu.Lock()
	w, fd := n.fs.watch, n.fd
	n.fs.mu.Unlock()
	if w != nil {
		w.add(n, fd)
	}
}
