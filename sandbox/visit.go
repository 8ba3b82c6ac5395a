package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// Bounds of what attached programs may ask of one session's holder.
const (
	maxVisitors    = 32  // programs at once
	maxRefusals    = 8   // programs at once that are told that there are too many
	maxRequests    = 256 // requests of one program at once
	greetTimeout   = 5 * time.Second
	acceptPause    = time.Second      // after a connection that could not be taken
	requestTimeout = 10 * time.Second // from the opening of a stream to its request
	replyTimeout   = 5 * time.Second  // for a program to read a reply when the session ends
)

// socketName is the socket in a session's run directory at which programs attach.
const socketName = "attach"

// register opens the socket at which other programs of the user attach, until the session ends.
func (s *Session) register() error {
	path := filepath.Join(s.dir.path, socketName)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		return fmt.Errorf("registering the session: %w", err)
	}
	if !s.work(func() { s.receive(l) }) {
		l.Close()
		return s.closedError()
	}
	return nil
}

// receive takes visitors until the session ends.
func (s *Session) receive(l *net.UnixListener) {
	stop := context.AfterFunc(s.life, func() { l.Close() })
	defer stop()
	defer l.Close()
	slots, refusals := make(chan struct{}, maxVisitors), make(chan struct{}, maxRefusals)
	for {
		conn, err := l.AcceptUnix()
		switch {
		case s.life.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return
		case err != nil:
			// Such as too many open files: that passes.
			s.log.Warn("a program could not attach", "err", err)
			select {
			case <-time.After(acceptPause):
			case <-s.life.Done():
			}
			continue
		}
		busy, serve := slots, s.visit
		select {
		case slots <- struct{}{}:
		default:
			busy, serve = refusals, s.refuse
			select {
			case refusals <- struct{}{}:
			default:
				conn.Close()
				continue
			}
		}
		if !s.work(func() {
			defer func() { <-busy }()
			serve(conn)
		}) {
			conn.Close()
		}
	}
}

// refuse tells one program that there are too many.
func (s *Session) refuse(conn *net.UnixConn) {
	_, _ = s.greet(conn, fmt.Sprintf("%d programs are attached to it already", maxVisitors))
	conn.Close()
}

// visit serves one program until it goes or the session ends.
func (s *Session) visit(conn *net.UnixConn) {
	mux, err := s.greet(conn, "")
	if err != nil {
		conn.Close()
		s.log.Debug("a program did not attach", "err", err)
		return
	}
	defer mux.Close()
	v := &visitor{session: s, procs: map[uint64]*Process{}}
	var leave context.CancelFunc
	v.ctx, leave = context.WithCancel(s.life)
	slots := make(chan struct{}, maxRequests)
	var requests sync.WaitGroup
	for {
		st, err := mux.AcceptStreamWithContext(s.life)
		if err != nil {
			break
		}
		slots <- struct{}{} // streams that are not accepted yet are bounded by the multiplexer
		requests.Go(func() {
			defer func() { <-slots }()
			v.serve(st)
		})
	}
	leave() // ends what the program started
	requests.Wait()
}

// greet checks who is there and leads it through the handshake. refusal is what it is told
// instead of being let in.
func (s *Session) greet(conn *net.UnixConn, refusal string) (*yamux.Session, error) {
	if err := conn.SetDeadline(time.Now().Add(greetTimeout)); err != nil {
		return nil, err
	}
	// The end of the session does not wait for one that says nothing.
	stop := context.AfterFunc(s.life, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	uid, err := peerUID(conn)
	if err != nil {
		return nil, fmt.Errorf("asking who attaches: %w", err)
	}
	if uid != os.Geteuid() && uid != 0 {
		return nil, fmt.Errorf("user %d may not attach to the session of another", uid)
	}
	var hello wire.Visit
	if err := wire.WriteHandshake(conn, wire.Announce{Version: wire.Version, Session: s.id}); err != nil {
		return nil, err
	}
	if err := wire.ReadHandshake(conn, &hello); err != nil {
		return nil, err
	}
	if hello.Version != wire.Version {
		refusal = fmt.Sprintf("its holder speaks protocol version %d and this program %d: use the same version of both", wire.Version, hello.Version)
	}
	if err := wire.WriteHandshake(conn, wire.Ready{Err: refusal}); err != nil {
		return nil, err
	}
	if refusal != "" {
		return nil, errors.New(refusal)
	}
	if !stop() {
		return nil, s.closedError()
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return wire.Server(conn)
}

// visitor is one attached program.
type visitor struct {
	session *Session
	ctx     context.Context // ends with the program's connection and with the session

	mu    sync.Mutex
	procs map[uint64]*Process // that it started or rejoined
}

// serve answers one stream. Like the guest, it closes the stream after the program did, which
// may not have read all yet.
func (v *visitor) serve(st *yamux.Stream) {
	defer v.close(st)
	var req wire.Request
	_ = st.SetReadDeadline(time.Now().Add(requestTimeout))
	if err := wire.ReadMessage(st, &req); err != nil {
		return
	}
	_ = st.SetReadDeadline(time.Time{})
	if req.Op == wire.OpWatch {
		v.watch(st)
		return
	}
	defer context.AfterFunc(v.ctx, func() { _ = st.SetDeadline(time.Unix(1, 0)) })()
	closed := discard(st, req.Op)
	if err := v.answer(st, &req, closed); err != nil {
		werr := wireError(err)
		if werr == nil {
			return // the session ends, and says so itself
		}
		_ = wire.SendReply(st, nil, werr)
	}
	if closed != nil {
		<-closed
	}
}

// close closes a stream, unless the session ends: the program then finds its connection closed,
// and not a stream that ends before its time.
func (v *visitor) close(st *yamux.Stream) {
	if v.session.life.Err() == nil {
		st.Close()
	}
}

// discard reads a stream to its end where nothing but acknowledgements come, and tells when
// the program has closed it. Nil for what is passed on.
func discard(st *yamux.Stream, op wire.Op) <-chan struct{} {
	if passedOn[op] {
		return nil
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		for {
			if _, err := wire.ReadAck(st); err != nil {
				return
			}
		}
	}()
	return closed
}

func (v *visitor) answer(st *yamux.Stream, req *wire.Request, closed <-chan struct{}) error {
	switch req.Op {
	case wire.OpStart:
		return v.start(st, req, closed)
	case wire.OpAttach:
		return v.rejoin(st, req, closed)
	case wire.OpDetach:
		return v.detach(st, req)
	case wire.OpDescribe:
		return v.describe(st, req)
	case wire.OpEnd:
		return v.end(st, req)
	case wire.OpSSH:
		return v.ssh(st, req, closed)
	case wire.OpSnapshot:
		return v.snapshot(st, req)
	}
	if !passedOn[req.Op] {
		return fmt.Errorf("%q is not for programs that attach: %w", req.Op, ErrInvalid)
	}
	return v.pass(st, req)
}

// watch answers when the session ends. The answer is not cut short by that end.
func (v *visitor) watch(st *yamux.Stream) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = st.Read(make([]byte, 1))
	}()
	select {
	case <-v.session.life.Done():
		_ = st.SetDeadline(time.Now().Add(replyTimeout))
		v.session.mu.Lock()
		reason := v.session.reason
		v.session.mu.Unlock()
		_ = wire.SendReply(st, wire.Watched{Reason: reason}, nil)
	case <-v.ctx.Done():
		_ = st.SetDeadline(time.Unix(1, 0))
	case <-gone:
	}
	<-gone
}

// description answers wire.OpDescribe. Both sides are programs of the host.
type description struct {
	Info    Info
	Console string
	Denials []Denial
}

func (v *visitor) describe(st *yamux.Stream, req *wire.Request) error {
	var m wire.Describe
	if err := wire.Unmarshal(req.Body, &m); err != nil {
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	s := v.session
	d := description{Info: s.Info()}
	if m.Console > 0 {
		d.Console = s.vm.ConsoleTail(min(m.Console, 1000))
	}
	if m.Denials {
		d.Denials = latest(s.Denials(time.Time{}), maxDescribed)
	}
	return wire.SendReply(st, d, nil)
}

// maxDescribed bounds the texts of the refusals in a description, which is one message. The guest
// makes them as long as paths are.
const maxDescribed = wire.MaxMessage / 2

// latest are the last of some refusals, whose texts are most bytes together.
func latest(list []Denial, most int) []Denial {
	for i := len(list) - 1; i >= 0; i-- {
		d := &list[i]
		const rest = 128 // of the encoding
		if most -= len(d.Kind) + len(d.What) + len(d.Path) + len(d.Rule) + len(d.Reason) + len(d.Remedy) + rest; most < 0 {
			return list[i+1:]
		}
	}
	return list
}

// ssh opens an SSH server for as long as the stream is open.
func (v *visitor) ssh(st *yamux.Stream, req *wire.Request, closed <-chan struct{}) error {
	var m wire.OpenSSH
	if err := wire.Unmarshal(req.Body, &m); err != nil {
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	server, err := v.session.SSH(v.ctx, SSHOptions{Forward: m.Forward})
	if err != nil {
		return err
	}
	defer server.Close()
	if err := wire.SendReply(st, wire.SSHServer{Addr: server.Addr, ConfigFile: server.ConfigFile}, nil); err != nil {
		return err
	}
	select {
	case <-closed:
	case <-v.ctx.Done():
	}
	return nil
}

func (v *visitor) snapshot(st *yamux.Stream, req *wire.Request) error {
	var m wire.TakeSnapshot
	if err := wire.Unmarshal(req.Body, &m); err != nil {
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	taken, err := v.session.Snapshot(v.ctx, m.Name, SnapshotOptions{Disk: m.Disk})
	if err != nil {
		return err
	}
	return wire.SendReply(st, taken, nil)
}

func (v *visitor) end(st *yamux.Stream, req *wire.Request) error {
	var m wire.EndSession
	if err := wire.Unmarshal(req.Body, &m); err != nil {
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	if m.Reason == "" {
		m.Reason = "it was closed by another program"
	}
	err := wire.SendReply(st, nil, nil)
	// The end waits for this goroutine.
	go v.session.end(printable(m.Reason))
	return err
}

// wireError is an error of a Session in the terms of the protocol; nil when the session or the
// program has gone.
func wireError(err error) *wire.Error {
	var file *FileError
	code := wire.CodeInvalid
	switch {
	case errors.Is(err, ErrClosed), errors.Is(err, context.Canceled):
		return nil
	case errors.As(err, &file):
		if code = wire.CodeErrno; file.Op == OpStarting {
			code = wire.CodeSpawn
		}
		return &wire.Error{Code: code, Errno: file.Errno, Path: file.Path, Msg: file.Msg}
	case errors.Is(err, ErrNoJob):
		return &wire.Error{Code: wire.CodeNoJob, Msg: bare(err, ErrNoJob)}
	case errors.Is(err, ErrLimit):
		return &wire.Error{Code: wire.CodeLimit, Msg: bare(err, ErrLimit)}
	case errors.Is(err, ErrBusy):
		return &wire.Error{Code: wire.CodeBusy, Msg: bare(err, ErrBusy)}
	}
	return &wire.Error{Code: code, Msg: bare(err, ErrInvalid)}
}
