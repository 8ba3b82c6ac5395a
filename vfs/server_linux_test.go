package vfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gondolin-go/gondolin/guest/fsport"
)

func TestTheKernelIsOfferedLargeRequests(t *testing.T) {
	c := dial(t, newServer(t, Options{}, memMount()))
	data, errno := c.do(initReq(2))
	require.Zero(t, errno)
	assert.Equal(t, uint32(7), binary.LittleEndian.Uint32(data))
	flags := binary.LittleEndian.Uint32(data[12:])
	assert.Equal(t, uint32(1<<20), binary.LittleEndian.Uint32(data[20:]), "max_write")
	assert.Equal(t, uint16(256), binary.LittleEndian.Uint16(data[28:]), "max_pages")
	for name, bit := range map[string]int{
		"async read": 0, "atomic O_TRUNC": 3, "big writes": 5, "auto invalidation": 12,
		"readdirplus": 13, "parallel dirops": 18, "max pages": 22, "killpriv v2": 28,
	} {
		assert.NotZero(t, flags&(1<<bit), name)
	}
	for name, bit := range map[string]int{
		"posix locks": 1, "export": 4, "splice": 7, "flock": 10, "adaptive readdirplus": 14, "writeback cache": 16, "no open": 17, "ACLs": 20,
	} {
		assert.Zero(t, flags&(1<<bit), name)
	}
	require.NoError(t, c.end())
}

func TestTheGuestHearsWhatItsOwnRequestsChanged(t *testing.T) {
	c := connect(t, Options{}, memMount(), Mount{Name: "asks", Root: NewMemory(MemoryOptions{}), Timeout: -1})
	write := func(mount string) (uint64, []byte) {
		node, fh := c.create(c.lookup(rootID, mount), "file")
		c.send(req(opWrite, 1000, node, fh, uint64(0), uint32(4), uint32(0), uint64(0), uint64(0), "data"))
		unique, code, data := c.recv()
		if unique != 0 {
			return node, nil
		}
		require.EqualValues(t, fsport.NoteAttr, -int32(code))
		unique, _, _ = c.recv()
		require.EqualValues(t, 1000, unique, "the note comes before the reply")
		return node, data
	}
	node, note := write("m")
	require.Len(t, note, 8+fsport.AttrOut)
	assert.Equal(t, node, binary.LittleEndian.Uint64(note))
	asked, errno := c.op(opGetattr, node, uint64(0), uint64(0))
	require.Zero(t, errno)
	assert.Equal(t, asked, note[8:])
	_, note = write("asks")
	assert.Nil(t, note, "a mount whose attributes are to be asked for each time")
	require.NoError(t, c.end())
}

func TestNamesThatAreNoNamesReachNoProvider(t *testing.T) {
	p := newCounting()
	c := connect(t, Options{}, Mount{Name: "m", Root: p})
	m := c.lookup(rootID, "m")
	before := p.calls.Load()
	for _, name := range []string{"", ".", "..", "a/b", "/", strings.Repeat("x", 256), "nul\x00inside"} {
		for _, r := range [][]any{
			{uint32(opLookup), name + "\x00"},
			{uint32(opUnlink), name + "\x00"},
			{uint32(opRmdir), name + "\x00"},
			{uint32(opMkdir), uint32(0o755), uint32(0), name + "\x00"},
			{uint32(opMknod), uint32(0o100644), uint32(0), uint32(0), uint32(0), name + "\x00"},
			{uint32(opCreate), uint32(2), uint32(0o100644), uint32(0), uint32(0), name + "\x00"},
			{uint32(opSymlink), name + "\x00target\x00"},
			{uint32(opLink), m, name + "\x00"},
			{uint32(opRename), m, name + "\x00ok\x00"},
			{uint32(opRename2), m, uint32(0), uint32(0), "ok\x00" + name + "\x00"},
		} {
			_, errno := c.op(r[0].(uint32), m, r[1:]...)
			assert.NotZero(t, errno, "operation %d with %q", r[0], name)
		}
	}
	assert.Equal(t, before, p.calls.Load(), "a provider was asked")
	require.NoError(t, c.end())
}

func TestRequestsThatNoKernelMakesAreRefused(t *testing.T) {
	c := connect(t, Options{}, memMount(), Mount{Name: "other", Root: NewMemory(MemoryOptions{})})
	m, other := c.lookup(rootID, "m"), c.lookup(rootID, "other")
	node, fh := c.create(m, "file")
	second, fh2 := c.create(m, "second")
	opened, errno := c.op(opOpendir, m, uint32(0), uint32(0))
	require.Zero(t, errno)
	dh := binary.LittleEndian.Uint64(opened)
	linkData, errno := c.op(opSymlink, m, "link\x00/etc\x00")
	require.Zero(t, errno)
	link := binary.LittleEndian.Uint64(linkData)
	read := func(fh uint64, size uint32) []any {
		return []any{fh, uint64(0), size, uint32(0), uint64(0), uint32(0), uint32(0)}
	}
	for _, r := range []struct {
		what string
		want syscall.Errno
		op   uint32
		node uint64
		args []any
	}{
		{"unknown operation", syscall.ENOSYS, 99, m, nil},
		{"ioctl", syscall.ENOSYS, 39, node, []any{make([]byte, 32)}},
		{"poll", syscall.ENOSYS, 40, node, []any{make([]byte, 24)}},
		{"CUSE", syscall.ENOSYS, 4096, 0, []any{make([]byte, 16)}},
		{"unknown node", syscall.ESTALE, opGetattr, 12345, []any{uint64(0), uint64(0)}},
		{"go-fuse's own node", syscall.ESTALE, opOpen, ^uint64(0), []any{uint64(0)}},
		{"go-fuse's own name", syscall.ENOENT, opLookup, rootID, []any{".go-fuse-epoll-hack\x00"}},
		{"node 0", syscall.ESTALE, opStatfs, 0, nil},
		{"unknown handle", syscall.EBADF, opRead, node, read(999, 10)},
		{"directory's handle as a file's", syscall.EBADF, opRead, m, read(dh, 10)},
		{"file's handle as a directory's", syscall.EBADF, opReaddir, node, read(fh, 4096)},
		{"another node's handle", syscall.EBADF, opRead, second, read(fh, 10)},
		{"too large a read", syscall.EINVAL, opRead, node, read(fh, 1<<31)},
		{"too large a listing", syscall.EINVAL, opReaddirplus, m, read(dh, 1<<20+1)},
		{"short request", syscall.EINVAL, opRead, node, []any{fh}},
		{"write of another length", syscall.EINVAL, opWrite, node, []any{fh, uint64(0), uint32(100), uint32(0), uint64(0), uint64(0), "short"}},
		{"attribute of another length", syscall.EINVAL, opSetxattr, node, []any{uint32(100), uint32(0), "user.a\x00value"}},
		{"attribute without a name", syscall.EINVAL, opGetxattr, node, []any{uint64(100), "\x00"}},
		{"too large an attribute", syscall.EINVAL, opGetxattr, node, []any{uint64(1 << 30), "user.a\x00"}},
		{"character device", syscall.EPERM, opMknod, m, []any{uint32(syscall.S_IFCHR | 0o666), uint32(0x103), uint64(0), "null\x00"}},
		{"block device", syscall.EPERM, opMknod, m, []any{uint32(syscall.S_IFBLK | 0o666), uint32(0x800), uint64(0), "sda\x00"}},
		{"rename to another mount", syscall.EXDEV, opRename, m, []any{other, "file\x00file\x00"}},
		{"rename into the root", syscall.EXDEV, opRename, m, []any{uint64(rootID), "file\x00file\x00"}},
		{"link to another mount's file", syscall.EXDEV, opLink, other, []any{node, "file\x00"}},
		{"whiteout", syscall.EINVAL, opRename2, m, []any{m, uint32(4), uint32(0), "file\x00new\x00"}},
		{"name below a file", syscall.ENOTDIR, opLookup, node, []any{"x\x00"}},
		{"name below a link", syscall.ENOTDIR, opLookup, link, []any{"passwd\x00"}},
		{"file in the root", syscall.EROFS, opCreate, rootID, []any{uint32(2), uint32(0o644), uint64(0), "x\x00"}},
		{"removal of a mount", syscall.EROFS, opRmdir, rootID, []any{"m\x00"}},
		{"copy over a directory's handle", syscall.EBADF, opCopyFileRange, node, []any{fh, uint64(0), m, dh, uint64(0), uint64(1), uint64(0)}},
		{"offset that overflows", syscall.EFBIG, opWrite, node, []any{fh, uint64(1)<<63 - 1, uint32(4), uint32(0), uint64(0), uint64(0), "data"}},
	} {
		_, errno := c.op(r.op, r.node, r.args...)
		assert.Equal(t, r.want, errno, r.what)
	}
	// All that left the good handles alone.
	_, errno = c.op(opWrite, second, fh2, uint64(0), uint32(4), uint32(0), uint64(0), uint64(0), "data")
	assert.Zero(t, errno)
	data, errno := c.op(opRead, second, read(fh2, 100)...)
	assert.Zero(t, errno)
	assert.Equal(t, "data", string(data))
	require.NoError(t, c.end())
}

func TestFramesThatNoKernelSendsEndTheConnection(t *testing.T) {
	for name, b := range map[string][]byte{
		"shorter than a header": append([]byte{39, 0, 0, 0}, make([]byte, 36)...),
		"absurdly long":         append([]byte{0, 0, 0, 0xf0}, make([]byte, 36)...),
		"forgets miscounted":    req(opBatchForget, 4, 0, uint32(1000), uint32(0), make([]byte, 16)),
		"short forget":          req(opForget, 4, 2),
		"short interrupt":       req(opInterrupt, 4, 0),
		"FUSE of the future":    req(opInit, 4, 0, uint32(8), uint32(0), make([]byte, 56)),
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			c := connect(t, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, memMount())
			c.send(b)
			require.ErrorIs(t, c.wait(), ErrProtocol)
			assert.Equal(t, 1, strings.Count(log.String(), "\n"), "one line in the log: %s", log.String())
		})
	}
	t.Run("before FUSE_INIT", func(t *testing.T) {
		c := dial(t, newServer(t, Options{}, memMount()))
		c.send(req(opGetattr, 2, 1, uint64(0), uint64(0)))
		require.ErrorIs(t, c.wait(), ErrProtocol)
	})
	t.Run("half a frame", func(t *testing.T) {
		c := connect(t, Options{}, memMount())
		c.send(initReq(4)[:50])
		require.ErrorIs(t, c.end(), io.ErrUnexpectedEOF)
	})
}

func TestForgettingTooMuchOrTheRootDoesNoHarm(t *testing.T) {
	p := newCounting()
	c := connect(t, Options{}, Mount{Name: "m", Root: p})
	m := c.lookup(rootID, "m")
	node, fh := c.create(m, "file")
	_, errno := c.op(opRelease, node, fh, uint32(0), uint32(0), uint64(0))
	require.Zero(t, errno)
	for _, id := range []uint64{rootID, m, node, node, 0, 777} {
		c.send(req(opForget, 4, id, ^uint64(0)))
	}
	c.send(req(opBatchForget, 4, 0, uint32(2), uint32(0), node, ^uint64(0), uint64(rootID), uint64(5)))
	_, errno = c.op(opGetattr, node, uint64(0), uint64(0))
	assert.Equal(t, syscall.ESTALE, errno)
	assert.Equal(t, m, c.lookup(rootID, "m"), "the mount's root is gone")
	again := c.lookup(m, "file")
	assert.NotEqual(t, node, again, "a node id was given twice")
	require.NoError(t, c.end())
	p.assertBalanced(t)
}

func TestEverythingIsReleasedAndClosedOnceWhenTheGuestGoesAway(t *testing.T) {
	for _, how := range []string{"close", "init", "cancel"} {
		t.Run(how, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			p := newCounting()
			c := connect(t, Options{}, Mount{Name: "m", Root: watched{p, nil}})
			m := c.lookup(rootID, "m")
			for i := range 20 {
				node, fh := c.create(m, fmt.Sprint("file", i))
				switch i % 4 {
				case 0: // open and known
				case 1:
					c.send(req(opForget, 4, node, uint64(1))) // open, and forgotten by a hostile guest
				case 2:
					_, errno := c.op(opRelease, node, fh, uint32(0), uint32(0), uint64(0))
					require.Zero(t, errno)
				case 3:
					c.lookup(m, fmt.Sprint("file", i))
				}
			}
			d, errno := c.op(opOpendir, m, uint32(0), uint32(0))
			require.Zero(t, errno)
			list, errno := c.op(opReaddirplus, m, d[:8], uint64(0), uint32(2000), uint32(0), uint64(0), uint64(0))
			require.Zero(t, errno)
			require.NotEmpty(t, list)
			switch how {
			case "close":
				require.NoError(t, c.end())
			case "init":
				_, errno := c.do(initReq(2))
				require.Zero(t, errno)
				p.assertBalanced(t)
				_, errno = c.op(opGetattr, m, uint64(0), uint64(0))
				require.Equal(t, syscall.ESTALE, errno, "a node of the last world is known in this")
				require.NoError(t, c.end())
			case "cancel":
				c.stop()
				require.ErrorIs(t, c.wait(), context.Canceled)
			}
			p.assertBalanced(t)
		})
	}
}

func TestTablesAreBounded(t *testing.T) {
	p := newCounting()
	c := connect(t, Options{MaxNodes: 10, MaxFiles: 5, MaxDirs: 3}, Mount{Name: "m", Root: p})
	m := c.lookup(rootID, "m")
	node, _ := c.create(m, "file")
	for range 4 {
		_, errno := c.op(opOpen, node, uint32(0), uint32(0))
		require.Zero(t, errno)
	}
	_, errno := c.op(opOpen, node, uint32(0), uint32(0))
	assert.Equal(t, syscall.ENFILE, errno)
	for i := range 10 {
		_, errno = c.op(opOpendir, m, uint32(0), uint32(0))
		assert.Equal(t, i >= 3, errno == syscall.ENFILE, "directory %d", i)
	}
	made := 0
	for i := range 30 {
		if _, errno = c.op(opMkdir, m, uint32(0o755), uint32(0), fmt.Sprint("dir", i, "\x00")); errno == 0 {
			made++
		}
	}
	assert.Equal(t, syscall.ENFILE, errno)
	assert.Less(t, made, 10)
	require.NoError(t, c.end())
	p.assertBalanced(t)
}

func TestAPanicOfAProviderIsAnErrorOfOneRequest(t *testing.T) {
	var log syncBuffer
	c := connect(t, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, Mount{Name: "m", Root: panicking{NewMemory(MemoryOptions{})}})
	m := c.lookup(rootID, "m")
	for range 20 {
		_, errno := c.op(opStatfs, m)
		require.Equal(t, syscall.EIO, errno)
	}
	_, errno := c.op(opGetattr, m, uint64(0), uint64(0))
	assert.Zero(t, errno)
	require.NoError(t, c.end())
	assert.Equal(t, maxPanics, strings.Count(log.String(), "a file provider panicked"))
}

type panicking struct{ Node }

func (panicking) StatFS(context.Context) (StatFS, error) { panic("made by the test") }

func TestAnInterruptEndsARequestThatRunsAndOneThatWaits(t *testing.T) {
	p := &blocked{Node: NewMemory(MemoryOptions{}), began: make(chan struct{}, 10)}
	c := connect(t, Options{MaxWorkers: 1}, Mount{Name: "m", Root: p})
	m := c.lookup(rootID, "m")
	c.send(req(opStatfs, 1000, m))
	<-p.began
	c.send(req(opStatfs, 1002, m)) // behind it
	c.send(req(opInterrupt, 1003, 0, uint64(1002)))
	c.send(req(opInterrupt, 1001, 0, uint64(1000)))
	c.send(req(opInterrupt, 1001, 0, uint64(1000)))
	c.send(req(opInterrupt, 5, 0, uint64(4))) // one that does not exist
	got := map[uint64]syscall.Errno{}
	for range 2 {
		unique, errno, _ := c.recv()
		got[unique] = errno
	}
	assert.Equal(t, map[uint64]syscall.Errno{1000: syscall.EINTR, 1002: syscall.EINTR}, got)
	require.NoError(t, c.end())
}

// blocked answers StatFS when its context ends.
type blocked struct {
	Node
	began chan struct{}
}

func (b *blocked) StatFS(ctx context.Context) (StatFS, error) {
	b.began <- struct{}{}
	<-ctx.Done()
	return StatFS{}, ctx.Err()
}

func TestAFloodOfRequestsStopsAtTheBoundAndStillEnds(t *testing.T) {
	p := &blocked{Node: NewMemory(MemoryOptions{}), began: make(chan struct{}, 1000)}
	c := connect(t, Options{MaxWorkers: 4, MaxRequests: 50}, Mount{Name: "m", Root: p})
	m := c.lookup(rootID, "m")
	sent := make(chan int)
	go func() {
		n := 0
		for ; n < 10000; n++ {
			_ = c.conn.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
			if _, err := c.conn.Write(req(opStatfs, uint64(1000+2*n), m)); err != nil {
				break
			}
		}
		sent <- n
	}()
	// What the server's reader has buffered comes on top: 64 KiB.
	assert.Less(t, <-sent, 50+64<<10/40+2)
	assert.LessOrEqual(t, len(p.began), 4)
	c.stop()
	require.ErrorIs(t, c.wait(), context.Canceled)
}

func TestAGuestThatDoesNotReadEndsItsConnectionOnly(t *testing.T) {
	c := connect(t, Options{WriteTimeout: time.Second}, memMount())
	c.send(req(opGetattr, 4, rootID, uint64(0), uint64(0)))
	require.ErrorContains(t, c.wait(), "has not read")
}

func TestTwoRequestsOfOneNumberEndTheConnection(t *testing.T) {
	p := &blocked{Node: NewMemory(MemoryOptions{}), began: make(chan struct{}, 10)}
	c := connect(t, Options{}, Mount{Name: "m", Root: p})
	m := c.lookup(rootID, "m")
	c.send(req(opStatfs, 1000, m))
	<-p.began
	c.send(req(opStatfs, 1000, m))
	require.ErrorIs(t, c.wait(), ErrProtocol)
}

func TestOneFileHasOneNodeByWhateverName(t *testing.T) {
	p := newCounting()
	c := connect(t, Options{}, Mount{Name: "m", Root: p}, Mount{Name: "n", Root: NewMemory(MemoryOptions{})})
	m, n := c.lookup(rootID, "m"), c.lookup(rootID, "n")
	node, _ := c.create(m, "file")
	_, errno := c.op(opLink, m, node, "second\x00")
	require.Zero(t, errno)
	assert.Equal(t, node, c.lookup(m, "second"))
	ino := func(id uint64) uint64 {
		data, errno := c.op(opGetattr, id, uint64(0), uint64(0))
		require.Zero(t, errno)
		return binary.LittleEndian.Uint64(data[16:])
	}
	other, _ := c.create(n, "file")
	assert.NotEqual(t, ino(node), ino(other), "files of two mounts share an inode number")
	assert.NotEqual(t, ino(m), ino(n))
	require.NoError(t, c.end())
	p.assertBalanced(t)
}

func TestOptionsThatMakeNoSenseAreAllToldAtOnce(t *testing.T) {
	_, err := New(Options{Mounts: []Mount{{Name: "a/b", Root: NewMemory(MemoryOptions{})}, memMount(), memMount(), {Name: "x"}}})
	require.ErrorContains(t, err, `"a/b" is no file name`)
	require.ErrorContains(t, err, `the name "m" is taken`)
	require.ErrorContains(t, err, `"x" has no root`)
}
