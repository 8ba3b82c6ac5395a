package vfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"io/fs"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/fsport"
)

// req makes a request of a hostile guest: nothing about it is checked.
func req(op uint32, unique, node uint64, parts ...any) []byte {
	var b bytes.Buffer
	head := []any{uint32(0), op, unique, node, uint32(0), uint32(0), uint32(1), uint32(0)}
	for _, p := range append(head, parts...) {
		if s, ok := p.(string); ok {
			b.WriteString(s)
			continue
		}
		_ = binary.Write(&b, binary.LittleEndian, p)
	}
	binary.LittleEndian.PutUint32(b.Bytes(), uint32(b.Len()))
	return b.Bytes()
}

func initReq(unique uint64) []byte {
	return req(opInit, unique, 0, uint32(7), uint32(36), uint32(128<<10), ^uint32(0), make([]byte, 48))
}

// client speaks to a server as a guest that has no kernel.
type client struct {
	t      *testing.T
	conn   net.Conn
	server *Server
	served chan error
	stop   context.CancelFunc
	unique uint64
}

func dial(t *testing.T, s *Server) *client {
	t.Helper()
	host, guest := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	c := &client{t: t, conn: guest, server: s, served: make(chan error, 1), stop: cancel, unique: 100}
	go func() { c.served <- s.Serve(ctx, host) }()
	require.NoError(t, guest.SetDeadline(time.Now().Add(20*time.Second)))
	nonce, err := fsport.Await(guest, nil)
	require.NoError(t, err)
	require.NoError(t, fsport.Answer(guest, nonce))
	return c
}

// connect is dial with a FUSE connection.
func connect(t *testing.T, o Options, mounts ...Mount) *client {
	t.Helper()
	c := dial(t, newServer(t, o, mounts...))
	_, errno := c.do(initReq(2))
	require.Zero(t, errno)
	return c
}

func (c *client) send(b []byte) {
	_, err := c.conn.Write(b)
	require.NoError(c.t, err)
}

// recv returns the number, error and data of the next frame.
func (c *client) recv() (uint64, syscall.Errno, []byte) {
	c.t.Helper()
	head := make([]byte, 16)
	_, err := io.ReadFull(c.conn, head)
	require.NoError(c.t, err)
	data := make([]byte, binary.LittleEndian.Uint32(head)-16)
	_, err = io.ReadFull(c.conn, data)
	require.NoError(c.t, err)
	return binary.LittleEndian.Uint64(head[8:]), syscall.Errno(-int32(binary.LittleEndian.Uint32(head[4:]))), data
}

// do sends b and returns its reply.
func (c *client) do(b []byte) ([]byte, syscall.Errno) {
	c.t.Helper()
	c.send(b)
	for {
		unique, errno, data := c.recv()
		if unique == 0 {
			continue // a notification
		}
		require.Equal(c.t, frame(b).unique(), unique)
		return data, errno
	}
}

func (c *client) op(op uint32, node uint64, parts ...any) ([]byte, syscall.Errno) {
	c.t.Helper()
	c.unique += 2
	return c.do(req(op, c.unique, node, parts...))
}

func (c *client) lookup(node uint64, name string) uint64 {
	c.t.Helper()
	data, errno := c.op(opLookup, node, name+"\x00")
	require.Zero(c.t, errno)
	id := binary.LittleEndian.Uint64(data)
	require.NotZero(c.t, id, "%s does not exist", name)
	return id
}

// create returns the new file's node and handle.
func (c *client) create(dir uint64, name string) (node, fh uint64) {
	c.t.Helper()
	data, errno := c.op(opCreate, dir, uint32(syscall.O_RDWR|syscall.O_CREAT), uint32(0o100644), uint32(0), uint32(0), name+"\x00")
	require.Zero(c.t, errno)
	return binary.LittleEndian.Uint64(data), binary.LittleEndian.Uint64(data[128:])
}

// end closes the guest's side and returns what Serve returned.
func (c *client) end() error {
	c.t.Helper()
	require.NoError(c.t, c.conn.Close())
	defer c.stop()
	return c.wait()
}

func (c *client) wait() error {
	c.t.Helper()
	select {
	case err := <-c.served:
		return err
	case <-time.After(20 * time.Second):
		require.Fail(c.t, "the server does not end")
		return nil
	}
}

func memMount() Mount { return Mount{Name: "m", Root: NewMemory(MemoryOptions{})} }

// syncBuffer is a buffer for a logger.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// counting is a memory file system that counts what is got of it and given back.
type counting struct {
	Node
	*counts
	root bool
}

type counts struct {
	calls              atomic.Int64 // of operations on names
	nodes, files, dirs atomic.Int64 // held now
	below              atomic.Bool  // some count fell below 0
}

func newCounting() *counting {
	return &counting{Node: NewMemory(MemoryOptions{}), counts: &counts{}, root: true}
}

func (c *counts) drop(n *atomic.Int64) {
	if n.Add(-1) < 0 {
		c.below.Store(true)
	}
}

func (c *counts) assertBalanced(t *testing.T) {
	t.Helper()
	assert.Zero(t, c.nodes.Load(), "nodes that were not released")
	assert.Zero(t, c.files.Load(), "files that were not closed")
	assert.Zero(t, c.dirs.Load(), "directories that were not closed")
	assert.False(t, c.below.Load(), "something was given back twice")
}

func (c *counting) got(n Node, err error) (Node, error) {
	c.calls.Add(1)
	if err != nil {
		return nil, err
	}
	c.nodes.Add(1)
	return &counting{Node: n, counts: c.counts}, nil
}

func (c *counting) Lookup(ctx context.Context, name string) (Node, error) {
	return c.got(c.Node.Lookup(ctx, name))
}

func (c *counting) Mkdir(ctx context.Context, name string, mode fs.FileMode) (Node, error) {
	return c.got(c.Node.Mkdir(ctx, name, mode))
}

func (c *counting) Link(ctx context.Context, name string, target Node) (Node, error) {
	return c.got(c.Node.Link(ctx, name, target.(*counting).Node))
}

func (c *counting) Create(ctx context.Context, name string, flags int, mode fs.FileMode) (Node, File, error) {
	n, f, err := c.Node.Create(ctx, name, flags, mode)
	if err != nil {
		return nil, nil, err
	}
	n, _ = c.got(n, nil)
	c.files.Add(1)
	return n, &countedFile{f, c.counts}, nil
}

func (c *counting) Open(ctx context.Context, flags int) (File, error) {
	f, err := c.Node.Open(ctx, flags)
	if err != nil {
		return nil, err
	}
	c.files.Add(1)
	return &countedFile{f, c.counts}, nil
}

func (c *counting) OpenDir(ctx context.Context) (Dir, error) {
	d, err := c.Node.OpenDir(ctx)
	if err != nil {
		return nil, err
	}
	c.dirs.Add(1)
	return &countedDir{d, c.counts}, nil
}

func (c *counting) Release() {
	if c.root {
		c.below.Store(true) // it is the caller's
	}
	c.drop(&c.nodes)
}

type countedFile struct {
	File
	c *counts
}

func (f *countedFile) Close() error { f.c.drop(&f.c.files); return f.File.Close() }

type countedDir struct {
	Dir
	c *counts
}

func (d *countedDir) Close() error { d.c.drop(&d.c.dirs); return d.Dir.Close() }

// socketPair returns a connection and the blocking descriptor of its other end.
func socketPair(t *testing.T) (*blocking, int) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) })
	return &blocking{fds[0]}, fds[1]
}
