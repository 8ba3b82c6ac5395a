package tools

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"unicode/utf8"

	"github.com/gondolin-go/gondolin/sandbox"
)

// textBytes is the largest file that read_file looks through: its lines are
// counted and hashed to the end, and some files of /proc have none.
const textBytes = 1 << 30

// regularFile describes a file and refuses what is none: a device never ends,
// a pipe or a socket waits for somebody. What /proc and /sys hold are files.
func regularFile(ctx context.Context, sess Session, path string) (sandbox.FileInfo, error) {
	info, err := sess.Stat(ctx, path)
	if err != nil {
		return info, err
	}
	switch path = short(path, 200); info.Type {
	case "file":
		return info, nil
	case "dir":
		return info, toolErrorf("%s is a directory; list_files shows what is in it", path)
	case "device":
		return info, toolErrorf("%s is a device and no file; exec with head -c reads a given number of bytes from it", path)
	case "pipe":
		return info, toolErrorf("%s is a named pipe (fifo) and no file; exec with timeout and cat reads what is written to it", path)
	case "socket":
		return info, toolErrorf("%s is a socket and no file; a program has to connect to it", path)
	}
	return info, toolErrorf("%s is no regular file but a %s", path, short(printable(info.Type), 40))
}

// textFile is a range of a file's lines and what was seen of the whole file.
type textFile struct {
	sandbox.Lines
	crlf, lf int // how many lines end with \r\n, and with \n alone
}

// endings names line ends that are not all plain, or is empty.
func (f *textFile) endings() string {
	switch {
	case f.crlf == 0:
		return ""
	case f.lf == 0:
		return "crlf"
	}
	return "mixed"
}

// readLines reads count lines from line first on, at most room bytes of them.
func readLines(ctx context.Context, sess Session, path string, first, count, room int) (*textFile, error) {
	f, _, err := sess.Open(ctx, path, 0, 0)
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	size := &byteCount{}
	t := &textFile{Lines: sandbox.Lines{First: first}}
	err = t.scan(bufio.NewReaderSize(io.TeeReader(f, io.MultiWriter(sum, size)), 64<<10), count, room)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	t.Size, t.SHA256 = size.n, hex.EncodeToString(sum.Sum(nil))
	return t, err
}

type byteCount struct{ n int64 }

func (c *byteCount) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// scan reads to the end of r and keeps the lines of the range.
func (f *textFile) scan(r *bufio.Reader, count, room int) error {
	var line []byte // what is kept of the line under way
	before := byte('\n')
	for {
		part, err := r.ReadSlice('\n')
		if len(part) > 0 {
			if before == '\n' {
				f.TotalLines++
			}
			ended := f.countEnding(before, part)
			before = part[len(part)-1]
			f.Binary = f.Binary || bytes.IndexByte(part, 0) >= 0
			switch n := f.TotalLines - f.First; {
			case n < 0:
			case n >= count, room <= 0:
				f.Truncated = true
			default:
				keep := min(len(part), room)
				room -= keep
				line = append(line, part[:keep]...)
				f.Truncated = f.Truncated || keep < len(part)
				if ended || room <= 0 {
					f.Lines.Lines = append(f.Lines.Lines, string(withoutEnding(line)))
					line = line[:0]
				}
			}
		}
		switch err {
		case nil, bufio.ErrBufferFull:
		case io.EOF:
			if len(line) > 0 {
				f.Lines.Lines = append(f.Lines.Lines, string(line))
			}
			return nil
		default:
			return err
		}
	}
}

// countEnding notes the line end of a part, if it has one. A long line comes in
// parts, and one may end between \r and \n.
func (f *textFile) countEnding(before byte, part []byte) bool {
	last := len(part) - 1
	if part[last] != '\n' {
		return false
	}
	if last > 0 {
		before = part[last-1]
	}
	if before == '\r' {
		f.crlf++
	} else {
		f.lf++
	}
	return true
}

func withoutEnding(line []byte) []byte {
	if bare, ok := bytes.CutSuffix(line, []byte("\n")); ok {
		return bytes.TrimSuffix(bare, []byte("\r"))
	}
	return line
}

// notText says why data is no text that can be edited, or nothing.
func notText(data []byte) string {
	if i := bytes.IndexByte(data, 0); i >= 0 {
		return "it has a NUL byte"
	}
	for at := 0; at < len(data); {
		r, n := utf8.DecodeRune(data[at:])
		if r == utf8.RuneError && n == 1 {
			return "it has bytes that are not UTF-8, first in line " + lineOf(data, at)
		}
		at += n
	}
	return ""
}
