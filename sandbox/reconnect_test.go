package sandbox

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/adrg/xdg"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/images"
)

// Processes belong to the guest, not to a connection.
func TestLostConnectionLosesNoProcessAndNoOutput(t *testing.T) {
	store, err := images.OpenStore(filepath.Join(xdg.CacheHome, "gondolin", "images"))
	require.NoError(t, err)
	img, err := store.Get("default")
	require.NoError(t, err, "build it with `make image`")
	dir, err := os.MkdirTemp("", "gnd")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	h, err := NewHost(t.Context(), HostOptions{RuntimeDir: dir, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer h.Close()
	s, err := h.Create(t.Context(), Options{Image: Image{
		ID: img.ID(), Kernel: img.Path("kernel"), Modules: img.Path("modules.cpio"), RootDisk: img.Path("root.ext4"),
	}})
	require.NoError(t, err)

	var out progress
	p, err := s.Start(t.Context(), Command{Shell: "for i in $(seq 200); do seq 1000; sleep 0.01; done", Stdout: &out})
	require.NoError(t, err)
	job, err := s.StartJob(t.Context(), Command{Shell: "sleep 1; echo done"})
	require.NoError(t, err)
	for range 4 {
		before := out.len()
		require.Eventually(t, func() bool { return out.len() > before }, 20*time.Second, time.Millisecond, "output flows")
		s.mu.Lock()
		mux := s.mux
		s.mu.Unlock()
		if mux != nil {
			mux.Close()
		}
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
