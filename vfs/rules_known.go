package vfs

import (
	"context"
	"io/fs"
	"strings"
	"sync"
	"time"
)

// known remembers which files rules name, by Attr.Ino, so that a hard link with another name is recognised.
//
// Guests cannot make such links (Protect and Shadow refuse them), so only those count that the host made. A
// file with several names that is met under a free one has the tree searched for names that rules mean,
// at most knownScan entries and not again for a while. A link is therefore missed only if its named twin
// lies beyond that many entries, or was made on the host since the last search and nobody
// has listed its directory yet.
type known struct {
	rules *Rules
	root  Node // the provider's

	mu    sync.Mutex
	paths map[uint64]string

	search sync.Mutex // held by the one that searches
	again  time.Time  // not before; guarded by search
}

const (
	knownFiles = 65536            // remembered
	knownScan  = 200_000          // entries that a search looks at
	knownPause = 30 * time.Second // between searches, or 20 times what one took
)

func newKnown(root Node, rules *Rules) *known {
	return &known{rules: rules, root: root, paths: map[uint64]string{}}
}

// learn notes that a path which rules name leads to a file.
func (k *known) learn(ino uint64, path string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for other := range k.paths {
		if len(k.paths) < knownFiles {
			break
		}
		delete(k.paths, other)
	}
	k.paths[ino] = path
}

// find returns the rule that names a file by another path than the one at hand, and that path.
func (k *known) find(ctx context.Context, ino uint64) (*Rule, string) {
	k.mu.Lock()
	path, ok := k.paths[ino]
	k.mu.Unlock()
	if !ok {
		return nil, ""
	}
	// The name may be gone and the number used again.
	if now, err := k.walk(ctx, path); err != nil || now != ino {
		k.mu.Lock()
		delete(k.paths, ino)
		k.mu.Unlock()
		return nil, ""
	}
	return k.rules.judge(path).final, path
}

// findLinked is find for a node met under a free name, with a search if it has more names.
func (k *known) findLinked(ctx context.Context, n Node) (*Rule, string, error) {
	a, err := n.Attr(ctx)
	if err != nil {
		return nil, "", err
	}
	rule, path := k.find(ctx, a.Ino)
	if rule != nil || a.Nlink < 2 || !a.Mode.IsRegular() {
		return rule, path, nil
	}
	k.scan(ctx)
	rule, path = k.find(ctx, a.Ino)
	return rule, path, nil
}

// walk returns the number of what a path leads to.
func (k *known) walk(ctx context.Context, path string) (uint64, error) {
	at := k.root
	for name := range strings.SplitSeq(path, "/") {
		next, err := at.Lookup(ctx, name)
		if at != k.root {
			at.Release()
		}
		if err != nil {
			return 0, err
		}
		at = next
	}
	defer at.Release()
	return inoOf(ctx, at)
}

// scan searches the tree, unless that was done a moment ago.
func (k *known) scan(ctx context.Context) {
	k.search.Lock()
	defer k.search.Unlock()
	start := time.Now()
	if start.Before(k.again) {
		return
	}
	left := knownScan
	dirs := []string{""}
	for len(dirs) > 0 && left > 0 && ctx.Err() == nil {
		path := dirs[0]
		dirs = dirs[1:]
		dirs = append(dirs, k.scanDir(ctx, path, &left)...)
	}
	k.again = start.Add(max(knownPause, 20*time.Since(start)))
}

// scanDir learns from one directory and returns those below. What cannot be read holds no file that
// a guest could reach either.
func (k *known) scanDir(ctx context.Context, path string, left *int) (below []string) {
	dir, err := k.openDir(ctx, path)
	if err != nil {
		return nil
	}
	defer dir.Close()
	for pos := uint64(0); *left > 0; {
		list, err := dir.Entries(ctx, pos, 1024)
		if err != nil || len(list) == 0 {
			break
		}
		for _, e := range list {
			at := joinPath(path, e.Name)
			if k.rules.judge(at).final != nil && e.Type == 0 {
				k.learn(e.Ino, at)
			}
			if e.Type == fs.ModeDir {
				below = append(below, at)
			}
			pos = e.Next
		}
		*left -= len(list)
	}
	return below
}

func (k *known) openDir(ctx context.Context, path string) (Dir, error) {
	at := k.root
	if path != "" {
		for name := range strings.SplitSeq(path, "/") {
			next, err := at.Lookup(ctx, name)
			if at != k.root {
				at.Release()
			}
			if err != nil {
				return nil, err
			}
			at = next
		}
		defer at.Release()
	}
	return at.OpenDir(ctx)
}
