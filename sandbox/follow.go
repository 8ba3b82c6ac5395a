package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// follow moves the process's input and output until it has ended.
func (p *Process) follow(st *stream) {
	began := time.Now()
	life, over := context.WithCancel(p.session.life)
	// The guest ends the process in time; if it does not, the call is answered all the same.
	patience, abandon := context.WithCancel(life)
	var watch sync.WaitGroup
	watch.Go(func() { p.watch(life, abandon) })
	if p.cmd.Stdin != nil {
		// It may be stuck in Read of a reader that is not ours, so nothing waits for it.
		go p.feed(life)
	}
	out := &outputs{p: p, pos: p.from, acked: p.from}
	for p.err == nil {
		stop := context.AfterFunc(patience, st.abort)
		err := out.copy(st)
		stop()
		connected := !st.Session().IsClosed()
		st.Close()
		if err == nil {
			break
		}
		if p.wasLeft() {
			p.err = ErrDetached
			break
		}
		st, p.err = p.resume(life, patience, err, connected, out.pos)
	}
	over()
	watch.Wait()
	p.exit.ID = p.ID()
	if p.exit.Duration == 0 {
		p.exit.Duration = time.Since(began)
	}
	if p.exit.Code != 0 && p.exit.Note == "" {
		p.exit.Note = p.session.note()
	}
	switch {
	case out.failed != nil:
		p.err = out.failed
	case p.err == nil && p.ctx.Err() != nil:
		p.err = context.Cause(p.ctx)
	case p.err == nil:
		p.err = p.inputFailure()
	}
}

// watch ends the process when its context ends, and gives up on a guest that
// does not report the end of the process when it must have ended.
func (p *Process) watch(life context.Context, abandon func()) {
	var late <-chan time.Time
	if p.cmd.Timeout > 0 {
		timer := time.NewTimer(p.cmd.Timeout + p.cmd.Grace + answerSlack)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-life.Done():
		return
	case <-late:
	case <-p.left:
	case <-p.ctx.Done():
		ctx, done := context.WithTimeout(life, p.cmd.Grace+answerSlack)
		defer done()
		_ = p.stop(ctx)
		<-ctx.Done()
	}
	abandon()
}

// stop sends TERM to the process's group, and KILL to all of it after the grace.
func (p *Process) stop(ctx context.Context) error {
	return p.session.call(ctx, wire.OpSignal, "", wire.Signal{ID: p.id, Name: "TERM", GraceMS: p.cmd.Grace.Milliseconds()}, nil)
}

// resume attaches to the process again after the connection was lost. When it
// was not lost (connected), the guest broke off by itself.
func (p *Process) resume(life, patience context.Context, cause error, connected bool, pos int64) (*stream, error) {
	if patience.Err() != nil && life.Err() == nil {
		ctx, done := context.WithTimeout(life, time.Second)
		defer done()
		_ = p.session.call(ctx, wire.OpRelease, "", wire.ProcessRef{ID: p.id}, nil)
		return nil, fmt.Errorf("the guest did not report the end of the process in time: %w", context.DeadlineExceeded)
	}
	switch {
	case errors.Is(cause, wire.ErrProtocol) || errors.Is(cause, wire.ErrTooLarge):
		return nil, fmt.Errorf("output of the process: %w", cause)
	case connected && life.Err() == nil:
		return nil, fmt.Errorf("the guest ended the output of the process before its end: %w", wire.ErrProtocol)
	}
	var at wire.Started
	st, err := p.session.request(patience, wire.OpAttach, "", wire.Attach{ID: p.id, Offset: pos}, &at)
	if err == nil && at.Offset != pos {
		st.Close()
		return nil, fmt.Errorf("the guest has lost output of the process: it goes on at byte %d, not at %d: %w", at.Offset, pos, wire.ErrProtocol)
	}
	return st, err
}

// feed copies Command.Stdin to the process.
func (p *Process) feed(ctx context.Context) {
	st, err := p.session.request(ctx, wire.OpStdin, "", wire.Stdin{ID: p.id}, nil)
	if err == nil {
		err = send(st, p.cmd.Stdin, wire.SendLive, nil)
		st.Close()
	}
	var file *FileError
	var src *wire.SourceError
	switch {
	case err == nil, ctx.Err() != nil:
		return
	case errors.As(err, &src):
	case errors.Is(err, ErrNoJob), errors.Is(err, ErrInvalid), errors.As(err, &file) && file.Errno == "EPIPE":
		return // the process has ended, was started without an input, or wants no more of it
	}
	// What was cut off is not the end of the input: the process must not take it for that.
	p.mu.Lock()
	p.input = fmt.Errorf("standard input of the process: %w", err)
	p.mu.Unlock()
	_ = p.stop(ctx)
}

func (p *Process) inputFailure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.input
}

// outputs hands a process's output to its writers.
type outputs struct {
	p      *Process
	pos    int64
	acked  int64
	frames int // since the last acknowledgement
	failed error
}

// copy reads one stream to the process's exit.
func (o *outputs) copy(st *stream) error {
	frames := wire.NewFrameReader(st)
	for {
		kind, payload, err := frames.Next()
		if err != nil {
			return err
		}
		switch kind {
		case wire.FrameStdout:
			o.write(o.p.cmd.Stdout, payload)
		case wire.FrameStderr:
			o.write(o.p.cmd.Stderr, payload)
		case wire.FrameEnd:
			var exit wire.Exit
			if err := wire.Unmarshal(payload, &exit); err != nil {
				return fmt.Errorf("%w: %w", err, wire.ErrProtocol)
			}
			o.p.exit = exitOf(o.p.id, &exit)
			if wire.WriteAck(st, wire.EndSeen) != nil && !o.p.cmd.Retain {
				// The end is known all the same: only the guest does not know that.
				p := o.p
				p.session.work(func() { _ = p.session.call(p.session.life, wire.OpRelease, "", wire.ProcessRef{ID: p.id}, nil) })
			}
			return nil
		default:
			return fmt.Errorf("frame of kind %d among output: %w", kind, wire.ErrProtocol)
		}
		o.pos += int64(len(payload))
		if o.frames++; o.pos-o.acked >= wire.AckBytes || o.frames >= wire.AckFrames {
			if err := wire.WriteAck(st, o.pos); err != nil {
				return err
			}
			o.acked, o.frames = o.pos, 0
		}
	}
}

// write gives bytes to a writer. One that fails ends the process; what it
// still writes is discarded.
func (o *outputs) write(w io.Writer, b []byte) {
	if w == nil || o.failed != nil {
		return
	}
	if _, err := w.Write(b); err != nil {
		o.failed = fmt.Errorf("writing the process's output: %w", err)
		p := o.p
		p.session.work(func() { _ = p.stop(p.session.life) })
	}
}

func exitOf(id uint64, e *wire.Exit) Exit {
	return Exit{
		ID: strconv.FormatUint(id, 10), Code: e.Code, Signal: printable(e.Signal), TimedOut: e.TimedOut,
		Stdout: e.Stdout, Stderr: e.Stderr, Duration: time.Duration(e.DurationUS) * time.Microsecond, Note: printable(e.Note),
	}
}
