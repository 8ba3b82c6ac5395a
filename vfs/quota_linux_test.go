package vfs

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func usedBy(root Node) (bytes, files int64) {
	q := root.(layered).layer().fs.layer.(*quota)
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.bytes, q.files
}

func TestQuotaStopsGrowthAndFreesWhatIsRemoved(t *testing.T) {
	host, _ := openHost(t, HostDirOptions{})
	const limit = 1 << 20
	root := Quota(host, QuotaOptions{Bytes: limit})
	ctx := t.Context()
	n, f, err := root.Create(ctx, "f", os.O_RDWR, 0o600)
	require.NoError(t, err)
	block := make([]byte, 64<<10)
	for i := range limit/len(block) - 1 {
		_, err = f.WriteAt(ctx, block, int64(i*len(block)))
		require.NoError(t, err)
	}
	_, err = f.WriteAt(ctx, make([]byte, 128<<10), limit-64<<10)
	assert.Equal(t, syscall.EDQUOT, Errno(err))
	_, err = f.WriteAt(ctx, block, 0)
	require.NoError(t, err, "rewriting in place adds nothing")
	assert.Equal(t, syscall.EDQUOT, Errno(f.Allocate(ctx, FallocKeepSize, 0, limit*2)))
	st, err := root.StatFS(ctx)
	require.NoError(t, err)
	assert.LessOrEqual(t, st.Avail*uint64(st.BlockSize), uint64(128<<10))
	assert.LessOrEqual(t, st.Blocks*uint64(st.BlockSize), uint64(limit))

	size := int64(len(block))
	_, err = n.SetAttr(ctx, Change{Size: &size})
	require.NoError(t, err)
	used, _ := usedBy(root)
	assert.EqualValues(t, size, used, "a truncated file gives space back")
	big := int64(1 << 40)
	_, err = n.SetAttr(ctx, Change{Size: &big})
	require.NoError(t, err, "a hole takes no space")

	require.NoError(t, root.Unlink(ctx, "f"))
	used, _ = usedBy(root)
	assert.NotZero(t, used, "the file still is open")
	require.NoError(t, f.Close())
	n.Release()
	used, files := usedBy(root)
	assert.Zero(t, used)
	assert.Zero(t, files)
}

func TestQuotaCountsFilesByTheirLastLink(t *testing.T) {
	host, _ := openHost(t, HostDirOptions{})
	root := Quota(host, QuotaOptions{Files: 3})
	ctx := t.Context()
	n, f, err := root.Create(ctx, "a", os.O_RDWR, 0o600)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, drop1(root.Link(ctx, "b", n)))
	n.Release()
	require.NoError(t, drop1(root.Mkdir(ctx, "d", 0o700)))
	require.NoError(t, drop1(root.Symlink(ctx, "s", "x")))
	for how, f := range making {
		if how != "link" && how != "rename" {
			assert.Equal(t, syscall.EDQUOT, Errno(f(t, root, "more")), how)
		}
	}
	require.NoError(t, drop2(root.Create(ctx, "a", os.O_RDWR, 0o600)), "it is there already")
	require.NoError(t, root.Unlink(ctx, "a"))
	assert.Equal(t, syscall.EDQUOT, Errno(drop1(root.Mkdir(ctx, "more", 0o700))))
	require.NoError(t, root.Rename(ctx, "s", root, "b", 0), "replaces the last link")
	require.NoError(t, drop1(root.Mkdir(ctx, "more", 0o700)))
	require.NoError(t, root.Rename(ctx, "more", root, "d", 0), "replaces an empty directory")
	_, files := usedBy(root)
	assert.EqualValues(t, 2, files)
}

func TestQuotaCountsWhatWasThereIfAsked(t *testing.T) {
	host, dir := openHost(t, HostDirOptions{})
	put(t, filepath.Join(dir, "d/f"), string(make([]byte, 100<<10)))
	require.NoError(t, os.Link(filepath.Join(dir, "d/f"), filepath.Join(dir, "g")))
	bytes, files, err := Usage(t.Context(), host)
	require.NoError(t, err)
	assert.EqualValues(t, 2, files, "a hard link is no file of its own")
	assert.InDelta(t, 104<<10, bytes, 8<<10)
	root := Quota(host, QuotaOptions{Bytes: bytes + 8<<10, UsedBytes: bytes, UsedFiles: files})
	f, err := at(t, root, "d/f").Open(t.Context(), os.O_RDWR)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt(t.Context(), make([]byte, 100<<10), 0)
	require.NoError(t, err)
	_, err = f.WriteAt(t.Context(), make([]byte, 20<<10), 100<<10)
	assert.Equal(t, syscall.EDQUOT, Errno(err))
}

func TestQuotaHoldsWhenManyWriteAtOnce(t *testing.T) {
	host, dir := openHost(t, HostDirOptions{})
	const limit = 1 << 20
	root := Quota(host, QuotaOptions{Bytes: limit, Files: 20})
	ctx := t.Context()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for round := range 30 {
				n, f, err := root.Create(ctx, fmt.Sprint((i+round)%10), os.O_RDWR, 0o600)
				if err != nil {
					continue
				}
				_, _ = f.WriteAt(ctx, make([]byte, 60<<10), int64(round%3)<<15)
				f.Close()
				n.Release()
				if round%4 == 0 {
					_ = root.Rename(ctx, fmt.Sprint(i), root, fmt.Sprint(round%10), 0)
					_ = root.Unlink(ctx, fmt.Sprint((i+round)%10))
				}
			}
		})
	}
	wg.Wait()
	used, counted := usedBy(root)
	bytes, files, err := Usage(ctx, host)
	require.NoError(t, err)
	assert.Equal(t, bytes, used, "in %s", dir)
	assert.Equal(t, files, counted)
	assert.LessOrEqual(t, used, int64(limit))
}
