package sandbox

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/vfs"
)

// A guest believes for an hour what it knows of a private mount.
func TestForksShareNoPrivateMountThatCanBeWrittenTo(t *testing.T) {
	shared, memory := vfs.NewMemory(vfs.MemoryOptions{}), vfs.NewMemory(vfs.MemoryOptions{})
	_, err := memory.Mkdir(t.Context(), "dir", 0o755)
	require.NoError(t, err)
	o, err := Options{Image: Image{ID: "image", Kernel: "k", Modules: "m", RootDisk: "r"}, Mounts: []Mount{
		{Path: "/shared", Root: shared}, {Path: "/memory", Root: memory, Private: true}, {Path: "/fixed", Root: vfs.ReadOnly(shared), ReadOnly: true, Private: true},
	}}.withDefaults()
	require.NoError(t, err)
	s := &Session{opts: o}
	list, err := s.copies(2, nil)
	require.NoError(t, err)
	for _, c := range list {
		require.Same(t, shared, c.Mounts[0].Root)
		require.NotSame(t, memory, c.Mounts[1].Root)
		_, err := c.Mounts[1].Root.Lookup(t.Context(), "dir")
		require.NoError(t, err, "what was in it is in the copy")
	}
	require.NotSame(t, list[0].Mounts[1].Root, list[1].Mounts[1].Root)
	require.Same(t, memory, s.opts.Mounts[1].Root)

	s.opts.Mounts[1].Root = vfs.Hooks(memory, vfs.HookFuncs{})
	_, err = s.copies(1, nil)
	require.ErrorIs(t, err, ErrInvalid)
	require.ErrorContains(t, err, "/memory")
	_, err = s.copies(1, func(_ int, o *Options) error { o.Mounts[1].Root = vfs.NewMemory(vfs.MemoryOptions{}); return nil })
	require.NoError(t, err)
}
