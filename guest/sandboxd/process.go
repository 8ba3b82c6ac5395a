//go:build linux

package sandboxd

import (
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

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
	groups  *cgroups
	cgroup  *cgroup
	handle  *os.Process
	stdin   *os.File // host's end of standard input; the terminal with tty
	tty     bool

	attached chan struct{} // holds one token: one reader at a time

	inputEnded atomic.Bool // with tty: every read of it is at the end of file

	mu       sync.Mutex
	ended    bool // reaped: its pid and group may belong to somebody else
	timedOut bool
	written  [2]int64 // stdout, stderr

	done chan struct{} // closed when exit is set
	exit wire.Exit
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
		if dir = acc.home; workDir(dir) != nil {
			dir = "/" // as login(1) does for a user whose home is missing
		}
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
		groups: groups, cgroup: group, stdin: fs.stdin, tty: req.TTY != nil,
		attached: make(chan struct{}, 1), done: make(chan struct{}),
	}
	groups.own(group, p)
	pidfd := -1
	p.handle, err = os.StartProcess(path, argv, &os.ProcAttr{
		Dir: dir, Env: env, Files: fs.child[:],
		Sys: &syscall.SysProcAttr{
			Setsid: true, Setctty: p.tty,
			Credential:  &syscall.Credential{Uid: acc.uid, Gid: acc.gid, Groups: acc.groups},
			UseCgroupFD: true, CgroupFD: int(group.dir.Fd()),
			PidFD: &pidfd,
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
	go p.watch(fs.pumps, pidfd)
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

// awaitEnd returns when the process that pidfd refers to has ended, and closes pidfd. It waits
// in the poller and not in the kernel; see port.Polled.
func awaitEnd(pidfd int) {
	if pidfd < 0 {
		return // then the wait for its status waits for its end too
	}
	if unix.SetNonblock(pidfd, true) != nil {
		unix.Close(pidfd)
		return
	}
	f := os.NewFile(uintptr(pidfd), "pidfd")
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		ended := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} // pidfd_open(2)
		n, err := unix.Poll(ended, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}

// watch waits for the process and its output and sets exit.
func (p *process) watch(pumps []pumpFrom, pidfd int) {
	var drained sync.WaitGroup
	for _, from := range pumps {
		drained.Add(1)
		go p.pump(from, sync.OnceFunc(drained.Done))
	}
	awaitEnd(pidfd)
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
		if ws.Signal() == unix.SIGKILL && p.groups.outOfMemory() {
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
	p.groups.release(p.cgroup)
}

// pump moves output from a pipe to the spool until the pipe ends, and calls
// drained when it ended or when what was in it as the process ended is taken.
func (p *process) pump(from pumpFrom, drained func()) {
	defer from.f.Close()
	defer drained()
	raw, err := from.f.SyscallConn()
	if err != nil {
		return
	}
	for {
		n, err := p.move(raw, from.kind, true)
		if errors.Is(err, os.ErrDeadlineExceeded) { // the process ended
			_ = from.f.SetReadDeadline(time.Time{})
			if err = p.drain(raw, from.kind); err == nil {
				drained()
				continue
			}
		}
		if err != nil || n == 0 {
			return
		}
	}
}

// drain moves what is there as the process has ended, and not what background
// children add to it.
func (p *process) drain(raw syscall.RawConn, kind wire.Kind) error {
	left := held(raw)
	if p.tty {
		left = 1 << 20 // a terminal counts only part of what it holds, but that ends
	}
	for left > 0 {
		n, err := p.move(raw, kind, false)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil:
			return err
		case n == 0:
			return io.EOF
		}
		left -= n
	}
	return nil
}

// move moves what a pipe holds to the spool, waiting for something if told to. A
// buffer is taken only when there is something: thousands of idle pipes hold none.
func (p *process) move(raw syscall.RawConn, kind wire.Kind, wait bool) (n int, err error) {
	var c *wire.Chunk
	rerr := raw.Read(func(fd uintptr) bool {
		c = chunkPool.Get().(*wire.Chunk)
		for {
			n, err = unix.Read(int(fd), c.Space())
			if err != unix.EINTR {
				break
			}
		}
		if err == unix.EAGAIN && wait {
			recycle(c)
			return false
		}
		return true
	})
	if rerr != nil {
		return 0, rerr
	}
	if err != nil || n == 0 {
		recycle(c)
		return 0, err
	}
	c.Grow(n)
	p.count(kind, n)
	p.spool.add(kind, c)
	return n, nil
}

// held returns how many bytes a pipe or terminal holds.
func held(raw syscall.RawConn) int {
	n := 0
	_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n
}

func (p *process) count(kind wire.Kind, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.written[kind-wire.FrameStdout] += int64(n)
}

// signal sends sig to the process's group, or to all that it started: with tree
// KILL, and any signal once the process itself has ended.
func (p *process) signal(sig syscall.Signal, tree bool) error {
	if tree && sig == unix.SIGKILL {
		return p.groups.kill(p)
	}
	p.mu.Lock()
	if !p.ended {
		defer p.mu.Unlock()
		return unix.Kill(-p.handle.Pid, sig)
	}
	p.mu.Unlock()
	return p.groups.signal(p, sig)
}

// terminate sends sig to the process's group. What is left after grace of all
// that the process started gets KILL, also when the process itself has ended.
func (p *process) terminate(sig syscall.Signal, grace time.Duration) {
	_ = p.signal(sig, false)
	deadline := time.NewTimer(grace)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for p.groups.alive(p) {
		select {
		case <-tick.C:
		case <-deadline.C:
			_ = p.groups.kill(p)
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
	if p.inputEnded.Load() {
		return inputClosed()
	}
	to := p.stdin
	if req.WaitMS > 0 {
		// A deadline is a file's, and others write too, with another or none.
		own, err := pollable(p.stdin)
		if err != nil {
			return inputClosed()
		}
		defer own.Close()
		_ = own.SetWriteDeadline(time.Now().Add(time.Duration(req.WaitMS) * time.Millisecond))
		to = own
	}
	_, err := wire.NewDataReader(r).WriteTo(to)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &wire.Error{Code: wire.CodeLimit, Msg: "the process does not read its standard input; some of the data was not delivered"}
	case errors.Is(err, unix.EPIPE), errors.Is(err, os.ErrClosed), errors.Is(err, unix.EIO):
		return inputClosed()
	case err != nil: // the stream broke: this is not the end of the input
		return &wire.Error{Code: wire.CodeErrno, Errno: "EIO", Msg: "standard input was interrupted: " + err.Error()}
	}
	if req.KeepOpen {
		return nil
	}
	if p.tty {
		if !p.inputEnded.Swap(true) {
			go p.endTerminal()
		}
		return nil
	}
	p.stdin.Close()
	return nil
}

func inputClosed() *wire.Error {
	return &wire.Error{Code: wire.CodeErrno, Errno: "EPIPE", Msg: "the process's standard input is closed"}
}

// endTerminal gives end of file to whatever reads the terminal from now on, until the process
// ends. One VEOF (termios(3)) is not enough: after part of a line it ends only that part, and the
// kernel forgets one that waits while the reader changes the terminal's mode, as shells do
// between a command and the prompt.
func (p *process) endTerminal() {
	const first, longest = 50 * time.Millisecond, 2 * time.Second
	for pause := first; ; pause = min(2*pause, longest) {
		if _, err := p.stdin.Write([]byte{4}); err != nil { // ^D
			return
		}
		select {
		case <-p.done:
			return
		case <-time.After(pause):
		}
	}
}

func (p *process) resize(size wire.Size) *wire.Error {
	if err := setSize(p.stdin, size); err != nil {
		return errnoError("", err)
	}
	return nil
}
