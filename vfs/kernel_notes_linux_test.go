package vfs

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/guest/fsport"
)

// counted counts the requests that come from the guest, by operation.
type counted struct {
	*blocking
	seen []byte // not yet counted
	ops  [64]atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.blocking.Read(p)
	c.seen = append(c.seen, p[:n]...)
	if bytes.HasPrefix(c.seen, []byte(fsport.Magic)) && len(c.seen) >= len(fsport.Magic)+fsport.NonceSize {
		c.seen = c.seen[len(fsport.Magic)+fsport.NonceSize:]
	}
	for len(c.seen) >= inHeader {
		size, ok := fsport.FrameLen(c.seen, inHeader)
		if !ok || len(c.seen) < size {
			break
		}
		c.ops[frame(c.seen).opcode()%64].Add(1)
		c.seen = c.seen[size:]
	}
	return n, err
}

func TestProgramsThatLookAtWhatTheyJustWroteAskTheHostNothing(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	root, err := HostDir(t.TempDir(), HostDirOptions{})
	require.NoError(t, err)
	conn, fd := socketPair(t)
	c := &counted{blocking: conn}
	g := startGuestOn(t, newServer(t, Options{}, Mount{Name: "m", Root: root}), c, fd)
	const files = 200
	path := func(i int) string { return filepath.Join(g.dir, "m", strconv.Itoa(i)) }
	for i := range files {
		require.NoError(t, os.WriteFile(path(i), []byte("content"), 0o600))
	}
	assert.Zero(t, c.ops[opGetxattr].Load(), "file capabilities")
	before := c.ops[opGetattr].Load()
	for i := range files {
		st, err := os.Stat(path(i))
		require.NoError(t, err)
		require.EqualValues(t, len("content"), st.Size())
	}
	// A few may have been told of as changed on the host while the guest changed them.
	assert.Less(t, c.ops[opGetattr].Load()-before, int64(files/4))
}
