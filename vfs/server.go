package vfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"
)

// Mount is one directory of the file port's root.
type Mount struct {
	// Name is the directory's name, unique among the mounts and a valid file name. It
	// is not the guest's path: the guest binds the directory there.
	Name string
	// Root is the provider's root directory. It stays the caller's: the server calls
	// all but Release on it.
	Root Node
	// Private says that nothing but the guest changes what is below Root, so that the
	// guest's kernel may believe what it knows for an hour instead of a second.
	Private bool
	// Flush has File.Flush called at each close(2) of a file that was open for writing: a
	// round trip that a provider whose writes report their errors themselves does not need.
	Flush bool
	// Timeout is how long the guest may believe attributes and names, NegativeTimeout
	// how long that a name does not exist. 0 means one second and half a second (an hour
	// each with Private), less than 0 that it must ask each time.
	Timeout, NegativeTimeout time.Duration
}

// Options shape a Server; only Mounts is needed.
type Options struct {
	Mounts []Mount
	// Logger gets what an operator should know: panics of providers, a guest that breaks
	// the protocol. nil discards.
	Logger *slog.Logger

	// Bounds on what a guest can make the host hold; 0 means the default in brackets.
	MaxNodes    int // files that the guest's kernel knows, see package doc (131,072)
	MaxFiles    int // open files (16,384)
	MaxDirs     int // open directories (1,024)
	MaxRequests int // requests under way, waiting ones included (1,024)
	MaxWorkers  int // requests that run at the same time (64)
	MaxBytes    int // bytes of the requests under way and their replies (32 MiB; at least 4 MiB)

	// WriteTimeout is how long a guest may leave a reply unread before its connection
	// ends (20 s). It needs a connection that has SetWriteDeadline.
	WriteTimeout time.Duration
	// Ready is called each time that the guest's kernel has begun a FUSE connection: its
	// mounts can be bound. It must not block.
	Ready func()
	// Resume says that the first connection goes to a guest that had one before with
	// another Server; later ones are always taken for that.
	Resume bool
}

// Server serves the files of one guest.
type Server struct {
	opts   Options
	log    *slog.Logger
	mounts []*mount

	busy   atomic.Bool // a Serve runs
	resume atomic.Bool // the guest had a connection before
}

// mount is a Mount with its defaults filled in.
type mount struct {
	Mount
	index    uint64      // from 1; 0 is the root
	complete atomic.Bool // the provider tells of every change
}

// watchedTimeout is how long the guest may believe what it knows of a mount whose
// provider tells of every change. It is not for ever: an answer that was under way
// when a change was told can be out of date.
const watchedTimeout = 10 * time.Second

// timeout is Timeout, and negative NegativeTimeout, as they are now.
func (m *mount) timeout() time.Duration {
	if m.complete.Load() && m.Timeout > 0 {
		return max(m.Timeout, watchedTimeout)
	}
	return m.Timeout
}

// attrTimeout is how long the guest may believe a.
func (m *mount) attrTimeout(a Attr) time.Duration {
	if a.Nlink > 1 && !a.Mode.IsDir() {
		return m.Timeout // it may change by a name in a directory that nobody watches
	}
	return m.timeout()
}

func (m *mount) negative() time.Duration {
	if m.complete.Load() && m.NegativeTimeout > 0 {
		return max(m.NegativeTimeout, watchedTimeout)
	}
	return m.NegativeTimeout
}

// maxMounts is how many mounts have inode numbers of their own.
const maxMounts = 255

// New checks the options and makes a Server. It holds nothing until Serve.
func New(o Options) (*Server, error) {
	s := &Server{log: o.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var errs []error
	if len(o.Mounts) > maxMounts {
		errs = append(errs, fmt.Errorf("%d mounts, and %d are possible", len(o.Mounts), maxMounts))
	}
	seen := map[string]bool{}
	for i, m := range o.Mounts {
		switch {
		case !validName([]byte(m.Name)):
			errs = append(errs, fmt.Errorf("mount %d: %q is no file name", i, m.Name))
		case seen[m.Name]:
			errs = append(errs, fmt.Errorf("mount %d: the name %q is taken by another", i, m.Name))
		case m.Root == nil:
			errs = append(errs, fmt.Errorf("mount %q has no root", m.Name))
		}
		seen[m.Name] = true
		long, short := time.Second, time.Second/2
		if m.Private {
			long, short = time.Hour, time.Hour
		}
		m.Timeout = orTimeout(m.Timeout, long)
		m.NegativeTimeout = orTimeout(m.NegativeTimeout, short)
		s.mounts = append(s.mounts, &mount{Mount: m, index: uint64(i + 1)})
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("file server: %w", err)
	}
	o.MaxNodes = orDefault(o.MaxNodes, 128<<10)
	o.MaxFiles = orDefault(o.MaxFiles, 16<<10)
	o.MaxDirs = orDefault(o.MaxDirs, 1<<10)
	o.MaxRequests = orDefault(o.MaxRequests, 1<<10)
	o.MaxWorkers = orDefault(o.MaxWorkers, 64)
	o.MaxBytes = max(orDefault(o.MaxBytes, 32<<20), 4<<20)
	if o.WriteTimeout <= 0 {
		o.WriteTimeout = 20 * time.Second
	}
	s.opts = o
	s.resume.Store(o.Resume)
	return s, nil
}

func orDefault(n, d int) int {
	if n <= 0 {
		return d
	}
	return n
}

func orTimeout(t, d time.Duration) time.Duration {
	switch {
	case t == 0:
		return d
	case t < 0:
		return 0
	}
	return t
}

// validName reports whether name can be a file's: what a Node is promised.
func validName(name []byte) bool {
	n := string(name)
	return n != "" && n != "." && n != ".." && len(n) <= MaxName && !strings.ContainsAny(n, "/\x00")
}

// ErrProtocol: the guest sent what no kernel sends, and its connection ended.
var ErrProtocol = errors.New("breach of the file protocol")

// errBusy: a Server has one guest, and that one connection at a time.
var errBusy = errors.New("this file server has a connection already")

// Serve serves one connection of the file port until it ends, and closes conn.
// It begins with the handshake of package fsport, and waits for the guest's part as
// long as ctx lasts. When it returns, everything that the guest had open is closed, every
// Node but the mounts' roots is released, and no goroutine of the server is left. It may be called again when the guest's port was
// lost and opened again, not while it runs.
//
// The error is nil when the guest's side closed, ctx.Err() when ctx ended, and
// wraps ErrProtocol when the guest broke the protocol.
func (s *Server) Serve(ctx context.Context, conn io.ReadWriteCloser) error {
	if !s.busy.CompareAndSwap(false, true) {
		return errors.Join(errBusy, conn.Close())
	}
	defer s.busy.Store(false)
	return s.serve(ctx, conn)
}
