package tools

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"github.com/mark3labs/mcp-go/mcp"

	"github.com/gondolin-go/gondolin/sandbox"
)

type writeFileArgs struct {
	Path     string `json:"path" need:"yes" min:"1" max:"4096" doc:"File to write, absolute or relative to the session's directory. Missing directories are made."`
	Content  string `json:"content" need:"yes" max:"12582912" doc:"The whole new content."`
	Encoding string `json:"encoding" enum:"text,base64" default:"text" doc:"base64 writes the bytes that content encodes."`
	Mode     string `json:"mode" max:"16" doc:"Permissions in octal, such as 0755. Default: those of the file that is there, 0644 for a new one."`
	IfSHA256 string `json:"if_sha256" max:"128" doc:"Write only if the file's present content has this SHA-256, as read_file told it."`
	Session  string `json:"session" max:"128" doc:"Id of the session to write in. Default: this connection's own."`
}

type editFileArgs struct {
	Path       string `json:"path" need:"yes" min:"1" max:"4096" doc:"File to edit, absolute or relative to the session's directory."`
	OldString  string `json:"old_string" need:"yes" min:"1" max:"1048576" doc:"Text to replace, exactly as in the file: indentation and line ends too, without the line numbers of read_file."`
	NewString  string `json:"new_string" need:"yes" max:"1048576" doc:"Text to put in its place; empty to remove it."`
	ReplaceAll bool   `json:"replace_all" default:"false" doc:"Replace every occurrence. Otherwise old_string must occur exactly once."`
	Session    string `json:"session" max:"128" doc:"Id of the session whose file it is. Default: this connection's own."`
}

// WriteFileResult is the structured result of write_file.
type WriteFileResult struct {
	Path    string `json:"path" jsonschema:"the file"`
	Bytes   int64  `json:"bytes" jsonschema:"bytes written"`
	SHA256  string `json:"sha256" jsonschema:"of the new content"`
	Created bool   `json:"created" jsonschema:"whether the file is new"`
	Noted
}

// EditFileResult is the structured result of edit_file.
type EditFileResult struct {
	Path         string `json:"path" jsonschema:"the file"`
	Replacements int    `json:"replacements" jsonschema:"how many occurrences were replaced"`
	Diff         string `json:"diff" jsonschema:"unified diff of the change"`
	Truncated    bool   `json:"truncated" jsonschema:"whether the diff was cut"`
	Noted
}

func (s *Server) addWriteFile() {
	add(s, tool[writeFileArgs]{
		name: "write_file", title: "Write a file",
		doc: `Write a file of the machine, replacing what it held, all or nothing. For small changes edit_file is better.
This is also the way to bring files in: of the client's own file system the machine has at most what is mounted.`,
		hints:  hints{destructive: true, idempotent: true},
		output: mcp.WithOutputSchema[WriteFileResult](),
		run:    s.writeFile,
	})
}

func (s *Server) addEditFile() {
	add(s, tool[editFileArgs]{
		name: "edit_file", title: "Edit a file",
		doc:    "Replace an exact text in a file of the machine and return the diff. It fails, changing nothing, when the text is not there or not unique; the error says what is.",
		hints:  hints{destructive: true},
		output: mcp.WithOutputSchema[EditFileResult](),
		run:    s.editFile,
	})
}

var (
	octal  = regexp.MustCompile(`^(0o?)?[0-7]{3,4}$`)
	digest = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)
)

func (s *Server) writeFile(ctx context.Context, c *call, a *writeFileArgs) (*reply, error) {
	o := sandbox.WriteOptions{Parents: true, IfSHA256: strings.ToLower(a.IfSHA256)}
	var problems []string
	if a.Mode != "" {
		if octal.MatchString(a.Mode) {
			mode, _ := strconv.ParseUint(strings.TrimPrefix(a.Mode, "0o"), 8, 32)
			o.Mode = ptr(uint32(mode))
		} else {
			problems = append(problems, fmt.Sprintf("`mode` must be three or four octal digits such as 0644, not %q", short(a.Mode, 40)))
		}
	}
	if a.IfSHA256 != "" && !digest.MatchString(a.IfSHA256) {
		problems = append(problems, fmt.Sprintf("`if_sha256` must be 64 hexadecimal digits, as read_file tells them, not %q", short(a.IfSHA256, 80)))
	}
	var content io.Reader = strings.NewReader(a.Content)
	if a.Encoding == "base64" {
		data, err := base64.StdEncoding.DecodeString(strings.TrimSpace(a.Content))
		if err != nil {
			problems = append(problems, fmt.Sprintf("`content` is not base64: %s", err))
		}
		content = bytes.NewReader(data)
	}
	if len(problems) > 0 {
		return nil, toolErrorf("nothing was written:\n- %s", strings.Join(problems, "\n- "))
	}
	sess, err := s.session(ctx, c, a.Session)
	if err != nil {
		return nil, err
	}
	w, err := sess.WriteFile(ctx, a.Path, content, o)
	if err != nil {
		return nil, err
	}
	done := "Replaced"
	if w.Created {
		done = "Created"
	}
	return &reply{
		text: fmt.Sprintf("%s %s: %s, sha256 %s.", done, a.Path, counted(w.Bytes, "byte"), w.SHA256),
		data: &WriteFileResult{Path: a.Path, Bytes: w.Bytes, SHA256: w.SHA256, Created: w.Created},
	}, nil
}

func (s *Server) editFile(ctx context.Context, c *call, a *editFileArgs) (*reply, error) {
	if a.OldString == a.NewString {
		return nil, toolErrorf("nothing was changed: `old_string` and `new_string` are the same")
	}
	sess, err := s.session(ctx, c, a.Session)
	if err != nil {
		return nil, err
	}
	before, err := textToEdit(ctx, sess, a.Path)
	if err != nil {
		return nil, err
	}
	// The digest makes sure that what is replaced is what was judged.
	sum := sha256.Sum256(before)
	e, err := sess.EditFile(ctx, a.Path, a.OldString, a.NewString, a.ReplaceAll, hex.EncodeToString(sum[:]))
	switch {
	case errors.Is(err, sandbox.ErrChanged):
		return nil, toolErrorf("nothing was changed: %s was changed by something else meanwhile; read it again and repeat the call", short(a.Path, 200))
	case errors.Is(err, sandbox.ErrNoMatch):
		return nil, noMatch(a, before)
	case err != nil:
		return nil, err
	}
	diff := unifiedDiff(a.Path, e.Before, e.After)
	return fit(20000, func(n int) *reply {
		r := &EditFileResult{Path: a.Path, Replacements: e.Replacements, Diff: diff}
		if len(diff) > n {
			r.Truncated = true
			r.Diff = string(cutEnd([]byte(diff[:n])))
		}
		text := fmt.Sprintf("Replaced %s in %s.\n%s", counted(r.Replacements, "occurrence"), a.Path, r.Diff)
		if r.Truncated {
			text += "\n[the diff is longer]"
		}
		return &reply{data: r, text: text}
	}), nil
}

// editBytes is the largest file that edit_file takes, which is also what
// sandbox edits.
const editBytes = 32 << 20

// textToEdit reads a whole file and refuses what edit_file would damage or
// could not show.
func textToEdit(ctx context.Context, sess Session, path string) ([]byte, error) {
	info, err := regularFile(ctx, sess, path)
	if err != nil {
		return nil, err
	}
	var data []byte
	if info.Size <= editBytes {
		// One byte more: a file of /proc does not say its size, and any may grow.
		if data, info, err = readRange(ctx, sess, path, 0, editBytes+1); err != nil {
			return nil, err
		}
	}
	if size := max(info.Size, int64(len(data))); size > editBytes {
		return nil, toolErrorf("nothing was changed: %s has %d bytes, and at most %d MiB can be edited; change it with sed or python3 in exec", short(path, 200), size, editBytes>>20)
	}
	if why := notText(data); why != "" {
		return nil, toolErrorf("nothing was changed: %s is no text file: %s. Change it with a program, such as python3 in exec, or write it anew with write_file and encoding=base64", short(path, 200), why)
	}
	return data, nil
}
