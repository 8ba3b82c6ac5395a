package vfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/guest/fsport"
)

// FuzzServerFrames sends a server whatever a hostile guest might: each input is a
// stream of frames behind FUSE_INIT. The server must neither panic nor hang, log more
// than a line or two, or leave anything open.
func FuzzServerFrames(f *testing.F) {
	const m, file = 2, 3 // the ids that the mount's root and the first new file get
	create := req(opCreate, 6, m, uint32(syscall.O_RDWR|syscall.O_CREAT), uint32(0o100644), uint32(0), uint32(0), "file\x00")
	start := bytes.Join([][]byte{req(opLookup, 4, 1, "m\x00"), create}, nil)
	seed := func(frames ...[]byte) { f.Add(append(bytes.Clone(start), bytes.Join(frames, nil)...)) }
	const fh = 4
	io := func(op uint32, size uint32, data string) []byte {
		return req(op, 8, file, uint64(fh), uint64(0), size, uint32(0), uint64(0), uint64(0), data)
	}
	seed(io(opWrite, 4, "data"), io(opRead, 4096, ""))
	seed(req(opSetattr, 8, file, uint32(8|64), uint32(0), uint64(fh), uint64(1<<40), make([]byte, 64)), io(opRead, 100, ""))
	seed(req(opFallocate, 8, file, uint64(fh), uint64(0), uint64(1<<30), uint32(3), uint32(0)),
		req(opLseek, 10, file, uint64(fh), uint64(0), uint32(4), uint32(0)))
	seed(req(opOpendir, 8, m, uint64(0)), req(opReaddirplus, 10, m, uint64(5), uint64(0), uint32(4096), make([]byte, 20)))
	seed(req(opMkdir, 8, m, uint32(0o755), uint32(0), "dir\x00"), req(opRename, 10, m, uint64(5), "file\x00x\x00"), req(opRename2, 12, 5, uint64(5), uint64(2), "x\x00y\x00"))
	seed(req(opSymlink, 8, m, "link\x00target\x00"), req(opReadlink, 10, 5), req(opLink, 12, m, uint64(file), "two\x00"), req(opUnlink, 14, m, "two\x00"))
	seed(req(opSetxattr, 8, file, uint32(3), uint32(0), "user.a\x00abc"), req(opGetxattr, 10, file, uint64(100), "user.a\x00"), req(opListxattr, 12, file, uint64(100)))
	seed(req(opForget, 0, file, uint64(1)), req(opBatchForget, 0, 0, uint32(1), uint32(0), uint64(file), ^uint64(0)), req(opRelease, 10, file, uint64(fh), uint64(0), uint64(0)))
	seed(req(opCopyFileRange, 8, file, uint64(fh), uint64(0), uint64(file), uint64(fh), uint64(100), uint64(1<<20), uint64(0)))
	seed(initReq(8), req(opGetattr, 10, m, uint64(0), uint64(0)), req(opInterrupt, 11, 0, uint64(10)), req(opDestroy, 12, 0))
	seed(req(opMknod, 8, m, uint32(syscall.S_IFCHR), uint32(1), uint64(0), "c\x00"), req(opStatfs, 10, 1), req(99, 12, 0))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})

	var global syncBuffer
	was := log.Writer()
	log.SetOutput(&global) // go-fuse has a few words for the standard logger
	f.Cleanup(func() { log.SetOutput(was) })
	f.Fuzz(func(t *testing.T, stream []byte) {
		if len(stream) > 64<<10 {
			return
		}
		p := newCounting()
		p.Node = NewMemory(MemoryOptions{MaxBytes: 1 << 20, MaxFiles: 100})
		var lines syncBuffer
		s := newServer(t, Options{
			MaxNodes: 50, MaxFiles: 10, MaxDirs: 10,
			MaxWorkers: 1 + 3*(len(stream)%2), // in order, or not
			Logger:     slog.New(slog.NewTextHandler(&lines, nil)),
		}, Mount{Name: "m", Root: p})
		host, guest := net.Pipe()
		served := make(chan error, 1)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() { served <- s.Serve(ctx, host) }()
		require.NoError(t, guest.SetDeadline(time.Now().Add(10*time.Second)))
		nonce, err := fsport.Await(guest, nil)
		require.NoError(t, err)
		drained := make(chan struct{})
		require.NoError(t, fsport.Answer(guest, nonce))
		go func() {
			defer close(drained)
			drain(t, guest)
		}()
		if _, err := guest.Write(initReq(2)); err == nil {
			_, _ = guest.Write(stream)
		}
		require.NoError(t, guest.Close())
		select {
		case <-served:
		case <-time.After(10 * time.Second):
			t.Fatal("the server hangs")
		}
		<-drained
		p.assertBalanced(t)
		require.NotContains(t, lines.String(), "panicked")
		require.LessOrEqual(t, strings.Count(lines.String(), "\n"), 1)
		require.Empty(t, global.String())
	})
}

// drain reads replies, which have to be well formed whatever was asked.
func drain(t *testing.T, r io.Reader) {
	head := make([]byte, outHeader)
	for {
		if _, err := io.ReadFull(r, head); err != nil {
			return
		}
		n := binary.LittleEndian.Uint32(head)
		if n < uint32(outHeader) || n > fsport.MaxFrame {
			t.Errorf("a reply of %d bytes", n)
			return
		}
		if _, err := io.CopyN(io.Discard, r, int64(n)-int64(outHeader)); err != nil {
			return
		}
	}
}
