package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func request(i int) Event {
	return Event{Kind: KindNetwork, Flow: uint64(i), Protocol: "https", Host: "api.test", Port: 443, Method: "GET", Path: fmt.Sprintf("/%d", i),
		Status: 200, Verdict: Allow, Rule: "api", Received: 10, Seconds: 0.5, Done: true}
}

// record makes a closed record of n events.
func record(t *testing.T, dir, session string, n int, o Options) {
	t.Helper()
	l, err := OpenWith(dir, session, o)
	require.NoError(t, err)
	for i := range n {
		require.NoError(t, l.Record(request(i)))
	}
	require.NoError(t, l.Close())
}

func verifyOne(t *testing.T, dir string) Result {
	t.Helper()
	results, err := Verify(dir)
	require.NoError(t, err)
	require.Len(t, results, 1)
	return results[0]
}

func lines(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return strings.SplitAfter(strings.TrimSuffix(string(b), "\n"), "\n")
}

func TestWhatIsRecordedIsReadAgainInOrderAndVerifies(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	record(t, dir, "vm-1", 3, Options{})
	var paths []string
	require.NoError(t, Read(dir, "vm-1", func(r Record) error {
		assert.Equal(t, "vm-1", r.Session)
		if r.Kind == KindNetwork {
			paths = append(paths, r.Path)
			assert.Equal(t, "https://api.test"+r.Path, r.URL())
		}
		return nil
	}))
	assert.Equal(t, []string{"/0", "/1", "/2"}, paths)
	r := verifyOne(t, dir)
	assert.Empty(t, r.Problem)
	assert.Equal(t, StateClosed, r.State)
	assert.EqualValues(t, 5, r.Records, "begin and end are records too")
	assert.ErrorContains(t, Read(dir, "vm-2", nil), `no audit record of the session "vm-2"`)
}

func TestTheRecordIsForItsOwnerOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	record(t, dir, "s", 1, Options{})
	for path, mode := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "s.000001.jsonl"): 0o600} {
		st, err := os.Stat(path)
		require.NoError(t, err)
		assert.Equal(t, mode, st.Mode().Perm(), path)
	}
}

func TestEachChangeOfTheRecordShows(t *testing.T) {
	for name, tt := range map[string]struct {
		change func([]string) []string
		want   string
	}{
		"a line edited":     {func(l []string) []string { l[2] = strings.Replace(l[2], "api.test", "apj.test", 1); return l }, "s.000001.jsonl:4: the record 3 before it is not the one that was written"},
		"a line taken out":  {func(l []string) []string { return append(l[:2:2], l[3:]...) }, "s.000001.jsonl:3: the record has the number 4, and 3 should follow"},
		"a line twice":      {func(l []string) []string { return append(l[:3:3], l[2:]...) }, "s.000001.jsonl:4: the record has the number 3"},
		"lines exchanged":   {func(l []string) []string { l[2], l[3] = l[3], l[2]; return l }, "s.000001.jsonl:3: the record has the number 4"},
		"the beginning cut": {func(l []string) []string { return l[2:] }, "the first 2 records are missing"},
		"a line cut":        {func(l []string) []string { l[5] = l[5][:20]; return l }, "s.000001.jsonl:6: the line is cut off"},
		"rubbish":           {func(l []string) []string { l[1] = "x\n"; return l }, "s.000001.jsonl:2: this is no audit record"},
		"after the end":     {func(l []string) []string { return append(l, l[1]) }, "s.000001.jsonl:7: a record follows the end"},
		"another session":   {func(l []string) []string { l[0] = strings.Replace(l[0], `"s"`, `"t"`, 1); return l }, "s.000001.jsonl:1: the record is of another session"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			record(t, dir, "s", 4, Options{})
			path := filepath.Join(dir, "s.000001.jsonl")
			l := lines(t, path)
			require.Len(t, l, 6)
			l[5] += "\n"
			text := strings.Join(tt.change(l), "")
			require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
			assert.Contains(t, verifyOne(t, dir).Problem, tt.want)
		})
	}
}

func TestACutEndShowsAsUnfinished(t *testing.T) {
	dir := t.TempDir()
	record(t, dir, "s", 4, Options{})
	path := filepath.Join(dir, "s.000001.jsonl")
	require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines(t, path)[:4], "")), 0o600))
	r := verifyOne(t, dir)
	assert.Empty(t, r.Problem)
	assert.Equal(t, StateUnfinished, r.State)
}

func TestARunningSessionIsToldFromOneThatWasCut(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, "s")
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, l.Record(request(1)))
	r := verifyOne(t, dir)
	assert.Equal(t, StateRunning, r.State)
	_, head := l.Head()
	assert.Equal(t, head, r.Hash)
	n, err := Prune(dir, time.Now().Add(time.Hour))
	require.NoError(t, err)
	assert.Zero(t, n, "its record stays")
	require.NoError(t, l.Close())
	n, err = Prune(dir, time.Now().Add(time.Hour))
	require.NoError(t, err)
	assert.Equal(t, 1, n)
	names, err := Sessions(dir)
	require.NoError(t, err)
	assert.Empty(t, names)
}

func TestFilesAreRotatedAndTheOldestAreRemovedProvably(t *testing.T) {
	dir := t.TempDir()
	record(t, dir, "s", 60, Options{FileSize: 1000, Files: 3})
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	assert.Len(t, files, 3)
	for _, f := range files {
		st, err := os.Stat(f)
		require.NoError(t, err)
		assert.Less(t, st.Size(), int64(2000))
	}
	r := verifyOne(t, dir)
	assert.Empty(t, r.Problem)
	assert.Equal(t, StateClosed, r.State)
	assert.Positive(t, r.Removed)

	require.NoError(t, os.Remove(files[0]))
	assert.Contains(t, verifyOne(t, dir).Problem, "records are missing, and nothing says that they were removed")
}

func TestAReaderGetsEachRecordOnceWhileFilesComeAndGo(t *testing.T) {
	dir := t.TempDir()
	l, err := OpenWith(dir, "s", Options{FileSize: 1000, Files: 3})
	require.NoError(t, err)
	r := NewReader(dir, "s")
	var seen []string
	var last uint64
	read := func() {
		require.NoError(t, r.Next(func(rec Record) error {
			require.Greater(t, rec.Seq, last)
			last = rec.Seq
			if rec.Kind == KindNetwork {
				seen = append(seen, rec.Path)
			}
			return nil
		}))
	}
	for i := range 60 {
		require.NoError(t, l.Record(request(i)))
		if i%3 == 0 {
			read()
		}
	}
	read()
	require.Len(t, seen, 60)
	assert.False(t, r.Ended())
	for i := range 40 { // more than is kept: what was removed meanwhile is gone, the rest comes
		require.NoError(t, l.Record(request(100+i)))
	}
	require.NoError(t, l.Close())
	read()
	assert.Equal(t, "/139", seen[len(seen)-1])
	assert.True(t, r.Ended())
}

func TestAReaderThatSkipsGetsWhatComesLater(t *testing.T) {
	dir := t.TempDir()
	l, err := OpenWith(dir, "s", Options{FileSize: 1000, Files: 3})
	require.NoError(t, err)
	for i := range 20 {
		require.NoError(t, l.Record(request(i)))
	}
	r := NewReader(dir, "s")
	require.NoError(t, r.Skip())
	assert.False(t, r.Ended())
	require.NoError(t, l.Record(request(20)))
	var seen []string
	require.NoError(t, r.Next(func(rec Record) error {
		if rec.Kind == KindNetwork {
			seen = append(seen, rec.Path)
		}
		return nil
	}))
	assert.Equal(t, []string{"/20"}, seen)
	require.NoError(t, l.Close())
	r = NewReader(dir, "s")
	require.NoError(t, r.Skip())
	assert.True(t, r.Ended())
}

func TestARecordIsFoundByTheBeginningOfItsName(t *testing.T) {
	dir := t.TempDir()
	_, err := Find(dir, "s")
	require.ErrorContains(t, err, "there is no audit record in")
	for _, name := range []string{"abc1", "abd2", "abd"} {
		record(t, dir, name, 1, Options{})
	}
	for name, want := range map[string]string{"abc": "abc1", "abd": "abd", "abd2": "abd2"} {
		got, err := Find(dir, name)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
	_, err = Find(dir, "ab")
	require.ErrorContains(t, err, `"ab" means several audit records`)
	_, err = Find(dir, "x")
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, "abc1")
}

func TestAFileThatIsMissingInBetweenShows(t *testing.T) {
	dir := t.TempDir()
	record(t, dir, "s", 60, Options{FileSize: 1000, Files: 100})
	require.NoError(t, os.Remove(filepath.Join(dir, "s.000003.jsonl")))
	assert.Contains(t, verifyOne(t, dir).Problem, "s.000004.jsonl:1: the record has the number")
}

func TestARecordThatCannotBeWrittenIsAnErrorAndLeavesNoHalfLine(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, "s")
	require.NoError(t, err)
	good := l.file
	l.file, err = os.Open(filepath.Join(dir, "s.000001.jsonl")) // cannot be written
	require.NoError(t, err)
	require.Error(t, l.Record(request(1)))
	assert.ErrorContains(t, l.Record(request(2)), "cannot be taken back", "from then on all fail")
	require.NoError(t, l.file.Close())
	l.file, l.broken = good, nil
	require.NoError(t, l.Record(request(3)))
	require.NoError(t, l.Close())
	assert.Empty(t, verifyOne(t, dir).Problem)
	assert.ErrorIs(t, l.Record(request(4)), errClosed)
	assert.NoError(t, l.Close())
}

func TestARotationThatFailsIsAnErrorUntilItWorks(t *testing.T) {
	dir := t.TempDir()
	l, err := OpenWith(dir, "s", Options{FileSize: 1})
	require.NoError(t, err)
	obstacle := filepath.Join(dir, "s.000002.jsonl")
	require.NoError(t, os.Mkdir(obstacle, 0o700))
	require.ErrorContains(t, l.Record(request(1)), "beginning an audit record")
	require.NoError(t, os.Remove(obstacle))
	require.NoError(t, l.Record(request(1)))
	require.NoError(t, l.Close())
	r := verifyOne(t, dir)
	assert.Empty(t, r.Problem)
	assert.Equal(t, 2, r.Files)
}

func TestASessionHasOneRecord(t *testing.T) {
	dir := t.TempDir()
	record(t, dir, "s", 1, Options{})
	_, err := Open(dir, "s")
	assert.ErrorIs(t, err, os.ErrExist)
	for _, bad := range []string{"", "../x", "a/b", "a.b", strings.Repeat("x", 101)} {
		_, err := Open(dir, bad)
		assert.ErrorContains(t, err, "cannot name an audit record", bad)
	}
}

func TestTextsOfTheGuestAreBoundedAndStayOnTheirLine(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, "s")
	require.NoError(t, err)
	e := request(1)
	e.Path = "/\n\xff\x00" + strings.Repeat("é", 1<<20)
	e.Secrets = make([]string, 1000)
	require.NoError(t, l.Record(e))
	require.NoError(t, l.Close())
	r := verifyOne(t, dir)
	assert.Empty(t, r.Problem)
	assert.EqualValues(t, 3, r.Records)
	st, err := os.Stat(filepath.Join(dir, "s.000001.jsonl"))
	require.NoError(t, err)
	assert.Less(t, st.Size(), int64(8000))
}

func TestManyRecordAtOnce(t *testing.T) {
	dir := t.TempDir()
	l, err := OpenWith(dir, "s", Options{FileSize: 4000, Files: 1000})
	require.NoError(t, err)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 25 {
				assert.NoError(t, l.Record(request(i*100+j)))
			}
		})
	}
	wg.Wait()
	require.NoError(t, l.Close())
	r := verifyOne(t, dir)
	assert.Empty(t, r.Problem)
	assert.EqualValues(t, 201+r.Files, r.Records)
}

func TestRequestsBecomeAnHTTPArchive(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, "s")
	require.NoError(t, err)
	decided := request(1)
	decided.Status, decided.Done = 0, false
	ended := request(1)
	ended.Addr = "192.0.2.1:443"
	require.NoError(t, l.Record(decided))
	require.NoError(t, l.Record(ended))
	require.NoError(t, l.Record(Event{Kind: KindNetwork, Protocol: "dns", Host: "api.test", Verdict: Deny}))
	require.NoError(t, l.Close())
	var b bytes.Buffer
	require.NoError(t, WriteHAR(&b, dir, "s"))
	var har struct {
		Log struct {
			Version string
			Entries []struct {
				Time            float64
				Request         struct{ Method, URL string }
				Response        struct{ Status int }
				ServerIPAddress string
				Comment         string
			}
		}
	}
	require.NoError(t, json.Unmarshal(b.Bytes(), &har))
	assert.Equal(t, "1.2", har.Log.Version)
	require.Len(t, har.Log.Entries, 1, "a request is one entry, though it is recorded twice")
	e := har.Log.Entries[0]
	assert.Equal(t, "https://api.test/1", e.Request.URL)
	assert.Equal(t, 200, e.Response.Status)
	assert.Equal(t, "192.0.2.1", e.ServerIPAddress)
	assert.Equal(t, `allow by the rule "api"`, e.Comment)
	assert.InDelta(t, 500, e.Time, 0.1)
}

func TestNoDirectoryIsNoRecord(t *testing.T) {
	results, err := Verify(filepath.Join(t.TempDir(), "none"))
	require.NoError(t, err)
	assert.Empty(t, results)
}
