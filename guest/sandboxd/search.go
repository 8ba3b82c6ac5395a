//go:build linux

package sandboxd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// Bounds of a search.
const (
	maxResults  = 10000
	maxContext  = 20
	maxLineScan = 1 << 20 // bytes of a line that are looked at
	batchBytes  = 16 << 10
)

// batch sends results in frames of moderate size.
type batch[T any] struct {
	w     io.Writer
	items []T
	bytes int
	sent  int
	limit int
}

var errEnough = errors.New("limit of results reached")

// add takes a result; errEnough when there are more than the limit.
func (b *batch[T]) add(item T, size int) error {
	if b.sent >= b.limit {
		return errEnough
	}
	b.sent++
	if b.bytes+size > batchBytes {
		if err := b.flush(); err != nil {
			return err
		}
	}
	b.items = append(b.items, item)
	b.bytes += size
	return nil
}

func (b *batch[T]) flush() error {
	if len(b.items) == 0 {
		return nil
	}
	err := wire.WriteItems(b.w, b.items)
	b.items, b.bytes = b.items[:0], 0
	return err
}

// end flushes and closes the direction.
func (b *batch[T]) end(path string, err error, skipped int) {
	if ferr := b.flush(); ferr != nil {
		return
	}
	end := wire.End{Skipped: skipped}
	switch {
	case errors.Is(err, errEnough):
		end.Truncated = true
	case err != nil:
		end.Err = asError(path, err)
	}
	_ = wire.WriteEnd(b.w, end)
}

func limitOf(n int) int { return min(max(n, 1), maxResults) }

func readDir(ctx context.Context, stream net.Conn, m *wire.Path) *wire.Error {
	d, err := os.Open(m.Path)
	if err != nil {
		return errnoError(m.Path, err)
	}
	defer d.Close()
	st, err := d.Stat()
	if err != nil {
		return errnoError(m.Path, err)
	}
	if !st.IsDir() {
		return badRequest("%s is not a directory", m.Path)
	}
	if wire.SendReply(stream, nil, nil) != nil {
		return nil
	}
	b := &batch[wire.FileInfo]{w: stream, limit: limitOf(m.Limit)}
	for {
		names, err := d.Readdirnames(256)
		for _, name := range names {
			path := filepath.Join(m.Path, name)
			info, serr := os.Lstat(path)
			if serr != nil {
				continue // it went away meanwhile
			}
			if err := b.add(describe(name, path, info), len(name)+128); err != nil {
				b.end(m.Path, err, 0)
				return nil
			}
		}
		if err == io.EOF {
			b.end(m.Path, nil, 0)
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			b.end(m.Path, err, 0)
			return nil
		}
	}
}

// walkFiles calls f for everything below root in lexical order. It does not
// follow links, and enters the kernel's own trees only when root lies in them.
func walkFiles(ctx context.Context, root string, f func(path, rel string, d fs.DirEntry) error) (skipped int, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, werr error) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if werr != nil {
			if path == root {
				return werr
			}
			skipped++
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if path != root && (path == "/proc" || path == "/sys" || path == "/dev") {
			return fs.SkipDir
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		return f(path, rel, d)
	})
	return skipped, err
}

func glob(ctx context.Context, stream net.Conn, m *wire.Glob) *wire.Error {
	pattern := strings.TrimPrefix(m.Pattern, "./")
	if !doublestar.ValidatePattern(pattern) {
		return badRequest("pattern %q is malformed: check its brackets and braces", m.Pattern)
	}
	if err := checkRoot(m.Root); err != nil {
		return err
	}
	if wire.SendReply(stream, nil, nil) != nil {
		return nil
	}
	b := &batch[wire.FileInfo]{w: stream, limit: limitOf(m.Limit)}
	skipped, err := walkFiles(ctx, m.Root, func(path, rel string, d fs.DirEntry) error {
		if rel == "." || !doublestar.MatchUnvalidated(pattern, rel) {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		return b.add(describe(rel, path, info), len(rel)+128)
	})
	b.end(m.Root, err, skipped)
	return nil
}

func checkRoot(root string) *wire.Error {
	if _, err := os.Stat(root); err != nil {
		return errnoError(root, err)
	}
	return nil
}

// grepper searches one file after another.
type grepper struct {
	re  *regexp.Regexp
	req *wire.Grep
	out *batch[wire.GrepMatch]
	buf *bufio.Reader
}

func grep(ctx context.Context, stream net.Conn, m *wire.Grep) *wire.Error {
	expr := m.Pattern
	if m.IgnoreCase {
		expr = "(?i)" + expr
	}
	re, err := regexp.Compile(expr)
	if err != nil {
		return badRequest("pattern: %v (the syntax is RE2: no look-around, no back-references)", err)
	}
	if m.Glob != "" && !doublestar.ValidatePattern(m.Glob) {
		return badRequest("glob %q is malformed: check its brackets and braces", m.Glob)
	}
	if err := checkRoot(m.Root); err != nil {
		return err
	}
	if wire.SendReply(stream, nil, nil) != nil {
		return nil
	}
	req := *m
	req.MaxLine = min(max(req.MaxLine, 1), 4096)
	req.Before, req.After = min(max(req.Before, 0), maxContext), min(max(req.After, 0), maxContext)
	g := &grepper{re: re, req: &req, out: &batch[wire.GrepMatch]{w: stream, limit: limitOf(m.Limit)}, buf: bufio.NewReaderSize(nil, 64<<10)}
	unread := 0
	skipped, werr := walkFiles(ctx, m.Root, func(path, rel string, d fs.DirEntry) error {
		hidden := rel != "." && strings.HasPrefix(d.Name(), ".") && !m.Hidden
		switch {
		case d.IsDir() && hidden:
			return fs.SkipDir
		case !d.Type().IsRegular() || hidden:
			return nil
		case m.Glob != "" && !doublestar.MatchUnvalidated(m.Glob, rel) && !doublestar.MatchUnvalidated(m.Glob, d.Name()):
			return nil
		}
		if rel == "." {
			rel = d.Name()
		}
		err := g.file(ctx, path, rel)
		var perr *fs.PathError
		if errors.As(err, &perr) {
			unread++
			return nil
		}
		return err
	})
	g.out.end(m.Root, werr, skipped+unread)
	return nil
}

// file searches one file. A file with a NUL byte in its first part is taken for
// binary and left out.
func (g *grepper) file(ctx context.Context, path, rel string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	g.buf.Reset(f)
	if head, _ := g.buf.Peek(8 << 10); bytes.IndexByte(head, 0) >= 0 {
		return nil
	}
	var before []wire.GrepMatch
	after := 0
	for n := 1; ; n++ {
		line, err := readLine(g.buf)
		if err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
		if n%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		hit := g.re.Match(line)
		if !hit && g.req.Before == 0 && after == 0 {
			continue
		}
		m := wire.GrepMatch{Path: rel, Line: n, Text: string(line[:min(len(line), g.req.MaxLine)]), Context: !hit}
		switch {
		case hit:
			for _, c := range before {
				if err := g.add(c); err != nil {
					return err
				}
			}
			before, after = before[:0], g.req.After
			if err := g.add(m); err != nil {
				return err
			}
		case after > 0:
			after--
			if err := g.add(m); err != nil {
				return err
			}
		default:
			if len(before) == g.req.Before {
				before = before[1:]
			}
			before = append(before, m)
		}
	}
}

func (g *grepper) add(m wire.GrepMatch) error { return g.out.add(m, len(m.Path)+len(m.Text)+16) }

// readLine returns the next line without its end. Of a line longer than
// maxLineScan the rest is skipped.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if line == nil && err == nil {
			return bytes.TrimRight(part, "\r\n"), nil
		}
		if len(line) < maxLineScan {
			line = append(line, part...)
		}
		switch {
		case err == bufio.ErrBufferFull:
		case err == io.EOF && len(line) > 0, err == nil:
			return bytes.TrimRight(line, "\r\n"), nil
		default:
			return nil, err
		}
	}
}
