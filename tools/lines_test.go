package tools

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

// withFiles is a connection whose default session has these files.
func withFiles(t *testing.T, files map[string]string) (*connection, *fakeSession) {
	t.Helper()
	c := dial(t, Options{})
	c.call("list_files", `{}`)
	sess := c.boxes.session("vm-1")
	sess.as = map[string]sandbox.FileInfo{}
	for name, data := range files {
		sess.files[name] = []byte(data)
	}
	return c, sess
}

func TestOnlyRegularFilesAreReadAndEdited(t *testing.T) {
	c, sess := withFiles(t, map[string]string{"/etc": "", "/dev/zero": "\x00\x00", "/pipe": "", "/sock": "", "/huge": "x"})
	sess.as = map[string]sandbox.FileInfo{
		"/etc": {Type: "dir", Size: 4096}, "/dev/zero": {Type: "device"}, "/pipe": {Type: "pipe"}, "/sock": {Type: "socket"},
		"/huge": {Type: "file", Size: 1 << 47},
	}
	for path, want := range map[string]string{
		"/etc":      "/etc is a directory; list_files shows what is in it",
		"/dev/zero": "/dev/zero is a device and no file; exec with head -c",
		"/pipe":     "/pipe is a named pipe (fifo) and no file",
		"/sock":     "/sock is a socket and no file",
		"/huge":     "/huge has 140737488355328 bytes",
	} {
		calls := map[string]string{
			"read_file": `{"path":%q}`,
			"edit_file": `{"path":%q,"old_string":"a","new_string":"b"}`,
		}
		for tool, args := range calls {
			r := c.call(tool, fmt.Sprintf(args, path))
			assert.True(t, r.IsError, "%s %s", tool, path)
			assert.Contains(t, r.text(), want, tool)
		}
		if path != "/huge" {
			assert.Contains(t, c.call("read_file", fmt.Sprintf(`{"path":%q,"encoding":"base64"}`, path)).text(), want)
		}
	}
}

func TestFilesThatLieAboutTheirSizeReadWhole(t *testing.T) {
	c, sess := withFiles(t, map[string]string{"/proc/version": "Linux\n", "/sys/x": "1\n", "/proc/bin": "\x00\x01\x02"})
	sess.as = map[string]sandbox.FileInfo{
		"/proc/version": {Type: "file", Size: 0}, "/sys/x": {Type: "file", Size: 4096}, "/proc/bin": {Type: "file", Size: 0},
	}
	got := decodeAs[ReadFileResult](t, c.call("read_file", `{"path":"/proc/version"}`))
	assert.Equal(t, "Linux\n", got.Content)
	assert.EqualValues(t, 6, got.Size)
	for path, want := range map[string]string{"/proc/version": "Linux\n", "/sys/x": "1\n", "/proc/bin": "\x00\x01\x02"} {
		got = decodeAs[ReadFileResult](t, c.call("read_file", fmt.Sprintf(`{"path":%q,"encoding":"base64"}`, path)))
		data, err := base64.StdEncoding.DecodeString(got.Content)
		require.NoError(t, err)
		assert.Equal(t, want, string(data))
		assert.EqualValues(t, len(want), got.Size)
		assert.False(t, got.Truncated, "there is nothing more, whatever the size says")
		assert.NotEmpty(t, got.SHA256)
	}
	got = decodeAs[ReadFileResult](t, c.call("read_file", `{"path":"/proc/version","encoding":"base64","limit":2}`))
	assert.True(t, got.Truncated)
	assert.EqualValues(t, 3, got.NextOffset)
	assert.Contains(t, c.call("read_file", `{"path":"/proc/version","encoding":"base64","offset":7}`).text(), "no byte at offset 7")
}

func TestLineEndsThatAreNotPlainAreTold(t *testing.T) {
	long := strings.Repeat("x", 64<<10-1) // the buffer ends between \r and \n
	c, _ := withFiles(t, map[string]string{
		"/dos": "a\r\nb\r\n", "/mixed": "a\r\nb\nc\r\n", "/unix": "a\nb\rc\n", "/long": long + "\r\nb\r\n", "/open": "a\r\nb",
	})
	for path, want := range map[string]string{"/dos": "crlf", "/mixed": "mixed", "/unix": "", "/long": "crlf", "/open": "crlf"} {
		r := c.call("read_file", fmt.Sprintf(`{"path":%q,"limit":1}`, path))
		assert.Equal(t, want, decodeAs[ReadFileResult](t, r).LineEndings, path)
		assert.Equal(t, want != "", strings.Contains(r.text(), `\r\n`), path)
	}
	r := c.call("read_file", `{"path":"/dos"}`)
	assert.Equal(t, "a\nb\n", decodeAs[ReadFileResult](t, r).Content)
	assert.Contains(t, c.call("read_file", `{"path":"/mixed"}`).text(), `\r\n at 2 lines and \n alone at 1 line;`)
	assert.Equal(t, "a\nb\rc\n", decodeAs[ReadFileResult](t, c.call("read_file", `{"path":"/unix"}`)).Content, "a lone \\r is content")
}

func TestAnEditThatFailsOnLineEndsSaysSoAndWhatToWrite(t *testing.T) {
	c, sess := withFiles(t, map[string]string{"/dos": "one\r\ntwo\r\nthree\r\n", "/mixed": "one\r\ntwo\nthree\r\n", "/unix": "one\ntwo\n"})
	for args, want := range map[string]string{
		`{"path":"/dos","old_string":"one\ntwo","new_string":"x"}`:       `CRLF line ends: write \r\n`,
		`{"path":"/mixed","old_string":"two\nthree\n","new_string":"x"}`: `both CRLF and plain line ends`,
		`{"path":"/unix","old_string":"one\r\ntwo","new_string":"x"}`:    `write \n in old_string`,
	} {
		r := c.call("edit_file", args)
		assert.True(t, r.IsError, args)
		assert.Contains(t, r.text(), want, args)
	}
	assert.NotContains(t, c.call("edit_file", `{"path":"/dos","old_string":"four","new_string":"x"}`).text(), "CRLF")
	assert.False(t, c.call("edit_file", `{"path":"/dos","old_string":"one\r\ntwo","new_string":"1\r\n2"}`).IsError)
	assert.Equal(t, "1\r\n2\r\nthree\r\n", string(sess.files["/dos"]))
}

func TestWhatIsNoTextOrTooLargeIsNotEdited(t *testing.T) {
	c, sess := withFiles(t, map[string]string{
		"/nul": "a\x00b", "/latin": "caf\xc3\xa9\nna\xefve\n", "/large": strings.Repeat("a", editBytes+1), "/fffd": "\uFFFD a\n",
	})
	for path, want := range map[string]string{
		"/nul":   "/nul is no text file: it has a NUL byte. Change it with a program, such as python3",
		"/latin": "bytes that are not UTF-8, first in line 2",
		"/large": "has 33554433 bytes, and at most 32 MiB can be edited; change it with sed",
	} {
		before := string(sess.files[path])
		r := c.call("edit_file", fmt.Sprintf(`{"path":%q,"old_string":"a","new_string":"b","replace_all":true}`, path))
		assert.True(t, r.IsError, path)
		assert.Contains(t, r.text(), want)
		assert.Equal(t, before, string(sess.files[path]), path)
	}
	// A file that is larger than it says, as those of /proc are.
	sess.as["/large"] = sandbox.FileInfo{Type: "file"}
	assert.Contains(t, c.call("edit_file", `{"path":"/large","old_string":"a","new_string":"b"}`).text(), "at most 32 MiB")
	assert.False(t, c.call("edit_file", `{"path":"/fffd","old_string":"a","new_string":"b"}`).IsError)

	sess.changes = true
	r := c.call("edit_file", `{"path":"/fffd","old_string":"b","new_string":"c"}`)
	assert.True(t, r.IsError)
	assert.Contains(t, r.text(), "changed by something else meanwhile")
	assert.NotContains(t, r.text(), "if_sha256", "which edit_file does not have")
}

func TestLinesOfAnyLengthAreCountedAndCutWithinTheirRoom(t *testing.T) {
	for _, tt := range []struct {
		text               string
		first, count, room int
		lines              []string
		total              int
		truncated          bool
	}{
		{"a\r\nb\n\nlast", 1, 100, 1000, []string{"a", "b", "", "last"}, 4, false},
		{"a\r\nb\n\nlast", 2, 1, 1000, []string{"b"}, 4, true},
		{"one\ntwo\n", 1, 10, 5, []string{"one", "t"}, 2, true},
		{"one\ntwo\n", 1, 10, 4, []string{"one"}, 2, true},
		{strings.Repeat("x", 100000) + "\nsecond\n", 1, 10, 10, []string{"xxxxxxxxxx"}, 2, true},
		{strings.Repeat("x", 100000) + "\nsecond", 2, 10, 10, []string{"second"}, 2, false},
		{"", 1, 10, 10, nil, 0, false},
	} {
		f := &textFile{Lines: sandbox.Lines{First: tt.first}}
		require.NoError(t, f.scan(bufio.NewReaderSize(strings.NewReader(tt.text), 4096), tt.count, tt.room))
		name := short(tt.text, 20)
		assert.Equal(t, tt.lines, f.Lines.Lines, name)
		assert.Equal(t, tt.total, f.TotalLines, name)
		assert.Equal(t, tt.truncated, f.Truncated, name)
	}
}
