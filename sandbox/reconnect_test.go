package sandbox

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/adrg/xdg"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/images"
)

// realSession is one on a real machine.
func realSession(t *testing.T) *Session {
	store, err := images.OpenStore(filepath.Join(xdg.CacheHome, "gondolin", "images"))
	require.NoError(t, err)
	img, err := store.Get("default")
	require.NoError(t, err, "build it with `make image`")
	dir, err := os.MkdirTemp("", "gnd")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	h, err := NewHost(t.Context(), HostOptions{RuntimeDir: dir, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { h.Close() })
	s, err := h.Create(t.Context(), Options{Image: Image{
		ID: img.ID(), Kernel: img.Path("kernel"), Modules: img.Path("modules.cpio"), RootDisk: img.Path("root.ext4"),
	}})
	require.NoError(t, err)
	return s
}

// breakConnection ends the connection to the guest's agent, if there is one.
func breakConnection(s *Session) {
	s.mu.Lock()
	mux := s.mux
	s.mu.Unlock()
	if mux != nil {
		mux.Close()
	}
}

// Processes belong to the guest, not to a connection.
func TestLostConnectionLosesNoProcessAndNoOutput(t *testing.T) {
	s := realSession(t)
	t.Run("input", func(t *testing.T) { inputThatIsCutOffIsAnError(t, s) })
	var out progress
	p, err := s.Start(t.Context(), Command{Shell: "for i in $(seq 200); do seq 1000; sleep 0.01; done", Stdout: &out})
	require.NoError(t, err)
	job, err := s.StartJob(t.Context(), Command{Shell: "sleep 1; echo done"})
	require.NoError(t, err)
	for range 4 {
		before := out.len()
		require.Eventually(t, func() bool { return out.len() > before }, 20*time.Second, time.Millisecond, "output flows")
		breakConnection(s)
		require.Equal(t, "answers", answer(t, s))
	}
	exit, err := p.Wait()
	require.NoError(t, err)
	require.Zero(t, exit.Code)
	var once bytes.Buffer
	_, err = s.Run(t.Context(), Command{Shell: "seq 1000", Stdout: &once})
	require.NoError(t, err)
	require.True(t, bytes.Equal(bytes.Repeat(once.Bytes(), 200), out.buf.Bytes()), "every byte once and in order")
	chunk, err := s.Output(t.Context(), job.ID, 0, 100, 10*time.Second)
	require.NoError(t, err)
	require.Equal(t, "done\n", string(chunk.Data))
}

// What did not arrive is not taken for the end of the input, by neither side, and nobody waits for the rest.
func inputThatIsCutOffIsAnError(t *testing.T, s *Session) {
	in, feed := io.Pipe()
	defer feed.Close()
	var out progress
	p, err := s.Start(t.Context(), Command{Argv: []string{"cat"}, Stdin: in, Stdout: &out, Grace: time.Second})
	require.NoError(t, err)
	_, err = feed.Write([]byte("first"))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return out.len() > 0 }, 20*time.Second, time.Millisecond)
	breakConnection(s)
	go func() {
		for { // the loss shows when there is something to write
			if _, err := feed.Write([]byte("more")); err != nil {
				return
			}
		}
	}()
	exit, err := p.Wait()
	require.ErrorContains(t, err, "standard input of the process")
	require.Equal(t, "SIGTERM", exit.Signal)

	exit, err = s.Run(t.Context(), Command{Argv: []string{"cat"}, Stdin: iotest.ErrReader(errors.New("the disk is gone")), Grace: time.Second})
	require.ErrorContains(t, err, "the disk is gone")
	require.Equal(t, "SIGTERM", exit.Signal)
}

// progress is output that can be watched while it comes.
type progress struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (p *progress) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.buf.Write(b)
}

func (p *progress) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.buf.Len()
}

func answer(t *testing.T, s *Session) string {
	t.Helper()
	var out bytes.Buffer
	_, err := s.Run(t.Context(), Command{Argv: []string{"printf", "answers"}, Stdout: &out})
	require.NoError(t, err)
	return out.String()
}
