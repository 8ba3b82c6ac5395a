package vfs

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func memCreate(t require.TestingT, dir Node, name string) (Node, File) {
	n, f, err := dir.Create(context.Background(), name, syscall.O_RDWR|syscall.O_EXCL, 0o644)
	require.NoError(t, err)
	return n, f
}

func memMkdir(t *testing.T, dir Node, name string) Node {
	t.Helper()
	n, err := dir.Mkdir(context.Background(), name, 0o755)
	require.NoError(t, err)
	return n
}

func attrOf(t require.TestingT, n interface {
	Attr(context.Context) (Attr, error)
}) Attr {
	a, err := n.Attr(context.Background())
	require.NoError(t, err)
	return a
}

// TestMemoryFileIsWhatASliceWouldBe plays random operations on a file and on bytes.
func TestMemoryFileIsWhatASliceWouldBe(t *testing.T) {
	ctx := context.Background()
	rapid.Check(t, func(t *rapid.T) {
		root := NewMemory(MemoryOptions{})
		used := root.(*memNode).m.used
		n, f := memCreate(t, root, "file")
		var model []byte
		size := func(max int) *rapid.Generator[int] {
			return rapid.OneOf(rapid.IntRange(0, 2000), rapid.IntRange(0, max), rapid.Map(rapid.IntRange(0, max/memChunk), func(i int) int { return i * memChunk }))
		}
		const most = 5 * memChunk
		resize := func(k int) {
			if k <= len(model) {
				model = model[:k]
			} else {
				model = append(model, make([]byte, k-len(model))...)
			}
		}
		zero := func(off, end int) { clear(model[min(off, len(model)):min(end, len(model))]) }
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			off := size(most).Draw(t, "off")
			k := size(2*memChunk).Draw(t, "len")
			switch rapid.SampledFrom([]string{"write", "truncate", "punch", "zero", "allocate"}).Draw(t, "op") {
			case "write":
				if k == 0 {
					continue // grows nothing
				}
				data := bytes.Repeat([]byte{byte(rapid.IntRange(1, 255).Draw(t, "byte"))}, k)
				got, err := f.WriteAt(ctx, data, int64(off))
				require.NoError(t, err)
				require.Equal(t, k, got)
				resize(max(len(model), off+k))
				copy(model[off:], data)
			case "truncate":
				to := int64(off)
				_, err := f.SetAttr(ctx, Change{Size: &to})
				require.NoError(t, err)
				resize(off)
			case "punch":
				require.NoError(t, f.Allocate(ctx, FallocPunchHole|FallocKeepSize, int64(off), int64(k+1)))
				zero(off, off+k+1)
			case "zero":
				require.NoError(t, f.Allocate(ctx, FallocZeroRange, int64(off), int64(k+1)))
				resize(max(len(model), off+k+1))
				zero(off, off+k+1)
			case "allocate":
				require.NoError(t, f.Allocate(ctx, 0, int64(off), int64(k+1)))
				resize(max(len(model), off+k+1))
			}
			got := make([]byte, most*2)
			r, err := f.ReadAt(ctx, got, 0)
			require.NoError(t, err)
			require.True(t, bytes.Equal(model, got[:r]), "content differs")
			a := attrOf(t, n)
			require.Equal(t, int64(len(model)), a.Size)
			checkHoles(t, f, model)
		}
		require.NoError(t, root.Unlink(ctx, "file"))
		require.NoError(t, f.Close())
		require.Equal(t, used, root.(*memNode).m.used, "bytes that are charged for nothing")
	})
}

// checkHoles holds the file's holes to the rule that data never lies in one.
func checkHoles(t require.TestingT, f File, model []byte) {
	ctx := context.Background()
	for off := int64(0); off < int64(len(model)); {
		data, err := f.Seek(ctx, off, SeekData)
		if err == syscall.ENXIO {
			data = int64(len(model))
		} else {
			require.NoError(t, err)
		}
		require.GreaterOrEqual(t, data, off)
		require.Equal(t, -1, bytes.IndexFunc(model[off:data], func(r rune) bool { return r != 0 }), "data in a hole")
		if data == int64(len(model)) {
			return
		}
		off, err = f.Seek(ctx, data, SeekHole)
		require.NoError(t, err)
		require.Greater(t, off, data)
	}
}

func TestMemoryGrowthNeverCopiesTheFile(t *testing.T) {
	_, f := memCreate(t, NewMemory(MemoryOptions{}), "log")
	ctx, line := context.Background(), make([]byte, 100)
	allocs := func(from, to int) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for i := from; i < to; i++ {
			_, err := f.WriteAt(ctx, line, int64(i*len(line)))
			require.NoError(t, err)
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	const n = 20000 // 2 MB
	allocs(0, 10*n)
	assert.Less(t, allocs(10*n, 11*n), uint64(3*n*len(line)), "bytes allocated to append 2 MB behind 20")
}

func TestMemorySparseFilesCostWhatTheyHold(t *testing.T) {
	n, f := memCreate(t, NewMemory(MemoryOptions{MaxBytes: 1 << 20}), "sparse")
	ctx := context.Background()
	_, err := f.WriteAt(ctx, []byte("end"), 5<<40)
	require.NoError(t, err)
	a := attrOf(t, n)
	assert.Equal(t, int64(5<<40+3), a.Size)
	assert.LessOrEqual(t, a.Blocks*512, int64(memChunk))
	at, err := f.Seek(ctx, 0, SeekData)
	require.NoError(t, err)
	assert.Equal(t, int64(5<<40), at)
	_, err = f.WriteAt(ctx, []byte("x"), maxMemFile)
	require.ErrorIs(t, err, syscall.EFBIG)
	require.ErrorIs(t, f.Allocate(ctx, 0, 0, 4<<40), syscall.ENOSPC)
}

func TestMemoryStopsAtItsQuotaAndGivesBackWhatIsRemoved(t *testing.T) {
	ctx := context.Background()
	root := NewMemory(MemoryOptions{MaxBytes: 1 << 20, MaxFiles: 20})
	n, f := memCreate(t, root, "big")
	_, err := f.WriteAt(ctx, make([]byte, 800<<10), 0)
	require.NoError(t, err)
	_, err = f.WriteAt(ctx, make([]byte, 800<<10), 800<<10)
	require.ErrorIs(t, err, syscall.ENOSPC)
	assert.Equal(t, int64(800<<10), attrOf(t, n).Size, "a failed write changed the file")
	require.NoError(t, root.Unlink(ctx, "big"))
	got := make([]byte, 10)
	k, err := f.ReadAt(ctx, got, 0)
	require.NoError(t, err, "an unlinked open file lives on")
	assert.Equal(t, 10, k)
	assert.Zero(t, attrOf(t, f).Nlink)
	require.NoError(t, f.Close())
	_, err = n.Open(ctx, syscall.O_RDWR)
	require.ErrorIs(t, err, syscall.ESTALE)
	_, g := memCreate(t, root, "again")
	_, err = g.WriteAt(ctx, make([]byte, 800<<10), 0)
	require.NoError(t, err)
	for i := 0; ; i++ {
		if _, err = root.Mkdir(ctx, fmt.Sprint(i), 0o755); err != nil {
			require.Equal(t, 18, i)
			break
		}
	}
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorIs(t, root.(*memNode).SetXattr(ctx, "user.big", make([]byte, 300<<10), 0), syscall.E2BIG)
}

func TestMemoryRenameFollowsTheRules(t *testing.T) {
	ctx := context.Background()
	root := NewMemory(MemoryOptions{})
	dir, full, empty := memMkdir(t, root, "dir"), memMkdir(t, root, "full"), memMkdir(t, root, "empty")
	sub := memMkdir(t, dir, "sub")
	file, f := memCreate(t, full, "file")
	require.NoError(t, f.Close())
	_, err := root.Link(ctx, "hard", file)
	require.NoError(t, err)
	for _, c := range []struct {
		what  string
		want  error
		from  Node
		name  string
		to    Node
		new   string
		flags uint32
	}{
		{"below itself", syscall.EINVAL, root, "dir", sub, "x", 0},
		{"onto itself below", syscall.EINVAL, root, "dir", dir, "x", 0},
		{"onto its own parent", syscall.ENOTEMPTY, dir, "sub", root, "dir", 0},
		{"directory onto a full one", syscall.ENOTEMPTY, root, "empty", root, "full", 0},
		{"directory onto a file", syscall.ENOTDIR, root, "empty", full, "file", 0},
		{"file onto a directory", syscall.EISDIR, full, "file", root, "empty", 0},
		{"what is not there", syscall.ENOENT, root, "none", root, "x", 0},
		{"no replace", syscall.EEXIST, root, "empty", root, "full", RenameNoReplace},
		{"exchange with nothing", syscall.ENOENT, root, "empty", root, "none", RenameExchange},
		{"exchange with its parent", syscall.EINVAL, dir, "sub", root, "dir", RenameExchange},
		{"whiteout", syscall.EINVAL, root, "hard", root, "x", 4},
		{"another file system", syscall.EXDEV, root, "hard", NewMemory(MemoryOptions{}), "x", 0},
	} {
		require.ErrorIs(t, c.from.Rename(ctx, c.name, c.to, c.new, c.flags), c.want, c.what)
	}
	require.NoError(t, root.Rename(ctx, "hard", full, "file", 0), "two names of one file")
	assert.Equal(t, uint32(2), attrOf(t, file).Nlink, "and both stay")

	require.NoError(t, root.Rename(ctx, "dir", full, "moved", RenameNoReplace))
	require.NoError(t, full.Rename(ctx, "moved", root, "empty", RenameExchange))
	assert.Equal(t, attrOf(t, dir).Ino, attrOf(t, walk(t, root, "empty")).Ino)
	assert.Equal(t, attrOf(t, empty).Ino, attrOf(t, walk(t, full, "moved")).Ino)
	assert.Equal(t, uint32(4), attrOf(t, root).Nlink)
	assert.Equal(t, uint32(3), attrOf(t, full).Nlink)
	require.NoError(t, root.Rename(ctx, "empty", full, "moved", 0), "onto an empty directory")
	assert.Equal(t, uint32(0), attrOf(t, empty).Nlink)
	_, err = empty.Mkdir(ctx, "x", 0o755)
	require.ErrorIs(t, err, syscall.ENOENT, "in a directory that is gone")
}

func TestMemoryRemovesOnlyWhatMayBeRemoved(t *testing.T) {
	ctx := context.Background()
	root := NewMemory(MemoryOptions{})
	dir := memMkdir(t, root, "dir")
	_, f := memCreate(t, dir, "file")
	require.NoError(t, f.Close())
	require.ErrorIs(t, root.Rmdir(ctx, "dir"), syscall.ENOTEMPTY)
	require.ErrorIs(t, root.Unlink(ctx, "dir"), syscall.EISDIR)
	require.ErrorIs(t, dir.Rmdir(ctx, "file"), syscall.ENOTDIR)
	_, err := root.Link(ctx, "dir2", dir)
	require.ErrorIs(t, err, syscall.EPERM)
	_, err = root.Mknod(ctx, "dev", fs.ModeDevice|0o666)
	require.ErrorIs(t, err, syscall.EPERM)
	require.NoError(t, dir.Unlink(ctx, "file"))
	require.NoError(t, root.Rmdir(ctx, "dir"))
	require.ErrorIs(t, root.Rmdir(ctx, "dir"), syscall.ENOENT)
}

func TestMemoryOwnersComeFromTheCallerOrASetgidDirectory(t *testing.T) {
	ctx := WithCaller(context.Background(), Caller{UID: 5, GID: 6})
	root := NewMemory(MemoryOptions{UID: 1, GID: 2})
	n, err := root.Mkdir(ctx, "a", 0o750)
	require.NoError(t, err)
	a := attrOf(t, n)
	assert.Equal(t, []uint32{5, 6}, []uint32{a.UID, a.GID})
	mode := 0o755 | fs.ModeSetgid
	_, err = root.SetAttr(ctx, Change{Mode: &mode})
	require.NoError(t, err)
	n, err = root.Mkdir(ctx, "b", 0o750)
	require.NoError(t, err)
	a = attrOf(t, n)
	assert.Equal(t, []uint32{5, 2}, []uint32{a.UID, a.GID})
	assert.NotZero(t, a.Mode&fs.ModeSetgid)
}

func TestMemoryXattrsKeepTheirRules(t *testing.T) {
	ctx := context.Background()
	n := NewMemory(MemoryOptions{})
	require.NoError(t, n.SetXattr(ctx, "user.b", []byte("1"), XattrCreate))
	require.ErrorIs(t, n.SetXattr(ctx, "user.b", nil, XattrCreate), syscall.EEXIST)
	require.ErrorIs(t, n.SetXattr(ctx, "user.a", nil, XattrReplace), syscall.ENODATA)
	require.ErrorIs(t, n.SetXattr(ctx, "security.capability", nil, 0), syscall.ENOTSUP)
	require.NoError(t, n.SetXattr(ctx, "user.a", nil, 0))
	names, err := n.ListXattr(ctx)
	require.NoError(t, err)
	assert.Equal(t, []string{"user.a", "user.b"}, names)
	require.NoError(t, n.RemoveXattr(ctx, "user.b"))
	_, err = n.GetXattr(ctx, "user.b")
	require.ErrorIs(t, err, syscall.ENODATA)
	for i := range maxXattrs + 1 {
		err = n.SetXattr(ctx, fmt.Sprint("user.", i), nil, 0)
	}
	require.ErrorIs(t, err, syscall.ENOSPC)
}

func TestMemoryListingsStayExactWhileTheDirectoryChanges(t *testing.T) {
	ctx := context.Background()
	root := NewMemory(MemoryOptions{})
	const n = 100_000
	start := time.Now()
	for i := range n {
		_, f := memCreate(t, root, fmt.Sprint("stays", i))
		require.NoError(t, f.Close())
	}
	for i := range 1000 {
		_, f := memCreate(t, root, fmt.Sprint("goes", i))
		require.NoError(t, f.Close())
	}
	d, err := root.OpenDir(ctx)
	require.NoError(t, err)
	seen := map[string]int{}
	pos, step := uint64(0), 0
	for {
		list, err := d.Entries(ctx, pos, 100)
		require.NoError(t, err)
		if len(list) == 0 {
			break
		}
		for _, e := range list {
			seen[e.Name]++
			pos = e.Next
		}
		if step < 1000 { // behind and before where the listing stands, so that gaps are closed
			require.NoError(t, root.Unlink(ctx, fmt.Sprint("goes", step)))
			_, f := memCreate(t, root, fmt.Sprint("comes", step))
			require.NoError(t, f.Close())
			step++
		}
	}
	for i := range n {
		require.Equal(t, 1, seen[fmt.Sprint("stays", i)])
	}
	for i := range n {
		require.NoError(t, root.Unlink(ctx, fmt.Sprint("stays", i)))
	}
	// Quadratic work would take minutes.
	assert.Less(t, time.Since(start), 30*time.Second)
}

// A map keeps its size when its entries go: files that were full of chunks and directories that were
// full of names must not keep it.
func TestMemoryGivesBackWhatEmptiedFilesAndDirectoriesTook(t *testing.T) {
	root := NewMemory(MemoryOptions{})
	ctx := t.Context()
	live := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := live()
	for i := range 8 {
		n, f := memCreate(t, root, fmt.Sprint("sparse", i))
		for c := range int64(100_000) {
			_, err := f.WriteAt(ctx, []byte{1}, c*memChunk)
			require.NoError(t, err)
		}
		size := int64(0)
		_, err := f.SetAttr(ctx, Change{Size: &size})
		require.NoError(t, err)
		require.NoError(t, f.Close())
		n.Release()

		d := memMkdir(t, root, fmt.Sprint("dir", i))
		for j := range 20_000 {
			child, err := d.Mknod(ctx, fmt.Sprint(j), 0o644)
			require.NoError(t, err)
			child.Release()
		}
		for j := range 20_000 {
			require.NoError(t, d.Unlink(ctx, fmt.Sprint(j)))
		}
	}
	assert.Less(t, live()-before, int64(2<<20))
	runtime.KeepAlive(root)
}
