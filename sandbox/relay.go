package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// passedOn are the requests of attached programs that go to the guest as they are.
var passedOn = map[wire.Op]bool{
	wire.OpStdin: true, wire.OpSignal: true, wire.OpResize: true, wire.OpJobs: true, wire.OpOutput: true, wire.OpRelease: true,
	wire.OpStat: true, wire.OpReadDir: true, wire.OpMkdir: true, wire.OpRename: true, wire.OpRemove: true, wire.OpRead: true,
	wire.OpWrite: true, wire.OpGlob: true, wire.OpGrep: true, wire.OpPack: true, wire.OpUnpack: true,
}

// relayBuffers hold one frame, so that frames stay whole.
var relayBuffers = sync.Pool{New: func() any { b := make([]byte, wire.MaxFrame+16); return &b }}

func relayCopy(dst io.Writer, src io.Reader) error {
	b := relayBuffers.Get().(*[]byte)
	defer relayBuffers.Put(b)
	_, err := io.CopyBuffer(dst, src, *b)
	return err
}

// pass hands a request and all that follows it to the guest, and what the guest says back.
func (v *visitor) pass(st *yamux.Stream, req *wire.Request) error {
	s := v.session
	defer s.use()()
	up, err := s.open(v.ctx)
	if err != nil {
		return err
	}
	defer up.Close()
	defer context.AfterFunc(v.ctx, func() { _ = up.SetDeadline(time.Unix(1, 0)) })()
	if err := wire.WriteMessage(up, req); err != nil {
		return fmt.Errorf("%s: the connection to the guest was lost: %w", req.Op, err)
	}
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		if err := relayCopy(up, st); err != nil {
			_ = up.SetDeadline(time.Unix(1, 0)) // the program broke off, and so does the guest's answer
		}
		up.Close() // the guest closes when the program did
	}()
	_ = relayCopy(st, up)
	v.close(st)
	// A program that has the end of the answer closes too.
	_ = st.SetReadDeadline(time.Now().Add(replyTimeout))
	<-asked
	return nil
}

// start runs a command for the program.
func (v *visitor) start(st *yamux.Stream, req *wire.Request, closed <-chan struct{}) error {
	var m wire.Start
	if err := wire.Unmarshal(req.Body, &m); err != nil {
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	s := v.session
	cmd := commandOf(&m)
	ended, err := s.visited(cmd)
	if err != nil {
		return err
	}
	if m.Detach {
		job, err := s.StartJob(v.ctx, cmd)
		if err != nil {
			ended(Exit{}, err)
			return err
		}
		ended(Exit{ID: job.ID}, ErrDetached)
		id, err := jobID(job.ID)
		if err != nil {
			return err
		}
		return wire.SendReply(st, wire.Started{ID: id}, nil)
	}
	out := newFrameSender(st)
	cmd.Stdout, cmd.Stderr = out.to(wire.FrameStdout), out.to(wire.FrameStderr)
	ctx, cancel := context.WithCancel(v.ctx)
	defer cancel()
	p, err := s.Start(ctx, cmd)
	if err != nil {
		ended(Exit{}, err)
		return err
	}
	exit, err := v.watched(st, p, out, wire.Started{ID: p.id}, closed, cancel)
	ended(exit, err)
	return nil
}

// visited tells Options.Visited of a command.
func (s *Session) visited(cmd Command) (ended func(Exit, error), err error) {
	if s.opts.Visited == nil {
		return func(Exit, error) {}, nil
	}
	return s.opts.Visited(cmd)
}

// rejoin watches a process for the program that another has left.
func (v *visitor) rejoin(st *yamux.Stream, req *wire.Request, closed <-chan struct{}) error {
	var m wire.Attach
	if err := wire.Unmarshal(req.Body, &m); err != nil {
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	out := newFrameSender(st)
	ctx, cancel := context.WithCancel(v.ctx)
	defer cancel()
	p, err := v.session.Rejoin(ctx, fmt.Sprint(m.ID), Command{Stdout: out.to(wire.FrameStdout), Stderr: out.to(wire.FrameStderr)})
	if err != nil {
		return err
	}
	_, _ = v.watched(st, p, out, wire.Started{ID: p.id, Offset: p.from}, closed, cancel)
	return nil
}

// watched answers the request for a process and sends its output and end. A program that closes
// the stream before has gone.
func (v *visitor) watched(st *yamux.Stream, p *Process, out *frameSender, started wire.Started, closed <-chan struct{}, gone func()) (Exit, error) {
	v.mu.Lock()
	v.procs[p.id] = p
	v.mu.Unlock()
	defer func() {
		v.mu.Lock()
		delete(v.procs, p.id)
		v.mu.Unlock()
	}()
	if err := wire.SendReply(st, started, nil); err != nil {
		gone()
	}
	close(out.answered)
	select {
	case <-closed:
		if !p.wasLeft() {
			gone()
		}
	case <-p.done:
	}
	exit, err := p.Wait()
	told := err
	if err == nil {
		// A program that has read it may be gone before this returns.
		told = wire.WriteEnd(st, exit.wire())
	}
	if told != nil && !errors.Is(told, ErrDetached) {
		v.close(st)
	}
	return exit, err
}

// detach leaves a process of this program running.
func (v *visitor) detach(st *yamux.Stream, req *wire.Request) error {
	var m wire.ProcessRef
	if err := wire.Unmarshal(req.Body, &m); err != nil {
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	v.mu.Lock()
	p := v.procs[m.ID]
	v.mu.Unlock()
	if p == nil {
		return fmt.Errorf("process %d is not watched by this program: %w", m.ID, ErrNoJob)
	}
	if err := p.Detach(v.ctx); err != nil {
		return err
	}
	return wire.SendReply(st, nil, nil)
}

// frameSender sends a process's output to a program, once its request is answered.
type frameSender struct {
	w        io.Writer
	answered chan struct{}
	chunk    *wire.Chunk
}

func newFrameSender(w io.Writer) *frameSender {
	return &frameSender{w: w, answered: make(chan struct{}), chunk: wire.NewChunk(wire.MaxFrame)}
}

// to is a writer of one kind of frames. A process's writers are used by one goroutine.
func (f *frameSender) to(kind wire.Kind) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		<-f.answered
		for rest := p; len(rest) > 0; {
			f.chunk.Reset()
			rest = rest[f.chunk.Append(rest):]
			if err := f.chunk.WriteTo(f.w, kind); err != nil {
				return 0, err
			}
		}
		return len(p), nil
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func commandOf(m *wire.Start) Command {
	cmd := Command{
		Argv: m.Argv, Shell: m.Shell, Dir: m.Dir, User: m.User, KeepStdin: m.Stdin, Retain: m.Retain, SpoolBytes: m.Spool,
		Timeout: time.Duration(m.TimeoutMS) * time.Millisecond, Grace: time.Duration(m.GraceMS) * time.Millisecond,
		Env: make(map[string]string, len(m.Env)),
	}
	for _, v := range m.Env {
		name, value, _ := strings.Cut(v, "=")
		cmd.Env[name] = value
	}
	if m.TTY != nil {
		cmd.TTY = &TTYSize{Rows: m.TTY.Rows, Cols: m.TTY.Cols}
	}
	return cmd
}

func (e Exit) wire() wire.Exit {
	return wire.Exit{
		Code: e.Code, Signal: e.Signal, TimedOut: e.TimedOut, Stdout: e.Stdout, Stderr: e.Stderr,
		DurationUS: e.Duration.Microseconds(), Note: e.Note,
	}
}

// bare is a message without the words that the other side adds for a sentinel.
func bare(err, sentinel error) string {
	return strings.TrimSuffix(err.Error(), ": "+sentinel.Error())
}
