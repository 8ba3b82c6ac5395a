package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// Bounds of EditFile, in bytes: the file and what it becomes.
const (
	maxEdit   = 32 << 20
	maxEdited = 64 << 20
)

// Open reads a guest file from offset on, at most limit bytes, or to its end
// when limit is 0. The caller closes the reader. Relative paths begin at the
// session's working directory, here and everywhere.
func (s *client) Open(ctx context.Context, path string, offset, limit int64) (io.ReadCloser, FileInfo, error) {
	if offset < 0 || limit < 0 {
		return nil, FileInfo{}, fmt.Errorf("reading %s: offset %d and limit %d must not be negative: %w", path, offset, limit, ErrInvalid)
	}
	release := s.use()
	path = s.resolve(path)
	var info wire.FileInfo
	st, err := s.request(ctx, wire.OpRead, path, wire.Read{Path: path, Offset: offset, Limit: limit}, &info)
	if err != nil {
		release()
		return nil, FileInfo{}, err
	}
	left := limit
	if limit == 0 {
		left = math.MaxInt64
	}
	return &fileReader{st: st, data: wire.NewDataReader(st), left: left, release: release}, infoOf(&info), nil
}

type fileReader struct {
	st      *stream
	data    *wire.DataReader
	left    int64 // what the guest may still send
	release func()
}

func (r *fileReader) Read(p []byte) (int, error) {
	// The stream gives what it holds before it looks at a deadline, and a device may never run dry.
	if err := r.st.ctx.Err(); err != nil {
		return 0, r.st.fail(err)
	}
	n, err := r.data.Read(p)
	if r.left -= int64(n); r.left < 0 {
		return 0, r.st.fail(fmt.Errorf("the guest sends more than it was asked for: %w", wire.ErrProtocol))
	}
	return n, r.st.failUnlessEOF(err)
}

func (r *fileReader) Close() error {
	if r.release != nil {
		r.release()
		r.release = nil
	}
	return r.st.Close()
}

func infoOf(f *wire.FileInfo) FileInfo {
	return FileInfo{
		Name: f.Name, Type: f.Type, Size: f.Size, Mode: f.Mode, UID: f.UID, GID: f.GID,
		ModTime: time.Unix(0, f.MtimeNS), Target: f.Target,
	}
}

// Stat describes a file, following links.
func (s *client) Stat(ctx context.Context, path string) (FileInfo, error) {
	return s.stat(ctx, path, false)
}

// Lstat describes a file; a link is described itself.
func (s *client) Lstat(ctx context.Context, path string) (FileInfo, error) {
	return s.stat(ctx, path, true)
}

func (s *client) stat(ctx context.Context, path string, nofollow bool) (FileInfo, error) {
	path = s.resolve(path)
	var info wire.FileInfo
	if err := s.call(ctx, wire.OpStat, path, wire.Path{Path: path, NoFollow: nofollow}, &info); err != nil {
		return FileInfo{}, err
	}
	return infoOf(&info), nil
}

// Mkdir makes a directory, with its missing parents if asked to.
func (s *client) Mkdir(ctx context.Context, path string, mode uint32, parents bool) error {
	path = s.resolve(path)
	return s.call(ctx, wire.OpMkdir, path, wire.Path{Path: path, Mode: &mode, Recursive: parents, User: s.terms().user}, nil)
}

// Rename moves a file within a file system. An existing target is replaced only
// if asked to.
func (s *client) Rename(ctx context.Context, from, to string, replace bool) error {
	from, to = s.resolve(from), s.resolve(to)
	return s.call(ctx, wire.OpRename, from, wire.Rename{From: from, To: to, Replace: replace}, nil)
}

// Remove removes a file or an empty directory, or a whole tree.
func (s *client) Remove(ctx context.Context, path string, recursive bool) error {
	path = s.resolve(path)
	return s.call(ctx, wire.OpRemove, path, wire.Path{Path: path, Recursive: recursive}, nil)
}

// ReadDir lists a directory in the file system's order, at most limit entries (10000 when limit is 0).
func (s *client) ReadDir(ctx context.Context, path string, limit int) ([]FileInfo, bool, error) {
	path = s.resolve(path)
	limit = limitOf(limit, maxResults)
	list, truncated, err := query[wire.FileInfo](ctx, s, wire.OpReadDir, path, wire.Path{Path: path, Limit: limit}, limit)
	return infosOf(list), truncated, err
}

func infosOf(list []wire.FileInfo) []FileInfo {
	out := make([]FileInfo, 0, len(list))
	for i := range list {
		out = append(out, infoOf(&list[i]))
	}
	return out
}

// Bounds of what a search returns: results, and bytes of them on the wire.
const (
	maxResults = 10000
	maxQuery   = 32 << 20
)

func limitOf(n, def int) int {
	if n <= 0 {
		return def
	}
	return min(n, maxResults)
}

// query makes a request whose answer is a list of at most limit items.
func query[T any](ctx context.Context, s *client, op wire.Op, path string, body any, limit int) ([]T, bool, error) {
	defer s.use()()
	st, err := s.request(ctx, op, path, body, nil)
	if err != nil {
		return nil, false, err
	}
	defer st.Close()
	data := wire.NewDataReader(st)
	var all []T
	for size := 0; ; {
		payload, err := data.Next()
		if err == io.EOF {
			return all, data.End().Truncated, nil
		}
		if err != nil {
			return nil, false, st.fail(err)
		}
		if size += len(payload) + 64; size > maxQuery {
			return nil, false, st.fail(fmt.Errorf("more than %d MiB of results: %w", maxQuery>>20, wire.ErrProtocol))
		}
		var batch []T
		if err := wire.Unmarshal(payload, &batch); err != nil {
			return nil, false, st.fail(err)
		}
		if all = append(all, batch...); len(all) > limit {
			return nil, false, st.fail(fmt.Errorf("more than %d results: %w", limit, wire.ErrProtocol))
		}
	}
}

// Glob returns the files below a root whose relative path matches a pattern.
func (s *client) Glob(ctx context.Context, o GlobOptions) ([]FileInfo, bool, error) {
	root, limit := s.searchRoot(o.Root), limitOf(o.Limit, 1000)
	list, truncated, err := query[wire.FileInfo](ctx, s, wire.OpGlob, root, wire.Glob{Root: root, Pattern: o.Pattern, Limit: limit}, limit)
	return infosOf(list), truncated, err
}

func (s *client) searchRoot(root string) string {
	if root = s.resolve(root); root == "" {
		return "/root"
	}
	return root
}

// Grep returns the lines below a root that match a regular expression. Files
// that hold a NUL byte near their begin are left out.
func (s *client) Grep(ctx context.Context, o GrepOptions) ([]GrepMatch, bool, error) {
	if o.Pattern == "" {
		return nil, false, fmt.Errorf("grep: the pattern is empty: %w", ErrInvalid)
	}
	root, limit := s.searchRoot(o.Root), limitOf(o.Limit, 1000)
	if o.MaxLineBytes == 0 {
		o.MaxLineBytes = 500
	}
	list, truncated, err := query[wire.GrepMatch](ctx, s, wire.OpGrep, root, wire.Grep{
		Root: root, Pattern: o.Pattern, Glob: o.Glob, IgnoreCase: o.IgnoreCase, Hidden: o.Hidden,
		Limit: limit, MaxLine: o.MaxLineBytes, Before: o.Before, After: o.After,
	}, limit)
	out := make([]GrepMatch, 0, len(list))
	for _, m := range list {
		out = append(out, GrepMatch(m))
	}
	return out, truncated, err
}

// ReadLines reads count lines from line first on (from 1), at most maxBytes of
// text. The whole file is read, for its number of lines and digest.
func (s *client) ReadLines(ctx context.Context, path string, first, count, maxBytes int) (Lines, error) {
	if first < 1 || count < 1 || maxBytes < 1 {
		return Lines{}, fmt.Errorf("reading lines of %s: first line, count and bytes must be at least 1: %w", path, ErrInvalid)
	}
	f, _, err := s.Open(ctx, path, 0, 0)
	if err != nil {
		return Lines{}, err
	}
	defer f.Close()
	sum := sha256.New()
	size := &counter{}
	l := Lines{First: first}
	if err := l.scan(bufio.NewReaderSize(io.TeeReader(f, io.MultiWriter(sum, size)), 64<<10), count, maxBytes); err != nil {
		return Lines{}, err
	}
	l.Size, l.SHA256 = size.n, hex.EncodeToString(sum.Sum(nil))
	if l.Binary {
		l.Lines, l.Truncated = nil, false
	}
	return l, nil
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// scan reads lines to the end of r and keeps those of the range.
func (l *Lines) scan(r *bufio.Reader, count, maxBytes int) error {
	var line []byte
	inLine := false
	for {
		part, err := r.ReadSlice('\n')
		if len(part) > 0 {
			if !inLine {
				l.TotalLines++
			}
			inLine = part[len(part)-1] != '\n'
			l.Binary = l.Binary || bytes.IndexByte(part, 0) >= 0
			switch n := l.TotalLines - l.First; {
			case n < 0:
			case n >= count:
				l.Truncated = true
			case maxBytes <= 0:
				l.Truncated = true
			default:
				keep := min(len(part), maxBytes)
				l.Truncated = l.Truncated || keep < len(part)
				line = append(line, part[:keep]...)
				maxBytes -= keep
				if !inLine || maxBytes <= 0 {
					l.Lines = append(l.Lines, string(bytes.TrimRight(line, "\r\n")))
					line = line[:0]
				}
			}
		}
		switch {
		case err == nil, errors.Is(err, bufio.ErrBufferFull):
		case err == io.EOF:
			if len(line) > 0 {
				l.Lines = append(l.Lines, string(line))
			}
			return nil
		default:
			return err
		}
	}
}

// EditFile replaces old by new in a text file: the one occurrence, or each if
// all is set. The file is replaced only if it has not changed meanwhile and, if
// ifSHA256 is given, has that digest. Files above 32 MiB are refused.
func (s *client) EditFile(ctx context.Context, path, old, new string, all bool, ifSHA256 string) (EditResult, error) {
	switch {
	case old == "":
		return EditResult{}, fmt.Errorf("editing %s: the text to replace is empty: %w", path, ErrInvalid)
	case old == new:
		return EditResult{}, fmt.Errorf("editing %s: old and new text are the same: %w", path, ErrInvalid)
	}
	f, info, err := s.Open(ctx, path, 0, maxEdit+1)
	if err != nil {
		return EditResult{}, err
	}
	defer f.Close()
	before, err := io.ReadAll(io.LimitReader(f, maxEdit+1))
	if err != nil {
		return EditResult{}, err
	}
	if len(before) > maxEdit {
		return EditResult{}, fmt.Errorf("editing %s: its %d bytes exceed the %d MiB that can be edited; use a command such as sed: %w", path, info.Size, maxEdit>>20, ErrInvalid)
	}
	digest := sha256.Sum256(before)
	have := hex.EncodeToString(digest[:])
	if ifSHA256 != "" && ifSHA256 != have {
		return EditResult{}, fmt.Errorf("editing %s: its SHA-256 digest is %s, not %s; read it again: %w", path, have, ifSHA256, ErrChanged)
	}
	n := bytes.Count(before, []byte(old))
	switch {
	case n == 0:
		return EditResult{Before: before}, fmt.Errorf("editing %s: the text to replace does not occur in it: %w", path, ErrNoMatch)
	case n > 1 && !all:
		return EditResult{Before: before}, fmt.Errorf("editing %s: the text to replace occurs %d times; give more of its surroundings, or replace all: %w", path, n, ErrNoMatch)
	}
	if grown := int64(len(before)) + int64(n)*int64(len(new)-len(old)); grown > maxEdited {
		return EditResult{}, fmt.Errorf("editing %s: the result would have %d bytes, more than the %d MiB that can be edited; use a command such as sed: %w", path, grown, maxEdited>>20, ErrInvalid)
	}
	after := bytes.ReplaceAll(before, []byte(old), []byte(new))
	if _, err := s.WriteFile(ctx, path, bytes.NewReader(after), WriteOptions{IfSHA256: have}); err != nil {
		return EditResult{}, err
	}
	return EditResult{Replacements: n, Before: before, After: after}, nil
}
