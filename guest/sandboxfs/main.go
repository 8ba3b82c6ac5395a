//go:build linux

package sandboxfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/fsport"
	"github.com/gondolin-go/gondolin/guest/near"
	"github.com/gondolin-go/gondolin/guest/port"
	"github.com/gondolin-go/gondolin/guest/wire"
)

// Dir is where the file system is mounted, one directory for each of the session's mounts.
const Dir = "/run/gondolin/fs"

// ReadyFD is a descriptor that Main gets and closes when it has all that it needs of the
// initramfs, whose directories move to the session's root after that.
const ReadyFD = 3

// Main serves the file port until that is impossible. The initramfs is its root.
func Main() {
	err := run()
	fmt.Fprintf(os.Stderr, "gondolin: sandboxfs: %v\n", err)
	os.Exit(1)
}

func run() error {
	_ = os.WriteFile("/proc/self/comm", []byte("sandboxfs"), 0)
	// One for each goroutine that waits in the kernel, whatever the machine has: one that
	// comes back and finds another's wait in its place waits for the runtime's monitor,
	// which can take milliseconds.
	runtime.GOMAXPROCS(4)
	p, err := port.Wait(wire.PortFS)
	if err != nil {
		return err
	}
	return serve(Dir, p, func() { unix.Close(ReadyFD) })
}

// Serve serves the hosts that begin on the stream fd, a port or a socket in
// blocking mode, one after another, with the file system at dir, whose parent
// becomes the process's working directory. It returns when fd is broken.
func Serve(dir string, fd int) error { return serve(dir, port.New(fd), func() {}) }

func serve(dir string, p *port.Port, ready func()) (err error) {
	m, err := newMounter(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	ready()
	var seen []byte
	for {
		nonce, err := fsport.Await(bufio.NewReader(knocking{p}), seen)
		if err != nil {
			return fmt.Errorf("waiting for the host: %w", err)
		}
		near.Settle()
		if seen, err = session(m, p, nonce); err != nil {
			return err
		}
	}
}

// session serves one host, and returns what was read of the next.
func session(m *mounter, p *port.Port, nonce []byte) (seen []byte, err error) {
	fuse, err := m.mount()
	if err != nil {
		return nil, err
	}
	var running sync.WaitGroup
	defer func() {
		// Ends the other goroutines' waits in the kernel. One may wait in the port until the
		// next host reads what is left.
		err = errors.Join(err, m.abort())
		running.Wait()
		err = errors.Join(err, unix.Close(fuse))
	}()
	if err := fsport.Answer(p, nonce); err != nil {
		return nil, fmt.Errorf("answering the host: %w", err)
	}
	notes, k := make(chan []byte, maxNotes), newKnown()
	defer close(notes)
	running.Add(3)
	go func() {
		defer running.Done()
		requests(fuse, p, k)
	}()
	go func() {
		defer running.Done()
		for b := range notes {
			_ = put(fuse, b) // what the kernel does not know it need not be told about
		}
	}()
	go func() {
		defer running.Done()
		m.readAhead()
	}()
	return replies(fuse, p, k, notes), nil
}

// knocking is the port while no host has begun: at its end of file it waits until
// a host opens it.
type knocking struct{ p *port.Port }

func (k knocking) Read(b []byte) (int, error) {
	for {
		n, err := k.p.Read(b)
		if !errors.Is(err, io.EOF) {
			return n, err
		}
		if _, err := k.p.Write([]byte{fsport.Knock}); err != nil {
			return 0, err
		}
	}
}
