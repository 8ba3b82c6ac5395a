package tools

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

func TestReadFileNumbersLinesAndPages(t *testing.T) {
	c := dial(t, Options{})
	c.call("write_file", fmt.Sprintf(`{"path":"/f","content":%s}`, quote("one\ntwo\nthree\nfour\n")))
	r := c.call("read_file", `{"path":"/f","offset":2,"limit":2}`)
	got := decodeAs[ReadFileResult](t, r)
	assert.Equal(t, "two\nthree\n", got.Content)
	assert.Equal(t, 4, got.TotalLines)
	assert.EqualValues(t, 4, got.NextOffset)
	assert.True(t, got.Truncated)
	assert.Len(t, got.SHA256, 64)
	assert.Equal(t, "     2\ttwo\n     3\tthree\n[lines 2 to 3 of 4; read on with offset 4]", r.text())
	got = decodeAs[ReadFileResult](t, c.call("read_file", `{"path":"/f","offset":4}`))
	assert.False(t, got.Truncated)
	assert.Zero(t, got.NextOffset)
	assert.Contains(t, c.call("read_file", `{"path":"/f","offset":9}`).text(), "only 4 lines")
	c.call("write_file", `{"path":"/e","content":""}`)
	assert.Equal(t, "[the file is empty]", c.call("read_file", `{"path":"/e"}`).text())
	r = c.call("read_file", `{"path":"/none"}`)
	assert.True(t, r.IsError)
	assert.Contains(t, r.text(), "no such file")
	assert.Contains(t, r.text(), "list_files")
}

func TestEveryLineOfALongFileCanBeReachedByPaging(t *testing.T) {
	c := dial(t, Options{})
	var b strings.Builder
	for i := range 9000 {
		fmt.Fprintf(&b, "line %d with some more text\n", i)
	}
	c.call("list_files", `{}`)
	c.boxes.session("vm-1").files["/f"] = []byte(b.String())
	all, offset := "", int64(1)
	for offset > 0 {
		page := decodeAs[ReadFileResult](t, c.call("read_file", fmt.Sprintf(`{"path":"/f","offset":%d}`, offset)))
		require.Greater(t, page.Lines, 100)
		all, offset = all+page.Content, page.NextOffset
	}
	assert.Equal(t, b.String(), all)
}

func TestBinaryFilesAreDescribedPicturesShownAndBytesPaged(t *testing.T) {
	c := dial(t, Options{})
	png := "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
	put := func(path, data string) {
		r := c.call("write_file", fmt.Sprintf(`{"path":%q,"encoding":"base64","content":%q}`, path, base64.StdEncoding.EncodeToString([]byte(data))))
		require.False(t, r.IsError, r.text())
	}
	put("/p", png)
	r := c.call("read_file", `{"path":"/p"}`)
	require.Len(t, r.Content, 2)
	assert.Equal(t, "image", r.Content[1].Type)
	assert.Equal(t, "image/png", r.Content[1].MimeType)
	data, err := base64.StdEncoding.DecodeString(r.Content[1].Data)
	require.NoError(t, err)
	assert.Equal(t, png, string(data))

	c.boxes.session("vm-1").files["/big"] = []byte(png + strings.Repeat("\x00", imageBytes))
	r = c.call("read_file", `{"path":"/big"}`)
	require.Len(t, r.Content, 1)
	assert.Contains(t, r.text(), "Make it smaller")

	blob := strings.Repeat("\x00\x01\x02\xff", 10000)
	put("/b", blob)
	assert.Contains(t, c.call("read_file", `{"path":"/b"}`).text(), "is not text: application/octet-stream, 40000 bytes")
	all, offset := "", int64(1)
	for offset > 0 {
		page := decodeAs[ReadFileResult](t, c.call("read_file", fmt.Sprintf(`{"path":"/b","encoding":"base64","offset":%d,"limit":100000}`, offset)))
		part, err := base64.StdEncoding.DecodeString(page.Content)
		require.NoError(t, err)
		all, offset = all+string(part), page.NextOffset
	}
	assert.Equal(t, blob, all)
}

func TestWriteFileChecksItsArgumentsAndThePresentContent(t *testing.T) {
	c := dial(t, Options{})
	r := c.call("write_file", `{"path":"/f","content":"%%","encoding":"base64","mode":"rwx","if_sha256":"abc"}`)
	assert.True(t, r.IsError)
	for _, want := range []string{"`mode`", "`if_sha256`", "not base64"} {
		assert.Contains(t, r.text(), want, "all mistakes at once")
	}
	first := decodeAs[WriteFileResult](t, c.call("write_file", `{"path":"/f","content":"one","mode":"0755"}`))
	assert.True(t, first.Created)
	stale := strings.Repeat("0", 64)
	r = c.call("write_file", fmt.Sprintf(`{"path":"/f","content":"two","if_sha256":%q}`, stale))
	assert.True(t, r.IsError)
	assert.Contains(t, r.text(), "Read it again")
	assert.False(t, c.call("write_file", fmt.Sprintf(`{"path":"/f","content":"two","if_sha256":%q}`, strings.ToUpper(first.SHA256))).IsError)
}

func TestEditFileReturnsADiffWithRightLineNumbers(t *testing.T) {
	c := dial(t, Options{})
	lines := make([]string, 100)
	for i := range lines {
		lines[i] = fmt.Sprintf("line %d", i+1)
	}
	c.call("write_file", fmt.Sprintf(`{"path":"/f","content":%s}`, quote(strings.Join(lines, "\n"))))
	got := decodeAs[EditFileResult](t, c.call("edit_file", `{"path":"/f","old_string":"line 50\n","new_string":"fifty\nand more\n"}`))
	assert.Equal(t, 1, got.Replacements)
	assert.Equal(t, "--- /f\n+++ /f\n@@ -47,7 +47,8 @@\n line 47\n line 48\n line 49\n-line 50\n+fifty\n+and more\n line 51\n line 52\n line 53\n", got.Diff)
	got = decodeAs[EditFileResult](t, c.call("edit_file", `{"path":"/f","old_string":"line 100","new_string":"end"}`))
	assert.Contains(t, got.Diff, "-line 100\n\\ No newline at end of file\n+end\n\\ No newline")
	got = decodeAs[EditFileResult](t, c.call("edit_file", `{"path":"/f","old_string":"line","new_string":"row","replace_all":true}`))
	assert.Equal(t, 98, got.Replacements)
}

func TestEditFileFailsInWordsThatAModelCanCorrectItselfFrom(t *testing.T) {
	c := dial(t, Options{})
	c.call("write_file", fmt.Sprintf(`{"path":"/f","content":%s}`, quote("func main() {\n\tfmt.Println(\"hi\")\n}\n\nfunc other() {\n}\n")))
	r := c.call("edit_file", `{"path":"/f","old_string":"    fmt.Println(\"hi\")","new_string":"x"}`)
	assert.True(t, r.IsError)
	assert.Contains(t, r.text(), "     2\t\tfmt.Println(\"hi\")")
	assert.Contains(t, r.text(), "white space")
	r = c.call("edit_file", `{"path":"/f","old_string":"() {\n","new_string":"x"}`)
	assert.Contains(t, r.text(), "occurs 2 times")
	assert.Contains(t, r.text(), "in lines 1, 5")
	assert.Contains(t, r.text(), "replace_all")
	assert.Contains(t, c.call("edit_file", `{"path":"/f","old_string":"func mian() {","new_string":"x"}`).text(), "     1\tfunc main() {")
	assert.Contains(t, c.call("edit_file", `{"path":"/f","old_string":"completely different","new_string":"x"}`).text(), "No line is similar")
	assert.Contains(t, c.call("edit_file", `{"path":"/f","old_string":"a","new_string":"a"}`).text(), "the same")
	assert.Contains(t, c.call("edit_file", `{"path":"/none","old_string":"a","new_string":"b"}`).text(), "no such file")
}

func TestListGlobAndGrepShowWhatWasFoundAndSayIfThereIsMore(t *testing.T) {
	c := dial(t, Options{})
	assert.Equal(t, "[the directory is empty]", c.call("list_files", `{}`).text())
	sess := c.boxes.session("vm-1")
	sess.entries = []sandbox.FileInfo{
		{Name: "a.go", Type: "file", Size: 12, Mode: 0o644, ModTime: time.Unix(1e9, 0)},
		{Name: "l\nx", Type: "symlink", Mode: 0o777, Target: "a.go"},
	}
	r := c.call("list_files", `{"path":"/src"}`)
	assert.Equal(t, "file    0644           12  a.go\nsymlink 0777            0  l\\nx -> a.go\n[2 entries]", r.text())
	got := decodeAs[EntriesResult](t, r)
	assert.Equal(t, Entry{Name: "a.go", Type: "file", Size: 12, Mode: "0644", Modified: "2001-09-09T01:46:40Z"}, got.Entries[0])
	assert.True(t, decodeAs[EntriesResult](t, c.call("glob", `{"pattern":"*","limit":1}`)).Truncated)
	assert.Contains(t, c.call("glob", `{"pattern":"[a"}`).text(), "pattern")

	sess.matches = []sandbox.GrepMatch{{Path: "a.go", Line: 3, Text: "before", Context: true}, {Path: "a.go", Line: 4, Text: "hit"}}
	assert.Equal(t, "a.go-3-before\na.go:4:hit\n[2 lines]", c.call("grep", `{"pattern":"hit","before":1}`).text())
	r = c.call("grep", `{"pattern":"("}`)
	assert.True(t, r.IsError)
	assert.Contains(t, r.text(), "missing closing )")
}

func TestADirectoryIsListedByNameWithItsDirectoriesMarked(t *testing.T) {
	c, sess := withFiles(t, nil)
	sess.entries = []sandbox.FileInfo{{Name: "z", Type: "file"}, {Name: "b", Type: "dir"}, {Name: "a", Type: "file"}}
	r := c.call("list_files", `{"limit":2}`)
	assert.Regexp(t, `(?s)^file .*  a\ndir .*  b/\n\[2 entries, and there are more`, r.text())
	got := decodeAs[EntriesResult](t, r)
	assert.Equal(t, "b", got.Entries[1].Name, "the mark is for readers only")
	assert.True(t, got.Truncated)
	sess.entries = sess.entries[:1]
	assert.Contains(t, c.call("list_files", `{}`).text(), "[1 entry]")
}

func TestAGlobMayBeAWholePath(t *testing.T) {
	c, sess := withFiles(t, nil)
	sess.entries = []sandbox.FileInfo{{Name: "a/x.go", Type: "file"}}
	for pattern, want := range map[string]sandbox.GlobOptions{
		"/src/**/*.go": {Root: "/src", Pattern: "**/*.go", Limit: 1000},
		"/etc/passwd":  {Root: "/etc", Pattern: "passwd", Limit: 1000},
		"/*":           {Root: "/", Pattern: "*", Limit: 1000},
		"*.go":         {Pattern: "*.go", Limit: 1000},
	} {
		r := c.call("glob", fmt.Sprintf(`{"pattern":%q}`, pattern))
		require.False(t, r.IsError, r.text())
		assert.Equal(t, want, sess.globbed, pattern)
	}
	r := c.call("glob", `{"pattern":"/src/**/*.go"}`)
	assert.Equal(t, "/src/a/x.go", decodeAs[EntriesResult](t, r).Entries[0].Name, "the other tools can take it as it is")
	assert.Contains(t, c.call("glob", `{"pattern":"/src/*","path":"/src"}`).text(), "leave `path` out")
	assert.Contains(t, c.call("glob", `{"pattern":"/"}`).text(), "names a directory; list_files")
}
