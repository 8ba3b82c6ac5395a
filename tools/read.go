package tools

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/mark3labs/mcp-go/mcp"

	"github.com/gondolin-go/gondolin/sandbox"
)

type readFileArgs struct {
	Path     string `json:"path" need:"yes" min:"1" max:"4096" doc:"File to read, absolute or relative to the session's directory."`
	Offset   int    `json:"offset" min:"1" default:"1" doc:"First line to read, counted from 1. With encoding base64: first byte, counted from 1."`
	Limit    int    `json:"limit" min:"1" max:"100000" default:"2000" doc:"Most lines to read; fewer come where the result would grow too large. With encoding base64: most bytes."`
	Encoding string `json:"encoding" enum:"text,base64" default:"text" doc:"base64 reads the bytes of any file, text its lines."`
	Session  string `json:"session" max:"128" doc:"Id of the session whose file it is. Default: this connection's own."`
}

// ReadFileResult is the structured result of read_file.
type ReadFileResult struct {
	Path        string `json:"path" jsonschema:"the file"`
	Content     string `json:"content" jsonschema:"the lines without numbers, or base64"`
	Encoding    string `json:"encoding" jsonschema:"text, base64, or none where only the picture or a description is given"`
	FirstLine   int    `json:"first_line,omitempty" jsonschema:"number of the first line in content"`
	Lines       int    `json:"lines,omitempty" jsonschema:"lines in content"`
	TotalLines  int    `json:"total_lines,omitempty" jsonschema:"lines in the file"`
	NextOffset  int64  `json:"next_offset,omitempty" jsonschema:"offset to read on from; missing at the end"`
	Size        int64  `json:"size" jsonschema:"bytes in the file"`
	SHA256      string `json:"sha256,omitempty" jsonschema:"of the whole file, for if_sha256 of write_file"`
	MIMEType    string `json:"mime_type,omitempty" jsonschema:"kind of a file that is not text"`
	Truncated   bool   `json:"truncated" jsonschema:"whether the file has more than content, or a long line was cut"`
	LineEndings string `json:"line_endings,omitempty" jsonschema:"crlf where all lines of the file end with \\r\\n, mixed where some do; content has plain newlines"`
	InvalidUTF8 bool   `json:"invalid_utf8,omitempty" jsonschema:"whether bytes that are not UTF-8 were replaced; do not write such content back"`
	Noted
}

var imageTypes = []string{"image/png", "image/jpeg", "image/gif", "image/webp"}

func (s *Server) addReadFile() {
	add(s, tool[readFileArgs]{
		name: "read_file", title: "Read a file",
		doc: `Read a file of the machine: numbered lines of text, or a picture (png, jpeg, gif, webp up to 5 MiB) as an image.
Other binary files are only described, unless encoding is base64. Read on with next_offset.`,
		hints:  hints{readOnly: true, idempotent: true},
		output: mcp.WithOutputSchema[ReadFileResult](),
		run:    s.readFile,
	})
}

func (s *Server) readFile(ctx context.Context, c *call, a *readFileArgs) (*reply, error) {
	sess, err := s.session(ctx, c, a.Session)
	if err != nil {
		return nil, err
	}
	info, err := regularFile(ctx, sess, a.Path)
	if err != nil {
		return nil, err
	}
	if a.Encoding == "base64" {
		return readBytes(ctx, sess, a)
	}
	if info.Size > textBytes {
		return nil, toolErrorf("%s has %d bytes, which is too much to count its lines; exec with head, tail or sed -n shows a part, and so does encoding=base64",
			short(a.Path, 200), info.Size)
	}
	lines, err := readLines(ctx, sess, a.Path, a.Offset, a.Limit, resultChars)
	if err != nil {
		return nil, err
	}
	if lines.Binary {
		return readBinary(ctx, sess, a, lines)
	}
	if len(lines.Lines.Lines) == 0 && a.Offset > 1 && a.Offset > lines.TotalLines {
		return nil, toolErrorf("%s has only %s; there is none at offset %d", short(a.Path, 200), counted(lines.TotalLines, "line"), a.Offset)
	}
	return fit(resultChars, func(n int) *reply { return linesReply(a.Path, lines, n) }), nil
}

// linesReply shows whole lines of at most n bytes together, the first line cut
// if it alone is longer.
func linesReply(path string, l *textFile, n int) *reply {
	r := &ReadFileResult{
		Path: path, Encoding: "text", FirstLine: l.First, TotalLines: l.TotalLines,
		Size: l.Size, SHA256: l.SHA256, Truncated: l.Truncated, LineEndings: l.endings(),
	}
	var plain, numbered strings.Builder
	left := n
	for i, line := range l.Lines.Lines {
		if len(line)+1 > left {
			r.Truncated = true
			if i > 0 || left == 0 {
				break
			}
			line = string(wholeRunes([]byte(line[:left-1])))
		}
		left -= len(line) + 1
		text, replaced := validUTF8([]byte(line))
		r.InvalidUTF8 = r.InvalidUTF8 || replaced
		r.Lines++
		fmt.Fprintf(&plain, "%s\n", text)
		fmt.Fprintf(&numbered, "%6d\t%s\n", l.First+i, text)
	}
	r.Content = plain.String()
	next := l.First + r.Lines
	text := numbered.String()
	switch {
	case l.TotalLines == 0:
		text = "[the file is empty]"
	case next <= l.TotalLines:
		r.NextOffset, r.Truncated = int64(next), true
		text += fmt.Sprintf("[lines %d to %d of %d; read on with offset %d]", l.First, next-1, l.TotalLines, next)
	case r.Truncated:
		text += fmt.Sprintf("[lines %d to %d of %d; at least one is not whole: exec with cut or head -c shows more of it]", l.First, next-1, l.TotalLines)
	default:
		text += fmt.Sprintf("[lines %d to %d of %d]", l.First, next-1, l.TotalLines)
	}
	switch r.LineEndings {
	case "crlf":
		text += "\n[all lines end with \\r\\n; edit_file needs \\r\\n in old_string and new_string, and write_file writes what it is given]"
	case "mixed":
		text += fmt.Sprintf("\n[line ends are mixed: \\r\\n at %s and \\n alone at %s; edit_file needs them as they are]", counted(l.crlf, "line"), counted(l.lf, "line"))
	}
	if r.InvalidUTF8 {
		text += "\n[bytes that are not UTF-8 are shown as \uFFFD; do not write this back]"
	}
	return &reply{data: r, text: text}
}

// readBinary shows a picture, or says what a file is.
func readBinary(ctx context.Context, sess Session, a *readFileArgs, l *textFile) (*reply, error) {
	data, _, err := readRange(ctx, sess, a.Path, 0, imageBytes+1)
	if err != nil {
		return nil, err
	}
	kind := http.DetectContentType(data)
	r := &ReadFileResult{Path: a.Path, Encoding: "none", Size: l.Size, SHA256: l.SHA256, MIMEType: kind}
	isImage := slices.Contains(imageTypes, kind)
	if isImage && len(data) <= imageBytes {
		return &reply{
			data: r, text: fmt.Sprintf("[%s, %s, %s]", a.Path, kind, counted(l.Size, "byte")),
			blocks: []mcp.Content{mcp.NewImageContent(base64.StdEncoding.EncodeToString(data), kind)},
		}, nil
	}
	r.Truncated = true
	text := fmt.Sprintf("[%s is not text: %s, %s. encoding=base64 reads its bytes; exec with file, od -c or python3 shows more]", a.Path, kind, counted(l.Size, "byte"))
	if isImage {
		text = fmt.Sprintf("[%s is a picture of %d bytes (%s); at most %d are shown. Make it smaller first]", a.Path, l.Size, kind, imageBytes)
	}
	return &reply{data: r, text: text}, nil
}

// readBytes reads a range as base64.
func readBytes(ctx context.Context, sess Session, a *readFileArgs) (*reply, error) {
	const most = (resultChars - notesChars - 4000) / 2 / 4 * 3
	offset, limit := int64(a.Offset-1), int64(min(a.Limit, most))
	// One more than is shown: the sizes that /proc and /sys tell are not those of
	// the content.
	data, info, err := readRange(ctx, sess, a.Path, offset, limit+1)
	if err != nil {
		return nil, err
	}
	if len(data) == 0 && offset > 0 {
		return nil, toolErrorf("%s has no byte at offset %d", short(a.Path, 200), a.Offset)
	}
	more := int64(len(data)) > limit
	data = data[:min(int64(len(data)), limit)]
	end := offset + int64(len(data))
	r := &ReadFileResult{
		Path: a.Path, Encoding: "base64", Content: base64.StdEncoding.EncodeToString(data), Size: end, Truncated: more,
	}
	switch {
	case more:
		r.Size, r.NextOffset = max(info.Size, end+1), end+1
	case offset == 0:
		sum := sha256.Sum256(data)
		r.SHA256 = hex.EncodeToString(sum[:])
	}
	text := fmt.Sprintf("[bytes %d to %d of %d]", a.Offset, end, r.Size)
	if more {
		text = fmt.Sprintf("[bytes %d to %d of %d; read on with offset %d]", a.Offset, end, r.Size, r.NextOffset)
	}
	return &reply{data: r, text: r.Content + "\n" + text}, nil
}

func readRange(ctx context.Context, sess Session, path string, offset, limit int64) (data []byte, info sandbox.FileInfo, err error) {
	f, info, err := sess.Open(ctx, path, offset, limit)
	if err != nil {
		return nil, info, err
	}
	data, err = io.ReadAll(io.LimitReader(f, limit))
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return data, info, err
}
