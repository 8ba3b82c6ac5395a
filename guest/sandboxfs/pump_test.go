//go:build linux

package sandboxfs

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/fsport"
	"github.com/gondolin-go/gondolin/guest/port"
)

// The whole, with a real kernel and server, is tested in package vfs.

func pair(t *testing.T, kind int) (int, int) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) })
	return fds[0], fds[1]
}

func reply(unique uint64, size int) []byte {
	b := bytes.Repeat([]byte{byte(unique)}, size)
	binary.LittleEndian.PutUint32(b, uint32(size))
	binary.LittleEndian.PutUint64(b[8:], unique)
	return b
}

func TestRepliesReachTheKernelWholeHoweverTheyArrive(t *testing.T) {
	kernel, fuse := pair(t, unix.SOCK_SEQPACKET) // one write, one packet
	host, guest := pair(t, unix.SOCK_STREAM)
	frames := [][]byte{reply(2, 16), reply(4, 100), reply(6, 40_000), reply(8, 17), reply(10, 70_001), reply(12, 16)}
	stream := append(bytes.Join(frames, nil), fsport.Magic+"nonce..."...)
	notes := make(chan []byte, 1)
	seen := make(chan []byte, 1)
	go func() { seen <- replies(fuse, port.New(guest), newKnown(), notes) }()
	go func() {
		for len(stream) > 0 { // in pieces that divide nothing evenly
			n := min(len(stream), 4093)
			_, _ = unix.Write(host, stream[:n])
			stream = stream[n:]
		}
		_ = unix.Shutdown(host, unix.SHUT_WR)
	}()
	buf := make([]byte, 1<<20)
	for _, want := range frames {
		n, err := unix.Read(kernel, buf)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, buf[:n]), "frame %d came as %d bytes", want[8], n)
	}
	got := <-seen
	assert.Equal(t, fsport.Magic+"nonce...", string(got), "left for the next beginning")
}

func TestNotificationsDoNotHoldUpReplies(t *testing.T) {
	kernel, fuse := pair(t, unix.SOCK_SEQPACKET)
	host, guest := pair(t, unix.SOCK_STREAM)
	notes := make(chan []byte, 2) // nobody takes them, as when the kernel waits for a lock
	done := make(chan struct{})
	go func() {
		defer close(done)
		replies(fuse, port.New(guest), newKnown(), notes)
	}()
	for range 10 {
		_, err := unix.Write(host, reply(0, 40))
		require.NoError(t, err)
	}
	_, err := unix.Write(host, reply(6, 16))
	require.NoError(t, err)
	buf := make([]byte, 100)
	n, err := unix.Read(kernel, buf)
	require.NoError(t, err)
	assert.Equal(t, reply(6, 16), buf[:n])
	assert.Len(t, notes, 2)
	require.NoError(t, unix.Shutdown(host, unix.SHUT_WR))
	<-done
}

func TestRequestsStopWhenThePortBreaks(t *testing.T) {
	kernel, fuse := pair(t, unix.SOCK_SEQPACKET)
	host, guest := pair(t, unix.SOCK_STREAM)
	done := make(chan struct{})
	go func() {
		defer close(done)
		requests(fuse, port.New(guest), newKnown())
	}()
	_, err := unix.Write(kernel, []byte("a request"))
	require.NoError(t, err)
	buf := make([]byte, 100)
	n, err := unix.Read(host, buf)
	require.NoError(t, err)
	assert.Equal(t, "a request", string(buf[:n]))
	require.NoError(t, unix.Shutdown(host, unix.SHUT_RDWR))
	_, err = unix.Write(kernel, []byte("another"))
	require.NoError(t, err)
	<-done
}

func TestBindTakesNoPathThatWouldHideTheRoot(t *testing.T) {
	for _, path := range []string{"/", "relative", "", "/../"} {
		assert.ErrorContains(t, bindOne("/", Mount{Path: path}), "no absolute path below /", "%q", path)
	}
}
