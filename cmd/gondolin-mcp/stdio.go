package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// takeStdout returns standard output for our own use and leaves standard error
// in its place for everybody else in this process and its children.
func takeStdout(w io.Writer) (io.Writer, error) {
	if w != io.Writer(os.Stdout) {
		return w, nil
	}
	fd, err := unix.FcntlInt(os.Stdout.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("setting standard output aside: %w", err)
	}
	if err := unix.Dup2(int(os.Stderr.Fd()), int(os.Stdout.Fd())); err != nil {
		return nil, fmt.Errorf("setting standard output aside: %w", err)
	}
	os.Stdout = os.Stderr
	return os.NewFile(uintptr(fd), "MCP output"), nil
}

// input is a file whose blocked Read ends with Close, which os.Stdin's does not:
// without it every end by a signal would have to give the reader up. Making the
// descriptor non-blocking would do too, but for everybody who shares it.
type input struct {
	file   *os.File
	wake   *os.File // readable once Close was called
	waker  *os.File
	closed atomic.Bool
}

// wakeable makes a file an input; other readers stay what they are.
func wakeable(r io.Reader) (io.Reader, error) {
	f, ok := r.(*os.File)
	if !ok {
		return r, nil
	}
	wake, waker, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("preparing standard input: %w", err)
	}
	return &input{file: f, wake: wake, waker: waker}, nil
}

// Read waits until there is something to read, or Close.
func (i *input) Read(p []byte) (int, error) {
	fds := []unix.PollFd{{Fd: int32(i.file.Fd()), Events: unix.POLLIN}, {Fd: int32(i.wake.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case i.closed.Load():
			return 0, os.ErrClosed
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("waiting for input: %w", err)
		default:
			return i.file.Read(p) // data, the end, or an error that it tells better
		}
	}
}

// Close ends a Read that waits, and every later one. The file stays open, as it is not ours.
func (i *input) Close() error {
	if i.closed.Swap(true) {
		return nil
	}
	return i.waker.Close()
}
