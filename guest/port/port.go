//go:build linux

// Package port opens the machine's virtio-serial ports (drivers/char/virtio_console.c), for
// the parts of the guest that speak on one.
package port

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Port is a virtio-serial port in blocking mode: one system call a transfer, and no
// poller between the interrupt and the reader. While the host's side is closed a read is at
// end of file at once and a write waits. A read gives 4 KiB at most and a write takes 32 KiB
// at most: so the driver has it.
type Port struct{ fd int }

// New returns the port, or socket in blocking mode, that is open on fd.
func New(fd int) *Port { return &Port{fd} }

// Wait opens a port when its device is there, which its driver makes while pid1 runs.
func Wait(name string) (*Port, error) {
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		p, err := open(name)
		if err == nil || time.Now().After(deadline) {
			return p, err
		}
		<-tick.C
	}
}

func open(name string) (*Port, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, path := range names {
		b, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(b)) != name {
			continue
		}
		dev := "/dev/" + filepath.Base(filepath.Dir(path))
		fd, err := unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("opening port %s at %s: %w", name, dev, err)
		}
		return &Port{fd}, nil
	}
	return nil, fmt.Errorf("the machine has no virtio-serial port %s", name)
}

func (p *Port) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(p.fd, b)
		switch {
		case err == unix.EINTR || err == unix.EAGAIN:
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (p *Port) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := unix.Write(p.fd, b[done:])
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// Close does nothing: the port serves the next connection, and a read that
// waits in it ends when the host closes its side.
func (p *Port) Close() error { return nil }

// Polled is a virtio-serial port whose reads and writes wait in the runtime's poller. A
// goroutine that waits in the kernel keeps the runtime's processor until the runtime's monitor
// takes it away; in a program that has one, like sandboxd, everything else waits for that.
type Polled struct{ f *os.File }

// WaitPolled opens a port as Wait does.
func WaitPolled(name string) (Polled, error) {
	p, err := Wait(name)
	if err != nil {
		return Polled{}, err
	}
	if err := unix.SetNonblock(p.fd, true); err != nil {
		return Polled{}, fmt.Errorf("port %s: %w", name, err)
	}
	return Polled{os.NewFile(uintptr(p.fd), name)}, nil
}

func (p Polled) Read(b []byte) (int, error) { return p.f.Read(b) }

func (p Polled) Write(b []byte) (int, error) { return p.f.Write(b) }

// Close does nothing, as that of a Port.
func (p Polled) Close() error { return nil }
