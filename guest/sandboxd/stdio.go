//go:build linux

package sandboxd

import (
	"errors"
	"os"
	"sync"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/wire"
)

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
	blocking, slave, err := pty.Open()
	if err != nil {
		return nil, err
	}
	defer blocking.Close()
	master, err := pollable(blocking)
	if err == nil {
		if err = setSize(master, *size); err != nil {
			master.Close()
		}
	}
	if err != nil {
		slave.Close()
		return nil, err
	}
	return &stdio{
		child: [3]*os.File{slave, slave, slave}, stdin: master,
		pumps: []pumpFrom{{master, wire.FrameStdout}}, closes: []*os.File{slave},
	}, nil
}

// pollable returns another handle of a file whose reads and writes end with their
// deadlines. Those of package pty do not.
func pollable(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn() // Fd would make the file blocking
	if err != nil {
		return nil, err
	}
	fd, dupErr := -1, error(nil)
	if err := raw.Control(func(of uintptr) { fd, dupErr = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, dupErr
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// setSize sets a terminal's size. (pty.Setsize would make the file blocking.)
func setSize(tty *os.File, size wire.Size) error {
	raw, err := tty.SyscallConn()
	if err != nil {
		return err
	}
	var ierr error
	err = raw.Control(func(fd uintptr) {
		ierr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
	return errors.Join(err, ierr)
}
