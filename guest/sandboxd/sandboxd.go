//go:build linux

// Package sandboxd is the guest's agent: it answers the host's requests on the
// control port (package wire) by running commands and working on files.
//
// # Ownership
//
// Processes belong to sandboxd, not to a connection. When the host's side of
// the port closes, commands go on, output waits in their spools, and the host
// takes up both after the next handshake. Each stream has one goroutine that
// closes it; each process has one that waits for it and one for each pipe.
//
// # Failure
//
// A request that fails is answered with a wire.Error; the agent itself ends
// only when it cannot serve the session at all, and then the machine powers off
// (package pid1) with the reason on the console.
package sandboxd

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/near"
	"github.com/gondolin-go/gondolin/guest/port"
	"github.com/gondolin-go/gondolin/guest/sandboxfs"
	"github.com/gondolin-go/gondolin/guest/wire"
)

// Main serves the control port until that is impossible.
func Main(ctx context.Context, version string) {
	err := run(ctx, version)
	fmt.Fprintf(os.Stderr, "gondolin: sandboxd: %v\n", err)
	os.Exit(1)
}

type agent struct {
	announce wire.Announce
	readonly bool // the root file system
	settled  bool
	procs    *table
	files    files
	parts    parts

	holding sync.Mutex // of hold and thaw, one after the other
	held    bool       // processes stand still; under holding

	mu    sync.Mutex
	bound []string // where mounts are
}

func run(ctx context.Context, version string) error {
	// Its name for ps; it would be that of /proc/self/exe.
	_ = os.WriteFile("/proc/self/comm", []byte("sandboxd"), 0)
	readonly, warm, err := prepare(ctx)
	if err != nil {
		return err
	}
	a := &agent{readonly: readonly, announce: wire.Announce{Version: wire.Version, Agent: version, Kernel: kernelRelease()}, procs: newTable()}
	if warm {
		a.rehearse(ctx)
	}
	near.Online()
	// A template is saved as soon as this port is open.
	control, err := port.WaitPolled(wire.PortControl)
	if err != nil {
		return err
	}
	for {
		if err := port.Greet(control, a.announce, a.apply); err != nil {
			return err
		}
		if err := a.serve(ctx, control); err != nil {
			return err
		}
	}
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

func (a *agent) apply(h *wire.Hello) error {
	if err := freshen(&h.Freshen); err != nil {
		return err
	}
	if a.settled && h.Session == a.announce.Session {
		return nil
	}
	if a.settled {
		a.procs.door.copies.Add(1)
		// A copy of the machine that was settled: its mounts are served by nobody any more.
		if err := sandboxfs.Detach(a.setBound(nil)); err != nil {
			return err
		}
	}
	if err := settle(h, a.readonly); err != nil {
		return err
	}
	a.settled, a.announce.Session = true, h.Session
	return nil
}

// serve answers requests until the host closes the port.
func (a *agent) serve(ctx context.Context, control io.ReadWriteCloser) error {
	mux, err := wire.Server(control)
	if err != nil {
		return err
	}
	defer mux.Close()
	for {
		stream, err := mux.AcceptStream()
		if err != nil {
			return nil // the port closed: wait for the next host
		}
		go a.answer(ctx, stream)
	}
}

func (a *agent) trust(m *wire.Trust) (any, *wire.Error) {
	if err := setClock(m.UnixNano); err != nil {
		return nil, badRequest("%v", err)
	}
	if err := trust(m, a.readonly, a.procs.trusted.Load() != nil); err != nil {
		return nil, &wire.Error{Code: wire.CodeErrno, Errno: unix.ErrnoName(errnoOf(err)), Msg: err.Error()}
	}
	env := trustEnv(m.Alone)
	a.procs.trusted.Store(&env)
	return nil, nil
}

// mount puts the session's mounts at their paths.
func (a *agent) mount(m *wire.Mounts) (any, *wire.Error) {
	list := make([]sandboxfs.Mount, 0, len(m.Mounts))
	paths := make([]string, 0, len(m.Mounts))
	for _, one := range m.Mounts {
		list = append(list, sandboxfs.Mount(one))
		paths = append(paths, one.Path)
	}
	a.setBound(paths)
	if err := sandboxfs.Bind(list); err != nil {
		return nil, &wire.Error{Code: wire.CodeErrno, Errno: unix.ErrnoName(errnoOf(err)), Msg: err.Error()}
	}
	return nil, nil
}

// setBound notes where mounts are and returns where they were.
func (a *agent) setBound(paths []string) (old []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old, a.bound = a.bound, paths
	return old
}

// errnoError makes the reply for a failed system call on path.
func errnoError(path string, err error) *wire.Error {
	errno := errnoOf(err)
	msg := errno.Error()
	if errno == unix.EIO && !strings.Contains(err.Error(), msg) {
		msg = err.Error()
	}
	return &wire.Error{Code: wire.CodeErrno, Errno: unix.ErrnoName(errno), Path: path, Msg: msg}
}

func badRequest(format string, args ...any) *wire.Error {
	return &wire.Error{Code: wire.CodeInvalid, Msg: fmt.Sprintf(format, args...)}
}

// answer serves one stream.
func (a *agent) answer(ctx context.Context, stream net.Conn) {
	defer func() {
		<-closed(stream) // the host may not have read all yet
		stream.Close()
	}()
	defer func() {
		// A mistake in one request must not take the session along.
		if r := recover(); r != nil {
			fmt.Fprintf(os.Stderr, "gondolin: sandboxd: panic: %v\n%s", r, debug.Stack())
			_ = wire.SendReply(stream, nil, badRequest("the agent failed on this request: %v", r))
		}
	}()
	var req wire.Request
	if err := wire.ReadMessage(stream, &req); err != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	switch req.Op {
	case wire.OpStart:
		serve(stream, &req, func(m *wire.Start) *wire.Error { return a.start(stream, m) })
	case wire.OpAttach:
		serve(stream, &req, func(m *wire.Attach) *wire.Error { return a.attach(stream, m) })
	case wire.OpStdin:
		serve(stream, &req, func(m *wire.Stdin) *wire.Error { return a.stdin(stream, m) })
	case wire.OpSignal:
		call(stream, &req, a.signal)
	case wire.OpResize:
		call(stream, &req, a.resize)
	case wire.OpFreshen:
		serve(stream, &req, func(m *wire.Freshen) *wire.Error {
			if err := freshen(m); err != nil {
				return badRequest("%v", err)
			}
			_ = wire.SendReply(stream, nil, nil)
			return nil
		})
	case wire.OpTrust:
		call(stream, &req, a.trust)
	case wire.OpMount:
		call(stream, &req, a.mount)
	case wire.OpHold:
		call(stream, &req, a.hold)
	case wire.OpThaw:
		call(stream, &req, a.thaw)
	case wire.OpServe:
		serve(stream, &req, func(m *wire.Serve) *wire.Error { return a.parts.serve(stream, m) })
	case wire.OpJobs:
		call(stream, &req, func(*struct{}) (any, *wire.Error) { return wire.Jobs{Jobs: a.procs.list()}, nil })
	case wire.OpOutput:
		call(stream, &req, func(m *wire.Output) (any, *wire.Error) {
			p, err := a.procs.get(m.ID)
			if err != nil {
				return nil, err
			}
			return p.output(m, closed(stream)), nil
		})
	case wire.OpRelease:
		call(stream, &req, func(m *wire.ProcessRef) (any, *wire.Error) {
			p, err := a.procs.get(m.ID)
			if err == nil {
				a.procs.forget(p)
			}
			return nil, err
		})
	default:
		a.files.answer(ctx, stream, &req)
	}
}

// call answers a request that has one reply.
func call[T any](stream net.Conn, req *wire.Request, f func(*T) (any, *wire.Error)) {
	serve(stream, req, func(m *T) *wire.Error {
		body, err := f(m)
		if err == nil {
			_ = wire.SendReply(stream, body, nil)
		}
		return err
	})
}

// serve decodes a request's body and runs f. An error of f is sent as the reply.
func serve[T any](stream net.Conn, req *wire.Request, f func(*T) *wire.Error) {
	m := new(T)
	if len(req.Body) > 0 {
		if err := wire.Unmarshal(req.Body, m); err != nil {
			_ = wire.SendReply(stream, nil, badRequest("%s: %v", req.Op, err))
			return
		}
	}
	if err := f(m); err != nil {
		_ = wire.SendReply(stream, nil, err)
	}
}

// closed returns a channel that closes when the host ends the stream. What the
// host still sends is discarded.
func closed(stream net.Conn) <-chan struct{} {
	ch := make(chan struct{})
	go func() {
		defer close(ch)
		_, _ = io.Copy(io.Discard, stream)
	}()
	return ch
}

func (a *agent) start(stream net.Conn, m *wire.Start) *wire.Error {
	p, werr := a.procs.start(m)
	if werr != nil {
		return werr
	}
	err := wire.SendReply(stream, wire.Started{ID: p.id}, nil)
	switch {
	case err == nil && !m.Detach:
		a.procs.attach(p, 0, stream)
	case err != nil && !m.Detach: // nobody knows of it
		p.terminate(unix.SIGTERM, graceOf(m.GraceMS))
		a.procs.forget(p)
	}
	return nil
}

func (a *agent) attach(stream net.Conn, m *wire.Attach) *wire.Error {
	p, werr := a.procs.get(m.ID)
	if werr != nil {
		return werr
	}
	offset := p.spool.clamp(m.Offset)
	if wire.SendReply(stream, wire.Started{ID: p.id, Offset: offset}, nil) == nil {
		a.procs.attach(p, offset, stream)
	}
	return nil
}

func (a *agent) stdin(stream net.Conn, m *wire.Stdin) *wire.Error {
	p, werr := a.procs.get(m.ID)
	if werr != nil {
		return werr
	}
	if wire.SendReply(stream, nil, nil) != nil {
		return nil
	}
	werr = p.feed(stream, m)
	_ = wire.SendReply(stream, nil, werr)
	return nil
}

func (a *agent) signal(m *wire.Signal) (any, *wire.Error) {
	p, werr := a.procs.get(m.ID)
	if werr != nil {
		return nil, werr
	}
	sig, werr := parseSignal(m.Name)
	if werr != nil {
		return nil, werr
	}
	if m.GraceMS > 0 {
		go p.terminate(sig, graceOf(m.GraceMS))
		return nil, nil
	}
	if err := p.signal(sig, m.Tree); err != nil {
		return nil, errnoError("", err)
	}
	return nil, nil
}

func (a *agent) resize(m *wire.Resize) (any, *wire.Error) {
	p, werr := a.procs.get(m.ID)
	if werr != nil {
		return nil, werr
	}
	if !p.tty {
		return nil, badRequest("process %d has no terminal", m.ID)
	}
	return nil, p.resize(m.Size)
}
