package vfs

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/sandboxfs"
)

// Tests in this file run the guest's end in a mount namespace of this machine, so
// that a real kernel speaks to the server. They need root and /dev/fuse.

const insideEnv = "GONDOLIN_TEST_MOUNTS"

// inNamespace runs the calling test again in a process with a mount namespace of
// its own, and reports whether this is that process.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideEnv) != "" {
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skip("no FUSE on this machine: ", err)
	} else {
		f.Close()
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	// Go polls files that it opens, and waits for the answer with a processor in hand:
	// the server, in the same process, must have others.
	cmd.Env = append(os.Environ(), insideEnv+"=1", "GOMAXPROCS=8")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if bytes.Contains(out, []byte("operation not permitted")) && !bytes.Contains(out, []byte("--- ")) {
		t.Skipf("no mount namespaces here: %s", out)
	}
	if testing.Verbose() || err != nil {
		t.Logf("%s", out)
	}
	require.NoError(t, err)
	return false
}

// guest is this machine's kernel as the guest of a server.
type guest struct {
	dir    string
	fd     int // the guest's end of the port
	ended  chan error
	server *Server
}

// blocking is the host's end of the port. It stays out of Go's poller: that waits in
// the kernel for a file to be polled, which waits for the server, which must not wait for
// the poller.
type blocking struct {
	fd int
}

func (b *blocking) Read(p []byte) (int, error) {
	n, err := unix.Read(b.fd, p)
	switch {
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

func (b *blocking) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Write(b.fd, p[done:])
		if err != nil && err != unix.EINTR {
			return done, err
		}
		done += max(n, 0)
	}
	return done, nil
}

func (b *blocking) Close() error { return unix.Shutdown(b.fd, unix.SHUT_RDWR) }

// startGuest mounts s's files and returns when they answer.
func startGuest(t *testing.T, s *Server) *guest {
	conn, fd := socketPair(t)
	return startGuestOn(t, s, conn, fd)
}

func startGuestOn(t *testing.T, s *Server, conn io.ReadWriteCloser, fd int) *guest {
	g := &guest{dir: filepath.Join(t.TempDir(), "fs"), fd: fd, ended: make(chan error, 1), server: s}
	go func() { g.ended <- sandboxfs.Serve(g.dir, fd) }()
	served := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { served <- s.Serve(ctx, conn) }()
	t.Cleanup(func() {
		cancel()
		assert.ErrorIs(t, <-served, context.Canceled)
		assert.Error(t, <-g.ended) // the socket, unlike a port, ends
	})
	g.wait(t)
	return g
}

func (g *guest) wait(t *testing.T) {
	require.Eventually(t, func() bool {
		var up, st unix.Stat_t
		return unix.Stat(filepath.Dir(g.dir), &up) == nil && unix.Stat(g.dir, &st) == nil && up.Dev != st.Dev
	}, 10*time.Second, time.Millisecond)
}

func newServer(t *testing.T, o Options, mounts ...Mount) *Server {
	o.Mounts = mounts
	s, err := New(o)
	require.NoError(t, err)
	return s
}

// settlePoll makes the kernel learn that files cannot be polled, in a call that the runtime knows to
// wait. It adds files that it opens to its poller in one that it does not know so: a collection of garbage
// that begins then stops the server, which that call waits for.
func settlePoll(t *testing.T, dir string) {
	path := filepath.Join(dir, ".poll")
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	require.NoError(t, err)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Close(fd))
	require.NoError(t, unix.Unlink(path))
}

func TestMemoryPassesPosixtestOnARealKernel(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	for name, private := range map[string]bool{"shared": false, "private": true} {
		t.Run(name, func(t *testing.T) {
			runPosix(t, NewMemory(MemoryOptions{}), private)
		})
	}
}

// runPosix runs go-fuse's tests on root.
func runPosix(t *testing.T, root Node, private bool) {
	s := newServer(t, Options{}, Mount{Name: "m", Root: root, Private: private})
	g := startGuest(t, s)
	base := filepath.Join(g.dir, "m")
	settlePoll(t, base)
	for name, f := range posixtest.All {
		t.Run(name, func(t *testing.T) {
			if why := notForUs[name]; why != "" {
				t.Skip(why)
			}
			dir := filepath.Join(base, name)
			require.NoError(t, os.Mkdir(dir, 0o755))
			f(t, dir)
		})
	}
}

func TestAFileIsReadAndWrittenInLargeRequests(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	s := newServer(t, Options{}, Mount{Name: "m", Root: NewMemory(MemoryOptions{}), Private: true})
	g := startGuest(t, s)
	settlePoll(t, filepath.Join(g.dir, "m"))
	path := filepath.Join(g.dir, "m", "big")
	want := bytes.Repeat([]byte("0123456789abcde\n"), 4<<20)
	start := time.Now()
	require.NoError(t, os.WriteFile(path, want, 0o644))
	wrote := time.Since(start)
	dropCaches(t, path)
	start = time.Now()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	got := make([]byte, len(want))
	_, err = io.ReadFull(f, got)
	require.NoError(t, err)
	read := time.Since(start)
	require.True(t, bytes.Equal(want, got))
	t.Logf("write %.0f MB/s, read %.0f MB/s", 64/wrote.Seconds(), 64/read.Seconds())
}

func dropCaches(t *testing.T, path string) {
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
	require.NoError(t, unix.Close(fd))
}

// watched is a provider that its test changes behind the server's back, and that
// reports what it is told to.
type watched struct {
	Node
	events chan Changed
}

func (w watched) Watch(ctx context.Context, changed func(Changed)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-w.events:
			changed(e)
		}
	}
}

func TestTheGuestSeesWhatChangesOnTheHost(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	ctx := context.Background()
	root := NewMemory(MemoryOptions{})
	w := watched{root, make(chan Changed)}
	s := newServer(t, Options{}, Mount{Name: "told", Root: w, Private: true}, Mount{Name: "asked", Root: NewMemory(MemoryOptions{})})
	g := startGuest(t, s)
	settlePoll(t, filepath.Join(g.dir, "told"))
	write := func(root Node, name, content string) uint64 {
		n, f, err := root.Create(ctx, name, syscall.O_WRONLY|syscall.O_TRUNC, 0o644)
		require.NoError(t, err)
		_, err = f.WriteAt(ctx, []byte(content), 0)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		a, err := n.Attr(ctx)
		require.NoError(t, err)
		return a.Ino
	}
	read := func(path ...string) string {
		b, err := os.ReadFile(filepath.Join(append([]string{g.dir}, path...)...))
		if err != nil {
			return err.Error()
		}
		return string(b)
	}

	t.Run("within the timeout", func(t *testing.T) {
		asked := s.mounts[1].Root
		write(asked, "file", "before")
		require.Equal(t, "before", read("asked", "file"))
		start := time.Now()
		write(asked, "file", "after!") // of the same length
		write(asked, "new", "new")
		require.Eventually(t, func() bool { return read("asked", "file") == "after!" }, 5*time.Second, time.Millisecond)
		require.Eventually(t, func() bool { return read("asked", "new") == "new" }, 5*time.Second, time.Millisecond)
		t.Log("seen after", time.Since(start))
	})
	t.Run("at once when the provider tells", func(t *testing.T) {
		// With timeouts of an hour nothing but the notification can do it.
		ino := write(root, "file", "before")
		require.Equal(t, "before", read("told", "file"))
		require.Contains(t, read("told", "new"), "no such file")
		write(root, "file", "after, and longer")
		w.events <- Changed{Ino: ino}
		require.Eventually(t, func() bool { return read("told", "file") == "after, and longer" }, 5*time.Second, time.Millisecond)
		write(root, "new", "new")
		w.events <- Changed{Dir: 1, Name: "new"}
		require.Eventually(t, func() bool { return read("told", "new") == "new" }, 5*time.Second, time.Millisecond)
		require.NoError(t, root.Unlink(ctx, "new"))
		w.events <- Changed{Dir: 1, Name: "new"}
		require.Eventually(t, func() bool { return read("told", "new") != "new" }, 5*time.Second, time.Millisecond)
	})
	t.Run("a report on a directory that still is there leaves it", func(t *testing.T) {
		dir := filepath.Join(g.dir, "told", "dir")
		require.NoError(t, os.Mkdir(dir, 0o755))
		require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
		defer func() { assert.NoError(t, unix.Unmount(dir, 0)) }()
		w.events <- Changed{Dir: 1, Name: "dir"}
		write(root, "mark", "")
		w.events <- Changed{Dir: 1, Name: "mark"}
		require.Eventually(t, func() bool { return read("told", "mark") == "" }, 5*time.Second, time.Millisecond)
		var st unix.Statfs_t
		require.NoError(t, unix.Statfs(dir, &st))
		assert.Equal(t, int64(unix.TMPFS_MAGIC), int64(st.Type), "what was mounted there is gone")
	})
}

func TestNotificationsAndRequestsDoNotWaitForEachOther(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	w := watched{NewMemory(MemoryOptions{}), make(chan Changed)}
	s := newServer(t, Options{}, Mount{Name: "m", Root: w})
	g := startGuest(t, s)
	base := filepath.Join(g.dir, "m")
	settlePoll(t, base)
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Each of these holds the directory's lock in the kernel while it waits for the
		// server; an invalidation in the directory waits for that lock.
		for i := range 300 {
			path := filepath.Join(base, "dir"+string(rune('a'+i%3)))
			assert.NoError(t, os.Mkdir(path, 0o755))
			assert.NoError(t, os.Remove(path))
		}
	}()
	for i := 0; ; i++ {
		select {
		case <-done:
			return
		case w.events <- Changed{Dir: 1, Name: "dir" + string(rune('a'+i%3))}:
		case <-time.After(20 * time.Second):
			t.Fatal("stuck")
		}
	}
}

func TestALostPortEndsWithErrorsAndANewHostServesAgain(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) }()
	g := &guest{dir: filepath.Join(t.TempDir(), "fs"), ended: make(chan error, 1)}
	go func() { g.ended <- sandboxfs.Serve(g.dir, fds[1]) }()
	p := newCounting()
	stuck := &blocked{Node: p, began: make(chan struct{}, 10)}
	s := newServer(t, Options{}, Mount{Name: "m", Root: stuck})
	serve := func() (*halfPort, context.CancelFunc, chan error) {
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		h := &halfPort{blocking: blocking{fds[0]}}
		go func() { served <- s.Serve(ctx, h) }()
		return h, cancel, served
	}

	_, cancel, served := serve()
	g.wait(t)
	base := filepath.Join(g.dir, "m")
	settlePoll(t, base)
	bound := filepath.Join(t.TempDir(), "deep", "workspace")
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(bound, unix.MNT_DETACH)) })
	require.NoError(t, sandboxfs.BindAt(g.dir, []sandboxfs.Mount{{Name: "m", Path: bound}}))
	require.NoError(t, os.WriteFile(filepath.Join(bound, "file"), []byte("kept"), 0o644))
	old, err := unix.Open(filepath.Join(bound, "file"), unix.O_RDONLY, 0)
	require.NoError(t, err)
	defer unix.Close(old)
	waits := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		waits <- unix.Statfs(bound, &st) // the provider blocks on it
	}()
	<-stuck.began
	// The host goes away without a word, as a port that is closed and opened again at once.
	cancel()
	require.ErrorIs(t, <-served, context.Canceled)
	p.assertBalanced(t)

	_, cancel, served = serve()
	require.Error(t, <-waits, "a program that waited for the lost host waits on")
	g.wait(t)
	_, err = unix.Read(old, make([]byte, 1))
	require.Error(t, err, "an open file of the lost connection works")
	require.NoError(t, sandboxfs.BindAt(g.dir, []sandboxfs.Mount{{Name: "m", Path: bound, ReadOnly: true}}))
	b, err := os.ReadFile(filepath.Join(bound, "file"))
	require.NoError(t, err)
	assert.Equal(t, "kept", string(b))
	assert.ErrorIs(t, os.WriteFile(filepath.Join(bound, "other"), nil, 0o644), syscall.EROFS)
	cancel()
	<-served
	require.NoError(t, unix.Shutdown(fds[0], unix.SHUT_RDWR))
	require.Error(t, <-g.ended)
}

// halfPort is a host's end that can be closed without the guest's seeing it.
type halfPort struct {
	blocking
	closed atomic.Bool
}

func (h *halfPort) Read(p []byte) (int, error) {
	for !h.closed.Load() {
		// So that Close ends it, which a shutdown cannot do here.
		fds := []unix.PollFd{{Fd: int32(h.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 5); n > 0 && err == nil {
			return h.blocking.Read(p)
		}
	}
	return 0, net.ErrClosed
}

func (h *halfPort) Close() error { h.closed.Store(true); return nil }

func TestAFullTableMakesTheKernelForget(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	root := NewMemory(MemoryOptions{})
	s := newServer(t, Options{MaxNodes: 200}, Mount{Name: "m", Root: root, Private: true})
	g := startGuest(t, s)
	base := filepath.Join(g.dir, "m")
	settlePoll(t, base)
	for i := range 500 {
		path := filepath.Join(base, "file"+strconv.Itoa(i))
		require.Eventually(t, func() bool { return os.WriteFile(path, []byte("x"), 0o644) == nil }, 10*time.Second, time.Millisecond)
	}
	list, err := os.ReadDir(base)
	require.NoError(t, err)
	assert.Len(t, list, 500)
}

func TestSmallFileOperationsAreQuick(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	s := newServer(t, Options{}, Mount{Name: "m", Root: NewMemory(MemoryOptions{})})
	g := startGuest(t, s)
	base := filepath.Join(g.dir, "m")
	settlePoll(t, base)
	const n = 1000
	each := func(what string, f func(path string) error) {
		start := time.Now()
		for i := range n {
			require.NoError(t, f(filepath.Join(base, "file"+strconv.Itoa(i))))
		}
		t.Logf("%s: %.0f a second", what, n/time.Since(start).Seconds())
	}
	each("create", func(p string) error { return os.WriteFile(p, []byte("content"), 0o644) })
	each("stat", func(p string) error { _, err := os.Stat(p); return err })
	each("unlink", os.Remove)
	for i := range 1000 {
		require.NoError(t, os.MkdirAll(filepath.Join(base, strconv.Itoa(i/20)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(base, strconv.Itoa(i/20), strconv.Itoa(i)), nil, 0o644))
	}
	start, seen := time.Now(), 0
	require.NoError(t, filepath.WalkDir(base, func(string, os.DirEntry, error) error { seen++; return nil }))
	t.Logf("walk over %d: %v", seen, time.Since(start))
	assert.Equal(t, 1051, seen)
}
