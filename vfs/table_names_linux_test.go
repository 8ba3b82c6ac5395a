package vfs

import (
	"fmt"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/require"
)

// A guest makes hard links, renames and forgets as it likes: what is remembered of names stays
// bounded by the files that it knows, and goes with them.
func TestNamesOfHardLinksWithoutEndAreBounded(t *testing.T) {
	table := newTable(&Options{MaxNodes: 100, MaxFiles: 10, MaxDirs: 10}, NewMemory(MemoryOptions{}))
	m := &mount{index: 1}
	for i := range 10000 {
		e, err := table.add(m, Unsupported{}, Attr{Ino: uint64(1 + i%50), Mode: fs.FileMode(0o644)}, hint{1, fmt.Sprint(i)}, false)
		require.NoError(t, err)
		table.done(e)
		table.renamed(hint{1, fmt.Sprint(i)}, hint{1, fmt.Sprint("renamed", i)}, false)
	}
	require.LessOrEqual(t, len(table.byName), 50*maxNames)
	for id := range table.nodes {
		table.forget(id, 1<<30)
	}
	require.Empty(t, table.byName)
}
