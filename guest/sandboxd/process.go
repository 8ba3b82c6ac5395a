//go:build linux

package sandboxd

import (
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/wire"
)

const defaultGrace = 2 * time.Second

// process is one command. It outlives the connection that started it.
type process struct {
	id      uint64
	label   string
	started time.Time
	retain  bool
	spool   *spool
	cgroup  *cgroup
	handle  *os.Process
	stdin   *os.File // host's end of standard input; the terminal with tty
	tty     bool

	attached chan struct{} // holds one token: one reader at a time

	mu       sync.Mutex
	ended    bool // reaped: its pid and group may belong to somebody else
	released bool // so may its cgroup
	timedOut bool
	written  [2]int64 // stdout, stderr

	killers sync.WaitGroup // calls of terminate that still need the cgroup

	done chan struct{} // closed when exit is set
	exit wire.Exit
}

// stdio are the ends of a command's standard streams.
type stdio struct {
	child  [3]*os.File
	stdin  *os.File
	pumps  []pumpFrom
	closes []*os.File // the child's ends, closed after the start
}

type pumpFrom struct {
	f    *os.File
	kind wire.Kind
}

func (fs *stdio) closeAll() {
	for _, f := range fs.closes {
		f.Close()
	}
	for _, p := range fs.pumps {
		p.f.Close()
	}
	if fs.stdin != nil {
		fs.stdin.Close()
	}
}

func openFiles(req *wire.Start) (*stdio, error) {
	if req.TTY != nil {
		return openTTY(req.TTY)
	}
	fs := &stdio{}
	add := func(err error) error {
		if err != nil {
			fs.closeAll()
		}
		return err
	}
	if req.Stdin {
		r, w, err := pipe(false)
		if add(err) != nil {
			return nil, err
		}
		fs.child[0], fs.stdin, fs.closes = r, w, append(fs.closes, r)
	} else {
		null, err := devNull()
		if add(err) != nil {
			return nil, err
		}
		fs.child[0] = null
	}
	for i, kind := range []wire.Kind{wire.FrameStdout, wire.FrameStderr} {
		w, r, err := pipe(true)
		if add(err) != nil {
			return nil, err
		}
		fs.child[i+1], fs.closes = w, append(fs.closes, w)
		fs.pumps = append(fs.pumps, pumpFrom{r, kind})
	}
	return fs, nil
}

// devNull is standard input for commands that have none.
var devNull = sync.OnceValues(func() (*os.File, error) { return os.Open("/dev/null") })

// pipe makes a pipe that holds what one frame carries. Only our end goes to the
// poller: the child's is blocking, and closed before anybody waits for it.
func pipe(weRead bool) (child, ours *os.File, err error) {
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	c, o := fd[0], fd[1]
	if weRead {
		c, o = o, c
	}
	// Refused (pipe-user-pages-soft), the pipe keeps its default size, which works too.
	_, _ = unix.FcntlInt(uintptr(o), unix.F_SETPIPE_SZ, wire.MaxFrame)
	if err := unix.SetNonblock(o, true); err != nil {
		unix.Close(c)
		unix.Close(o)
		return nil, nil, err
	}
	return os.NewFile(uintptr(c), "pipe"), os.NewFile(uintptr(o), "pipe"), nil
}

func openTTY(size *wire.Size) (*stdio, error) {
	master, slave, err := pty.Open()
	if err != nil {
		return nil, err
	}
	if err := pty.Setsize(master, &pty.Winsize{Rows: size.Rows, Cols: size.Cols}); err != nil {
		master.Close()
		slave.Close()
		return nil, err
	}
	return &stdio{
		child: [3]*os.File{slave, slave, slave}, stdin: master,
		pumps: []pumpFrom{{master, wire.FrameStdout}}, closes: []*os.File{slave},
	}, nil
}

// spawn starts a command.
func spawn(req *wire.Start, groups *cgroups) (*process, *wire.Error) {
	acc, err := accountOf(req.User)
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeInvalid, Msg: err.Error()}
	}
	env := environment(acc, req.Env, req.TTY != nil)
	dir := req.Dir
	if dir == "" {
		dir = acc.home
	}
	if werr := workDir(dir); werr != nil {
		return nil, werr
	}
	path, argv, werr := commandLine(req, dir, env)
	if werr != nil {
		return nil, werr
	}
	fs, err := openFiles(req)
	if err != nil {
		return nil, spawnError("standard streams", err, "")
	}
	group, err := groups.acquire()
	if err != nil {
		fs.closeAll()
		return nil, spawnError(path, err, err.Error())
	}
	p := &process{
		label: label(argv, req.Shell), started: time.Now(), retain: req.Retain,
		spool:  newSpool(spoolSize(req), !req.Detach, req.Retain),
		cgroup: group, stdin: fs.stdin, tty: req.TTY != nil,
		attached: make(chan struct{}, 1), done: make(chan struct{}),
	}
	p.handle, err = os.StartProcess(path, argv, &os.ProcAttr{
		Dir: dir, Env: env, Files: fs.child[:],
		Sys: &syscall.SysProcAttr{
			Setsid: true, Setctty: p.tty,
			Credential:  &syscall.Credential{Uid: acc.uid, Gid: acc.gid, Groups: acc.groups},
			UseCgroupFD: true, CgroupFD: int(group.dir.Fd()),
		},
	})
	if err != nil {
		fs.closeAll()
		groups.release(group)
		return nil, spawnError(path, err, "")
	}
	for _, f := range fs.closes {
		f.Close()
	}
	go p.watch(fs.pumps, groups)
	if req.TimeoutMS > 0 {
		timer := time.AfterFunc(time.Duration(req.TimeoutMS)*time.Millisecond, func() {
			p.mu.Lock()
			p.timedOut = !p.ended
			p.mu.Unlock()
			p.terminate(unix.SIGTERM, graceOf(req.GraceMS))
		})
		go func() { <-p.done; timer.Stop() }()
	}
	return p, nil
}

// spoolSize leaves room for what the host takes before it acknowledges, where
// output waits for that.
func spoolSize(req *wire.Start) int {
	if req.Spool > 0 && !req.Detach {
		return max(req.Spool, defaultSpool/2)
	}
	return req.Spool
}

func graceOf(ms int64) time.Duration {
	if ms <= 0 {
		return defaultGrace
	}
	return time.Duration(ms) * time.Millisecond
}

// label is a command for people, bounded.
func label(argv []string, shell string) string {
	s := shell
	if s == "" {
		s = strings.Join(argv, " ")
	}
	const most = 200
	if len(s) > most {
		s = s[:most] + "…"
	}
	return s
}

// watch waits for the process and its output and sets exit.
func (p *process) watch(pumps []pumpFrom, groups *cgroups) {
	var drained sync.WaitGroup
	for _, from := range pumps {
		drained.Add(1)
		go p.pump(from, sync.OnceFunc(drained.Done))
	}
	state, err := p.handle.Wait()
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	// A background child may hold the pipes for ever. What the process itself
	// wrote is in them by now: take that and do not wait for more.
	for _, from := range pumps {
		_ = from.f.SetReadDeadline(time.Unix(1, 0))
	}
	drained.Wait()
	p.mu.Lock()
	p.exit = wire.Exit{
		TimedOut: p.timedOut, Stdout: p.written[0], Stderr: p.written[1],
		DurationUS: time.Since(p.started).Microseconds(),
	}
	p.mu.Unlock()
	if err != nil {
		p.exit.Code, p.exit.Note = -1, "waiting for the process: "+err.Error()
	} else if ws := state.Sys().(syscall.WaitStatus); ws.Signaled() {
		p.exit.Code, p.exit.Signal = 128+int(ws.Signal()), unix.SignalName(ws.Signal())
		if ws.Signal() == unix.SIGKILL && groups.outOfMemory() {
			p.exit.Note = "the guest ran out of memory; raise limits.memory"
		}
	} else {
		p.exit.Code = ws.ExitStatus()
	}
	p.spool.finish()
	close(p.done)
	if p.stdin != nil && !p.tty {
		p.stdin.Close()
	}
	p.killers.Wait()
	p.mu.Lock()
	p.released = true
	p.mu.Unlock()
	groups.release(p.cgroup)
}

// pump moves output from a pipe to the spool until the pipe ends, and calls
// drained when it ended or, after the process did, when it is empty.
func (p *process) pump(from pumpFrom, drained func()) {
	defer from.f.Close()
	defer drained()
	for {
		c := chunkPool.Get().(*wire.Chunk)
		n, err := from.f.Read(c.Space())
		if n > 0 {
			c.Grow(n)
			p.count(from.kind, n)
			p.spool.add(from.kind, c)
			continue
		}
		recycle(c)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		_ = from.f.SetReadDeadline(time.Time{})
		if !p.drain(from) {
			return
		}
		drained()
	}
}

// drain takes what a pipe holds without waiting for more; false at its end.
func (p *process) drain(from pumpFrom) bool {
	raw, err := from.f.SyscallConn()
	if err != nil {
		return false
	}
	for {
		c := chunkPool.Get().(*wire.Chunk)
		n, rerr := 0, error(nil)
		err := raw.Read(func(fd uintptr) bool {
			n, rerr = unix.Read(int(fd), c.Space())
			return true
		})
		if err == nil && n > 0 {
			c.Grow(n)
			p.count(from.kind, n)
			p.spool.add(from.kind, c)
			continue
		}
		recycle(c)
		if errors.Is(rerr, unix.EINTR) {
			continue
		}
		return errors.Is(rerr, unix.EAGAIN)
	}
}

func (p *process) count(kind wire.Kind, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.written[kind-wire.FrameStdout] += int64(n)
}

// signal sends sig to the process's group, or KILL to all that it started.
func (p *process) signal(sig syscall.Signal, tree bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case tree && sig == unix.SIGKILL && !p.released:
		return p.cgroup.kill()
	case p.ended:
		return nil
	}
	return unix.Kill(-p.handle.Pid, sig)
}

// terminate sends sig to the process's group. What is left after grace of all
// that the process started gets KILL, also when the process itself has ended.
func (p *process) terminate(sig syscall.Signal, grace time.Duration) {
	p.mu.Lock()
	if p.released {
		p.mu.Unlock()
		return
	}
	p.killers.Add(1)
	p.mu.Unlock()
	defer p.killers.Done()
	_ = p.signal(sig, false)
	deadline := time.NewTimer(grace)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for p.cgroup.populated() {
		select {
		case <-tick.C:
		case <-deadline.C:
			_ = p.cgroup.kill()
			return
		}
	}
}

// parseSignal reads "TERM", "SIGTERM" or "15".
func parseSignal(name string) (syscall.Signal, *wire.Error) {
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n <= 64 {
		return syscall.Signal(n), nil
	}
	up := strings.ToUpper(name)
	if !strings.HasPrefix(up, "SIG") {
		up = "SIG" + up
	}
	if sig := unix.SignalNum(up); sig != 0 {
		return sig, nil
	}
	return 0, &wire.Error{Code: wire.CodeInvalid, Msg: "unknown signal " + strconv.Quote(name) + "; use a name such as TERM, INT, KILL or HUP, or a number from 1 to 64"}
}

// feed copies r to standard input; see wire.Stdin.
func (p *process) feed(r io.Reader, req *wire.Stdin) *wire.Error {
	if p.stdin == nil {
		return &wire.Error{Code: wire.CodeInvalid, Msg: "the process was started without an open standard input"}
	}
	if req.WaitMS > 0 {
		_ = p.stdin.SetWriteDeadline(time.Now().Add(time.Duration(req.WaitMS) * time.Millisecond))
		defer p.stdin.SetWriteDeadline(time.Time{})
	}
	// Not io.Copy itself: to a file it copies in small pieces.
	_, err := io.CopyBuffer(struct{ io.Writer }{p.stdin}, r, make([]byte, wire.MaxFrame))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &wire.Error{Code: wire.CodeLimit, Msg: "the process does not read its standard input; some of the data was not delivered"}
	case errors.Is(err, unix.EPIPE), errors.Is(err, os.ErrClosed), errors.Is(err, unix.EIO):
		return &wire.Error{Code: wire.CodeErrno, Errno: "EPIPE", Msg: "the process has closed its standard input"}
	case err != nil: // the stream broke: this is not the end of the input
		return &wire.Error{Code: wire.CodeErrno, Errno: "EIO", Msg: "standard input was interrupted: " + err.Error()}
	}
	if req.KeepOpen {
		return nil
	}
	if p.tty {
		_, _ = p.stdin.Write([]byte{4}) // VEOF, ^D
		return nil
	}
	p.stdin.Close()
	return nil
}

func (p *process) resize(size wire.Size) *wire.Error {
	if err := pty.Setsize(p.stdin, &pty.Winsize{Rows: size.Rows, Cols: size.Cols}); err != nil {
		return errnoError("", err)
	}
	return nil
}
