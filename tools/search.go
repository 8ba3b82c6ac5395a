package tools

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/bmatcuk/doublestar/v4"
	"github.com/mark3labs/mcp-go/mcp"

	"github.com/gondolin-go/gondolin/sandbox"
)

type listFilesArgs struct {
	Path    string `json:"path" default:"." min:"1" max:"4096" doc:"Directory to list, absolute or relative to the session's directory."`
	Limit   int    `json:"limit" min:"1" max:"10000" default:"1000" doc:"Most entries to return."`
	Session string `json:"session" max:"128" doc:"Id of the session to look in. Default: this connection's own."`
}

type globArgs struct {
	Pattern string `json:"pattern" need:"yes" min:"1" max:"4096" doc:"Pattern for paths below path, such as **/*.go: * and ? within a name, ** over directories, [a-z], {a,b}. One that begins with / is for whole paths; then leave path out."`
	Path    string `json:"path" max:"4096" doc:"Directory to search. Default: the session's."`
	Limit   int    `json:"limit" min:"1" max:"10000" default:"1000" doc:"Most paths to return."`
	Session string `json:"session" max:"128" doc:"Id of the session to look in. Default: this connection's own."`
}

type grepArgs struct {
	Pattern    string `json:"pattern" need:"yes" min:"1" max:"10000" doc:"Regular expression in RE2 syntax, matched within lines."`
	Path       string `json:"path" max:"4096" doc:"File or directory to search. Default: the session's directory."`
	Glob       string `json:"glob" max:"4096" doc:"Only files whose name or path below path matches, such as *.go or src/**."`
	IgnoreCase bool   `json:"ignore_case" default:"false" doc:"Take upper and lower case for the same."`
	Hidden     bool   `json:"hidden" default:"false" doc:"Also search names that begin with a dot."`
	Before     int    `json:"before" min:"0" max:"20" default:"0" doc:"Lines to show before each match."`
	After      int    `json:"after" min:"0" max:"20" default:"0" doc:"Lines to show after each match."`
	Limit      int    `json:"limit" min:"1" max:"10000" default:"200" doc:"Most matching lines to return."`
	Session    string `json:"session" max:"128" doc:"Id of the session to look in. Default: this connection's own."`
}

// listedMost is the most that a session gives of a directory.
const listedMost = 10000

// Entry is one file in a result.
type Entry struct {
	Name     string `json:"name" jsonschema:"name in the directory, or path below the directory searched; the whole path where the pattern was one"`
	Type     string `json:"type" jsonschema:"file, dir, symlink, device, pipe or socket"`
	Size     int64  `json:"size" jsonschema:"bytes"`
	Mode     string `json:"mode" jsonschema:"permissions in octal"`
	Modified string `json:"modified,omitempty" jsonschema:"time of the last change"`
	Target   string `json:"target,omitempty" jsonschema:"where a symlink leads"`
}

// EntriesResult is the structured result of list_files and glob.
type EntriesResult struct {
	Entries   []Entry `json:"entries" jsonschema:"what was found"`
	Truncated bool    `json:"truncated" jsonschema:"whether there is more than entries"`
	Noted
}

// Match is one line that grep found.
type Match struct {
	Path    string `json:"path" jsonschema:"file, below the directory searched"`
	Line    int    `json:"line" jsonschema:"line number, from 1"`
	Text    string `json:"text" jsonschema:"the line, cut if it is very long"`
	Context bool   `json:"context,omitempty" jsonschema:"whether the line only surrounds a match"`
}

// GrepResult is the structured result of grep.
type GrepResult struct {
	Matches   []Match `json:"matches" jsonschema:"the lines found, and those around them"`
	Truncated bool    `json:"truncated" jsonschema:"whether there is more than matches"`
	Noted
}

func (s *Server) addSearch() {
	look := hints{readOnly: true, idempotent: true}
	add(s, tool[listFilesArgs]{
		name: "list_files", title: "List a directory",
		doc:   "List a directory of the machine by name, with type, size and permissions of each entry.",
		hints: look, output: mcp.WithOutputSchema[EntriesResult](), run: s.listFiles,
	})
	add(s, tool[globArgs]{
		name: "glob", title: "Find files by name",
		doc:   "Find files of the machine by a pattern for their path.",
		hints: look, output: mcp.WithOutputSchema[EntriesResult](), run: s.glob,
	})
	add(s, tool[grepArgs]{
		name: "grep", title: "Search in files",
		doc:   "Search the text files of a directory for a regular expression and return the matching lines with file and line number. Binary files are left out.",
		hints: look, output: mcp.WithOutputSchema[GrepResult](), run: s.grep,
	})
}

func (s *Server) listFiles(ctx context.Context, c *call, a *listFilesArgs) (*reply, error) {
	sess, err := s.session(ctx, c, a.Session)
	if err != nil {
		return nil, err
	}
	// The guest lists in the file system's order: what comes first by name is only
	// known once all are there.
	found, more, err := sess.ReadDir(ctx, a.Path, listedMost)
	if err != nil {
		return nil, err
	}
	found = slices.SortedFunc(slices.Values(found), func(x, y sandbox.FileInfo) int { return strings.Compare(x.Name, y.Name) })
	if len(found) > a.Limit {
		found, more = found[:a.Limit], true
	}
	return entriesReply(found, more, "[the directory is empty]"), nil
}

func (s *Server) glob(ctx context.Context, c *call, a *globArgs) (*reply, error) {
	sess, err := s.session(ctx, c, a.Session)
	if err != nil {
		return nil, err
	}
	root, pattern := a.Path, a.Pattern
	absolute := strings.HasPrefix(pattern, "/")
	if absolute {
		if a.Path != "" {
			return nil, toolErrorf("`pattern` is absolute (%s) and `path` is given too; leave `path` out, or write the pattern from there on", short(pattern, 200))
		}
		if root, pattern = doublestar.SplitPattern(pattern); pattern == "" {
			return nil, toolErrorf("`pattern` (%s) names a directory; list_files shows what is in it", short(a.Pattern, 200))
		}
	}
	found, more, err := sess.Glob(ctx, sandbox.GlobOptions{Root: root, Pattern: pattern, Limit: a.Limit})
	if err != nil {
		return nil, err
	}
	if absolute {
		found = slices.Clone(found)
		for i := range found {
			found[i].Name = path.Join(root, found[i].Name)
		}
	}
	return entriesReply(found, more, "[nothing matches; ** reaches into directories, as in **/*.go]"), nil
}

// entriesReply shows as many of the files as fit.
func entriesReply(found []sandbox.FileInfo, more bool, empty string) *reply {
	return fit(len(found), func(n int) *reply {
		r := &EntriesResult{Entries: make([]Entry, 0, n), Truncated: more || n < len(found)}
		var b strings.Builder
		for _, f := range found[:n] {
			e := entryOf(f)
			r.Entries = append(r.Entries, e)
			fmt.Fprintf(&b, "%-7s %s %12d  %s", e.Type, e.Mode, e.Size, e.Name)
			if e.Type == "dir" {
				b.WriteByte('/')
			}
			if e.Target != "" {
				fmt.Fprintf(&b, " -> %s", e.Target)
			}
			b.WriteByte('\n')
		}
		return &reply{data: r, text: b.String() + ending(n, r.Truncated, empty, "entry", "entries")}
	})
}

func entryOf(f sandbox.FileInfo) Entry {
	e := Entry{
		Name: clean(f.Name), Type: f.Type, Size: f.Size,
		Mode: fmt.Sprintf("%04o", f.Mode), Target: clean(f.Target),
	}
	if !f.ModTime.IsZero() {
		e.Modified = f.ModTime.UTC().Format(time.RFC3339)
	}
	return e
}

// clean makes a name of the guest one that JSON and a line of text can hold.
func clean(name string) string {
	name, _ = validUTF8([]byte(name))
	if strings.ContainsAny(name, "\n\r") {
		name = strings.NewReplacer("\n", `\n`, "\r", `\r`).Replace(name)
	}
	return name
}

func ending(n int, more bool, empty, one, many string) string {
	what := many
	if n == 1 {
		what = one
	}
	switch {
	case more:
		return fmt.Sprintf("[%d %s, and there are more; narrow the search]", n, what)
	case n == 0:
		return empty
	}
	return fmt.Sprintf("[%d %s]", n, what)
}

func (s *Server) grep(ctx context.Context, c *call, a *grepArgs) (*reply, error) {
	sess, err := s.session(ctx, c, a.Session)
	if err != nil {
		return nil, err
	}
	found, more, err := sess.Grep(ctx, sandbox.GrepOptions{
		Root: a.Path, Pattern: a.Pattern, Glob: a.Glob, IgnoreCase: a.IgnoreCase, Hidden: a.Hidden,
		Before: a.Before, After: a.After, Limit: a.Limit,
	})
	if err != nil {
		return nil, err
	}
	return fit(len(found), func(n int) *reply {
		r := &GrepResult{Matches: make([]Match, 0, n), Truncated: more || n < len(found)}
		var b strings.Builder
		for _, f := range found[:n] {
			text, _ := validUTF8([]byte(f.Text))
			m := Match{Path: clean(f.Path), Line: f.Line, Text: text, Context: f.Context}
			r.Matches = append(r.Matches, m)
			// As grep -n writes them: a colon after a match, a dash after context.
			mark := ":"
			if m.Context {
				mark = "-"
			}
			fmt.Fprintf(&b, "%s%s%d%s%s\n", m.Path, mark, m.Line, mark, m.Text)
		}
		return &reply{data: r, text: b.String() + ending(n, r.Truncated, "[no line matches]", "line", "lines")}
	}), nil
}
