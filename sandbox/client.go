package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// client is the half of a session that speaks to its guest: the same for the process that
// holds the machine (Session) and for one that is attached to it (Attached).
type client struct {
	id     string
	log    *slog.Logger
	remote bool // another process holds the session
	// terms are what requests are completed with, and note a circumstance on the host that
	// explains what fails in the guest, or "".
	terms func() terms
	note  func() string

	life    context.Context // ends when the session closes
	cancel  context.CancelFunc
	workers sync.WaitGroup // goroutines that end with life

	mu       sync.Mutex
	mux      *yamux.Session // nil while the connection is lost
	muxReady chan struct{}  // closed when mux is set
	reason   string         // why it closed
	lastUsed time.Time
	active   int // calls under way
	running  int // attached processes
}

// terms are a session's defaults for what a request leaves open.
type terms struct {
	dir, user string
	env       []map[string]string // a later one wins
}

// init makes the client of a session whose life does not end with ctx.
func (s *client) init(ctx context.Context, id string, log *slog.Logger) {
	s.id, s.log, s.lastUsed, s.muxReady = id, log, time.Now(), make(chan struct{})
	s.life, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
}

func (s *client) setMux(mux *yamux.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mux = mux
	close(s.muxReady)
}

// drop forgets a connection that broke, so that the next one is waited for.
func (s *client) drop(mux *yamux.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mux == mux {
		s.mux, s.muxReady = nil, make(chan struct{})
	}
}

// open opens a stream to the guest, waiting for the connection while it is lost.
func (s *client) open(ctx context.Context) (*yamux.Stream, error) {
	for {
		s.mu.Lock()
		mux, ready := s.mux, s.muxReady
		s.mu.Unlock()
		if mux == nil {
			select {
			case <-ready:
				continue
			case <-s.life.Done():
				return nil, s.closedError()
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		stream, err := mux.OpenStream()
		switch {
		case err == nil:
			return stream, nil
		case s.life.Err() != nil:
			return nil, s.closedError()
		case !mux.IsClosed():
			return nil, fmt.Errorf("opening a stream to the guest: %w", err)
		}
		s.drop(mux)
	}
}

func (s *client) closedError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closedErrorLocked()
}

func (s *client) closedErrorLocked() error {
	return fmt.Errorf("session %s has ended: %s: %w", s.id, s.reason, ErrClosed)
}

// request opens a stream, sends a request and reads the first reply into reply,
// which may be nil. When ctx ends, request returns at once, whatever the guest
// does, and the stream closes.
func (s *client) request(ctx context.Context, op wire.Op, path string, body, reply any) (*stream, error) {
	var st *stream
	var err error
	answered := make(chan struct{})
	if !s.work(func() {
		defer close(answered)
		st, err = s.exchange(ctx, op, path, body, reply)
	}) {
		return nil, s.closedError()
	}
	select {
	case <-answered:
		return st, err
	case <-ctx.Done():
		if s.life.Err() != nil {
			return nil, s.closedError()
		}
		return nil, fmt.Errorf("%s: %w", op, context.Cause(ctx))
	}
}

func (s *client) exchange(ctx context.Context, op wire.Op, path string, body, reply any) (*stream, error) {
	conn, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	st := &stream{Stream: conn, session: s, ctx: ctx, op: op, path: path, gone: make(chan struct{})}
	st.stop = context.AfterFunc(ctx, st.abort)
	if err := wire.SendRequest(st, op, body); err != nil {
		st.Close()
		if errors.Is(err, wire.ErrTooLarge) {
			return nil, fmt.Errorf("%s: %w: %w", op, err, ErrInvalid)
		}
		return nil, st.fail(err)
	}
	if err := wire.ReadReply(st, reply); err != nil {
		st.Close()
		return nil, st.fail(err)
	}
	return st, nil
}

// use counts a call; the returned function ends it.
func (s *client) use() func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active++
	s.lastUsed = time.Now()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.active--
		s.lastUsed = time.Now()
	}
}

// call makes a request that has one reply.
func (s *client) call(ctx context.Context, op wire.Op, path string, body, reply any) error {
	defer s.use()()
	st, err := s.request(ctx, op, path, body, reply)
	if err != nil {
		return err
	}
	return st.Close()
}

// stream is an open request.
type stream struct {
	*yamux.Stream
	session *client
	ctx     context.Context
	op      wire.Op
	path    string
	stop    func() bool
	leave   sync.Once
	gone    chan struct{} // closed by abort
}

func (st *stream) Close() error {
	st.stop()
	return st.Stream.Close()
}

// Write is done, or left to itself, at the latest when the stream is aborted: a
// guest that reads nothing would hold it until the connection's write timeout.
// Who gets an error must not use p again.
func (st *stream) Write(p []byte) (n int, err error) {
	written := make(chan struct{})
	if !st.session.work(func() {
		defer close(written)
		n, err = st.Stream.Write(p)
	}) {
		return 0, net.ErrClosed
	}
	select {
	case <-written:
		return n, err
	case <-st.gone:
		return 0, net.ErrClosed
	}
}

// abort ends the stream and whoever waits in it. Close alone ends one direction
// and would leave a reader to a guest that says nothing any more.
func (st *stream) abort() {
	st.leave.Do(func() { close(st.gone) })
	_ = st.SetDeadline(time.Unix(1, 0))
	// It sends a frame, and the guest may read none.
	st.session.work(func() { _ = st.Stream.Close() })
}

// fail says what an error on the stream means.
func (st *stream) fail(err error) error {
	var werr *wire.Error
	switch {
	case st.session.life.Err() != nil:
		return st.session.closedError()
	case st.ctx.Err() != nil: // what the guest says then is a consequence
		return fmt.Errorf("%s: %w", st.op, context.Cause(st.ctx))
	case errors.As(err, &werr):
		return st.guestError(werr)
	}
	// The death of the machine shows here first; its reason a moment later.
	timer := time.NewTimer(deathSlack)
	defer timer.Stop()
	select {
	case <-st.session.life.Done():
		return st.session.closedError()
	case <-st.ctx.Done():
	case <-timer.C:
	}
	return fmt.Errorf("%s: the connection to the guest was lost: %w", st.op, err)
}

// deathSlack is how long a broken stream waits for the session's end as its reason.
const deathSlack = 3 * time.Second

func (st *stream) failUnlessEOF(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return st.fail(err)
}

// OpStarting is FileError.Op of a command that could not be started.
const OpStarting = "starting"

// guestError turns what the guest reports into this package's errors.
func (st *stream) guestError(e *wire.Error) error {
	path, msg, errno := printable(e.Path), printable(e.Msg), printable(e.Errno)
	if path == "" {
		path = st.path
	}
	switch e.Code {
	case wire.CodeInvalid:
		return fmt.Errorf("%s: %s: %w", st.op, msg, ErrInvalid)
	case wire.CodeNoJob:
		return fmt.Errorf("%s: %w", msg, ErrNoJob)
	case wire.CodeChanged:
		return fmt.Errorf("%s: %s: %w", path, msg, ErrChanged)
	case wire.CodeLimit:
		return fmt.Errorf("%s: %s: %w", st.op, msg, ErrLimit)
	case wire.CodeBusy:
		return fmt.Errorf("%s: %w", msg, ErrBusy)
	case wire.CodeSpawn:
		return &FileError{Op: OpStarting, Path: path, Errno: errno, Msg: msg}
	}
	if errno == "EIO" || errno == "ENOSPC" || errno == "EROFS" {
		if note := st.session.note(); note != "" {
			msg += " (" + note + ")"
		}
	}
	return &FileError{Op: string(st.op), Path: path, Errno: errno, Msg: msg}
}
