package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/term"

	"github.com/gondolin-go/gondolin/sandbox"
)

// detachKey is Ctrl-], as in telnet.
const detachKey = 0x1d

// terminal is this program's own terminal while a command of a machine uses it.
type terminal struct {
	file    *os.File
	before  *term.State
	winch   chan os.Signal
	restore sync.Once
}

// terminalOf is a file that is a terminal, or nil.
func terminalOf(r io.Reader) *os.File {
	if f, ok := r.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

// takeTerminal makes keys go to the machine as they are. Close gives the terminal back.
func takeTerminal(f *os.File) (*terminal, error) {
	before, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("taking the terminal over: %w", err)
	}
	t := &terminal{file: f, before: before, winch: make(chan os.Signal, 1)}
	signal.Notify(t.winch, syscall.SIGWINCH)
	return t, nil
}

// Close gives the terminal back as it was. It may be called more than once.
func (t *terminal) Close() error {
	var err error
	t.restore.Do(func() {
		signal.Stop(t.winch)
		err = term.Restore(int(t.file.Fd()), t.before)
	})
	return err
}

func (t *terminal) size() sandbox.TTYSize {
	w, h, err := term.GetSize(int(t.file.Fd()))
	if err != nil || w <= 0 || h <= 0 {
		w, h = 80, 24
	}
	return sandbox.TTYSize{Rows: uint16(min(h, 1<<16-1)), Cols: uint16(min(w, 1<<16-1))}
}

// describe gives a command a terminal like this one.
func (t *terminal) describe(cmd *sandbox.Command) {
	size := t.size()
	cmd.TTY = &size
	if name := os.Getenv("TERM"); name != "" && cmd.Env["TERM"] == "" {
		cmd.Env = withVariable(cmd.Env, "TERM", name)
	}
}

// keys is a terminal's input up to the detach key.
type keys struct {
	in   io.Reader
	left chan struct{} // closed at the key, when what came before it was taken
	over <-chan struct{}
	seen bool
}

// Read waits, after the key, until the command is over: an error or an end of the input would
// say something to the command.
func (k *keys) Read(p []byte) (int, error) {
	if !k.seen {
		n, err := k.in.Read(p)
		i := bytes.IndexByte(p[:n], detachKey)
		if i < 0 {
			return n, err
		}
		k.seen = true
		if i > 0 {
			return i, nil
		}
	}
	select {
	case <-k.left:
	default:
		close(k.left)
	}
	<-k.over
	return 0, io.EOF
}
