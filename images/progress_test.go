package images

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPlainProgress(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	l := &lines{w: &out, every: 5 * time.Second, now: func() time.Time { return now }}
	l.Note("layer \x1b[2Jx\n")
	task := l.Start("downloading", 4<<20)
	for range 4000 {
		now = now.Add(5 * time.Millisecond)
		task.Add(1 << 10)
	}
	task.Done()
	task.Done()
	got := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Equal(t, "layer  [2Jx ", got[0])
	require.Len(t, got, 6, "bounded frequency: %q", got)
	require.Equal(t, "downloading: 3.9 MiB of 4.0 MiB, 200.0 KiB/s", got[5])
}
