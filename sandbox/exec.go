package sandbox

import (
	"context"
	"errors"
	"fmt"
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
