package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/gondolin-go/gondolin/guest/wire"
)

const (
	defaultGrace = 2 * time.Second
	// answerSlack is how long the guest has to report the end of a process
	// beyond the time in which it must have ended it.
	answerSlack = 10 * time.Second
)

// Process is a command that was started and is being watched.
type Process struct {
	session *client
	id      uint64
	cmd     Command
	ctx     context.Context
	from    int64         // position of the first byte of output that is watched
	left    chan struct{} // closed by Detach
	leaving sync.Once
	done    chan struct{}
	exit    Exit
	err     error

	mu    sync.Mutex
	input error // why Command.Stdin did not reach the process
}

// Run starts a command and waits for it.
func (s *client) Run(ctx context.Context, cmd Command) (Exit, error) {
	p, err := s.Start(ctx, cmd)
	if err != nil {
		return Exit{}, err
	}
	return p.Wait()
}

// Start starts a command. It is watched, and released when it has ended, whether Wait is called or not.
func (s *client) Start(ctx context.Context, cmd Command) (*Process, error) {
	req, err := s.startRequest(&cmd)
	if err != nil {
		return nil, err
	}
	if cmd.Grace <= 0 {
		cmd.Grace = defaultGrace
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	release := s.use()
	st, id, err := s.startProcess(ctx, req)
	if err != nil {
		release()
		return nil, err
	}
	return s.follow(ctx, &Process{session: s, id: id, cmd: cmd}, st, release)
}

// Rejoin watches a process that was started with Retain and that nobody watches, from the
// oldest output on that is kept. Of cmd only reader, writers and Grace count; ctx governs the
// process from now on.
func (s *client) Rejoin(ctx context.Context, id string, cmd Command) (*Process, error) {
	n, err := jobID(id)
	if err != nil {
		return nil, err
	}
	if cmd.Grace <= 0 {
		cmd.Grace = defaultGrace
	}
	release := s.use()
	var at wire.Started
	st, err := s.outlive(ctx, wire.OpAttach, wire.Attach{ID: n}, &at, func() {})
	if err != nil {
		release()
		return nil, err
	}
	cmd.Retain = true
	return s.follow(ctx, &Process{session: s, id: n, cmd: cmd, from: at.Offset}, st, release)
}

// follow begins to watch a process on its stream; release is called when that is over.
func (s *client) follow(ctx context.Context, p *Process, st *stream, release func()) (*Process, error) {
	p.ctx, p.left, p.done = ctx, make(chan struct{}), make(chan struct{})
	s.countRunning(1)
	finish := func() {
		s.countRunning(-1)
		release()
	}
	if !s.work(func() {
		defer finish()
		defer close(p.done)
		p.follow(st)
	}) {
		finish()
		st.abort()
		return nil, s.closedError()
	}
	return p, nil
}

// startProcess asks the guest for a process. When ctx ends before the guest has answered, the process is ended as
// soon as it does.
func (s *client) startProcess(ctx context.Context, req *wire.Start) (*stream, uint64, error) {
	var started wire.Started
	st, err := s.outlive(ctx, wire.OpStart, req, &started, func() {
		_ = s.call(s.life, wire.OpSignal, "", wire.Signal{ID: started.ID, Name: "KILL", Tree: true}, nil)
		_ = s.call(s.life, wire.OpRelease, "", wire.ProcessRef{ID: started.ID}, nil)
	})
	if err != nil {
		return nil, 0, err // started may be written yet
	}
	return st, started.ID, nil
}

// outlive makes a request whose stream outlives ctx, since the guest still reports how a process
// ended. When ctx ends before the guest has answered, undo is called as soon as it does.
func (s *client) outlive(ctx context.Context, op wire.Op, body, reply any, undo func()) (*stream, error) {
	var st *stream
	var err error
	answered := make(chan struct{})
	if !s.work(func() {
		st, err = s.request(s.life, op, "", body, reply)
		select {
		case answered <- struct{}{}:
		case <-ctx.Done(): // the caller has gone
			if err == nil {
				st.abort()
				undo()
			}
		}
	}) {
		return nil, s.closedError()
	}
	select {
	case <-answered:
		return st, err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// work runs f in a goroutine that the end of the session waits for; false when
// the session is ending already.
func (s *client) work(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reason != "" {
		return false
	}
	s.workers.Go(f)
	return true
}

func (s *client) countRunning(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running += n
}

// startRequest checks a command and adds the session's defaults.
func (s *client) startRequest(cmd *Command) (*wire.Start, error) {
	if cmd.part == "" && (len(cmd.Argv) == 0) == (cmd.Shell == "") {
		return nil, fmt.Errorf("command: give exactly one of argv and shell: %w", ErrInvalid)
	}
	if err := errors.Join(checkEnv(cmd.Env)...); err != nil {
		return nil, err
	}
	req := &wire.Start{
		Argv: cmd.Argv, Shell: cmd.Shell, Dir: s.resolve(cmd.Dir), Env: s.environ(cmd.Env), User: cmd.User,
		Stdin: cmd.Stdin != nil || cmd.KeepStdin, TimeoutMS: cmd.Timeout.Milliseconds(),
		Part: cmd.part, GraceMS: cmd.Grace.Milliseconds(), Retain: cmd.Retain, Spool: cmd.SpoolBytes,
	}
	if cmd.Timeout > 0 && req.TimeoutMS == 0 {
		req.TimeoutMS = 1
	}
	if req.User == "" {
		req.User = s.terms().user
	}
	if cmd.TTY != nil {
		req.TTY = &wire.Size{Rows: cmd.TTY.Rows, Cols: cmd.TTY.Cols}
	}
	return req, nil
}

// resolve makes a guest path absolute below the session's default directory.
// An empty path is that directory; where the session has none, it stays empty
// and the guest takes the user's home.
func (s *client) resolve(p string) string {
	if p != "" && !path.IsAbs(p) {
		base := s.terms().dir
		if base == "" {
			base = "/root"
		}
		return path.Join(base, p)
	}
	if p == "" {
		return s.terms().dir
	}
	return p
}

func (s *client) environ(extra map[string]string) []string {
	merged := map[string]string{}
	for _, env := range append(s.terms().env, extra) {
		for k, v := range env {
			merged[k] = v
		}
	}
	list := make([]string, 0, len(merged))
	for k, v := range merged {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return list
}

// ID names the process within its session.
func (p *Process) ID() string { return strconv.FormatUint(p.id, 10) }

// Wait waits for the process and for all of its output to be written. The
// error is nil when the process ran and ended by itself or by its timeout,
// whatever its exit code; it is the context's when that ended it, and a
// reader's or writer's when that failed.
func (p *Process) Wait() (Exit, error) {
	<-p.done
	return p.exit, p.err
}

// Signal sends a signal, such as "INT", to the process's group.
func (p *Process) Signal(ctx context.Context, name string) error {
	return p.session.Signal(ctx, p.ID(), name)
}

// Resize sets the size of the process's terminal.
func (p *Process) Resize(ctx context.Context, size TTYSize) error {
	return p.session.call(ctx, wire.OpResize, "", wire.Resize{ID: p.id, Size: wire.Size{Rows: size.Rows, Cols: size.Cols}}, nil)
}

// Detach stops watching the process, which goes on: Wait returns ErrDetached, and Rejoin
// takes it up again. It must have been started with Retain. What it writes meanwhile is kept up
// to Command.SpoolBytes; then it waits for a reader.
func (p *Process) Detach(ctx context.Context) error {
	if !p.cmd.Retain {
		return fmt.Errorf("detaching from process %d: it was not started with Retain: %w", p.id, ErrInvalid)
	}
	if p.session.remote {
		if err := p.session.call(ctx, wire.OpDetach, "", wire.ProcessRef{ID: p.id}, nil); err != nil {
			return err
		}
	}
	p.leaving.Do(func() { close(p.left) })
	return nil
}

func (p *Process) wasLeft() bool {
	select {
	case <-p.left:
		return true
	default:
		return false
	}
}

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
	switch {
	case err == nil, ctx.Err() != nil, errors.Is(err, ErrNoJob):
		return
	case errors.As(err, &file) && file.Errno == "EPIPE":
		return // the process wants no more
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
