package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

func put(t *testing.T, s *sandbox.Session, path, content string, o sandbox.WriteOptions) sandbox.Written {
	t.Helper()
	w, err := s.WriteFile(t.Context(), path, strings.NewReader(content), o)
	require.NoError(t, err)
	return w
}

func get(t *testing.T, s *sandbox.Session, path string, offset, limit int64) string {
	t.Helper()
	f, _, err := s.Open(t.Context(), path, offset, limit)
	require.NoError(t, err)
	defer f.Close()
	b, err := io.ReadAll(f)
	require.NoError(t, err)
	return string(b)
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func TestFileOfAnySizeComesBackAsItWasWritten(t *testing.T) {
	s := sharedSession(t)
	for _, size := range []int{0, 1, 131054, 131055, 131056, 5 << 20} {
		data := make([]byte, size)
		r := rand.NewChaCha8([32]byte{byte(size)})
		_, _ = r.Read(data)
		w, err := s.WriteFile(t.Context(), "/root/any", iotest.HalfReader(bytes.NewReader(data)), sandbox.WriteOptions{})
		require.NoError(t, err)
		require.Equal(t, sandbox.Written{Bytes: int64(size), SHA256: digest(data), Created: size == 0}, w)
		require.Equal(t, digest(data), strings.Fields(sh(t, s, "sha256sum /root/any"))[0])
		require.Equal(t, digest(data), digest([]byte(get(t, s, "/root/any", 0, 0))))
	}
	put(t, s, "/root/range", "0123456789", sandbox.WriteOptions{})
	require.Equal(t, "345", get(t, s, "/root/range", 3, 3))
	require.Equal(t, "89", get(t, s, "/root/range", 8, 100))
	require.Empty(t, get(t, s, "/root/range", 100, 5))
}

func TestReplacingKeepsModeOwnerAndLinks(t *testing.T) {
	s := sharedSession(t)
	sh(t, s, "rm -rf /root/r; mkdir /root/r; cd /root/r; echo old > f; chown 12:34 f; chmod 4750 f; ln -s f link")
	put(t, s, "/root/r/link", "new", sandbox.WriteOptions{})
	require.Equal(t, "4750 12 34 new f", sh(t, s, "cd /root/r; stat -c '%a %u %g' f | tr '\\n' ' '; cat f; echo -n ' '; readlink link"))
	mode := uint32(0o600)
	put(t, s, "/root/r/f", "x", sandbox.WriteOptions{Mode: &mode})
	require.Equal(t, "600", sh(t, s, "stat -c %a /root/r/f"))
	put(t, s, "/root/r/f", "yz", sandbox.WriteOptions{Append: true})
	require.Equal(t, "xyz", get(t, s, "/root/r/f", 0, 0))
	put(t, s, "/root/r/a/b/c", "deep", sandbox.WriteOptions{Parents: true, User: "nobody"})
	require.Equal(t, "nobody nobody", sh(t, s, "stat -c %U /root/r/a/b /root/r/a/b/c | paste -sd' '"))
	require.Empty(t, sh(t, s, "find /root/r -name '.gondolin*'"), "no temporary file is left")
}

func TestWriteThatFailsKeepsTheOldContent(t *testing.T) {
	s := sharedSession(t)
	put(t, s, "/root/keep", "precious", sandbox.WriteOptions{})
	broken := io.MultiReader(strings.NewReader("half"), iotest.ErrReader(errors.New("source broke")))
	_, err := s.WriteFile(t.Context(), "/root/keep", broken, sandbox.WriteOptions{})
	require.ErrorContains(t, err, "source broke")
	_, err = s.WriteFile(t.Context(), "/root/keep", strings.NewReader("x"), sandbox.WriteOptions{IfSHA256: digest([]byte("other"))})
	require.ErrorIs(t, err, sandbox.ErrChanged)
	_, err = s.WriteFile(t.Context(), "/root/keep", strings.NewReader("x"), sandbox.WriteOptions{IfAbsent: true})
	require.ErrorIs(t, err, fs.ErrExist)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = s.WriteFile(ctx, "/root/keep", zeros{}, sandbox.WriteOptions{})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, "precious", get(t, s, "/root/keep", 0, 0))
	eventually(t, 10*time.Second, "no temporary file is left", func() bool { return sh(t, s, "ls -A /root | grep -c gondolin- || true") == "0" })

	sh(t, s, "mkdir -p /mnt/small && mount -t tmpfs -o size=1m tmpfs /mnt/small && echo old > /mnt/small/f")
	_, err = s.WriteFile(t.Context(), "/mnt/small/f", io.LimitReader(zeros{}, 8<<20), sandbox.WriteOptions{})
	require.ErrorContains(t, err, "no space left on device")
	require.Equal(t, "old\n", get(t, s, "/mnt/small/f", 0, 0))
	sh(t, s, "umount /mnt/small")
}

func TestFileErrorsNameThePathAndCompare(t *testing.T) {
	s := sharedSession(t)
	_, err := s.Stat(t.Context(), "/no/such")
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, "/no/such")
	_, _, err = s.Open(t.Context(), "/etc", 0, 0)
	require.ErrorContains(t, err, "is a directory")
	sh(t, s, "mkfifo /tmp/fifo 2>/dev/null || true")
	_, _, err = s.Open(t.Context(), "/tmp/fifo", 0, 0)
	require.ErrorContains(t, err, "is a pipe", "it would wait for ever")
	require.ErrorIs(t, s.Mkdir(t.Context(), "/etc", 0o755, false), fs.ErrExist)
	require.ErrorContains(t, s.Remove(t.Context(), "/etc", false), "recursively")
	require.ErrorContains(t, s.Remove(t.Context(), "/", true), "root directory")
	_, err = s.WriteFile(t.Context(), "/proc/version", strings.NewReader("x"), sandbox.WriteOptions{})
	require.Error(t, err)
}

func TestDirectoriesAreMadeListedMovedAndRemoved(t *testing.T) {
	s := sharedSession(t)
	ctx := t.Context()
	require.NoError(t, s.Mkdir(ctx, "/root/d/e", 0o750, true))
	put(t, s, "d/e/file", "x", sandbox.WriteOptions{})
	sh(t, s, `cd /root/d; ln -s e/file link; printf x > "$(printf 'bad\377name')"`)
	list, truncated, err := s.ReadDir(ctx, "/root/d", 0)
	require.NoError(t, err)
	require.False(t, truncated)
	types := map[string]string{}
	for _, f := range list {
		types[f.Name] = f.Type + f.Target
	}
	require.Equal(t, map[string]string{"e": "dir", "link": "symlinke/file", "bad\xffname": "file"}, types)
	_, truncated, err = s.ReadDir(ctx, "/root/d", 2)
	require.NoError(t, err)
	require.True(t, truncated)
	put(t, s, "/root/d/other", "y", sandbox.WriteOptions{})
	require.ErrorIs(t, s.Rename(ctx, "/root/d/e/file", "/root/d/other", false), fs.ErrExist)
	require.NoError(t, s.Rename(ctx, "/root/d/e/file", "/root/d/other", true))
	require.Equal(t, "x", get(t, s, "/root/d/other", 0, 0))
	require.NoError(t, s.Remove(ctx, "/root/d", true))
	_, err = s.Lstat(ctx, "/root/d")
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestTreesAreCopiedInAndOut(t *testing.T) {
	s := sharedSession(t)
	src := filepath.Join(t.TempDir(), "tree")
	require.NoError(t, os.MkdirAll(filepath.Join(src, "sub"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(src, "run.sh"), []byte("#!/bin/sh\necho ran\n"), 0o755))
	big := bytes.Repeat([]byte("0123456789"), 300000)
	require.NoError(t, os.WriteFile(filepath.Join(src, "sub", "big"), big, 0o640))
	require.NoError(t, os.Symlink("sub/big", filepath.Join(src, "link")))
	require.NoError(t, s.CopyIn(t.Context(), src, "/root/in"))
	require.Equal(t, "ran", sh(t, s, "/root/in/tree/run.sh"))
	sh(t, s, "cd /root/in/tree && ln sub/big hard && echo made > made")

	out := t.TempDir()
	require.NoError(t, s.CopyOut(t.Context(), "/root/in/tree", out, 0))
	for _, name := range []string{"sub/big", "hard", "link"} {
		b, err := os.ReadFile(filepath.Join(out, "tree", name))
		require.NoError(t, err)
		require.Equal(t, digest(big), digest(b), name)
	}
	require.ErrorIs(t, s.CopyOut(t.Context(), "/root/in/tree", t.TempDir(), 1000), sandbox.ErrLimit)
	require.ErrorIs(t, s.CopyIn(t.Context(), "/no/such/tree", "/root"), fs.ErrNotExist)
}

// The guest chooses names and links in what is copied out.
func TestCopyOutNeverLeavesItsDirectory(t *testing.T) {
	s := sharedSession(t)
	outside := filepath.Join(t.TempDir(), "outside")
	require.NoError(t, os.WriteFile(outside, []byte("safe"), 0o600))
	out := t.TempDir()
	// A directory that is a link on the host when the copy comes.
	require.NoError(t, os.MkdirAll(filepath.Join(out, "evil"), 0o755))
	require.NoError(t, os.Symlink(filepath.Dir(outside), filepath.Join(out, "evil", "dir")))
	sh(t, s, "rm -rf /root/evil; mkdir -p /root/evil/dir; cd /root/evil; echo pwned > dir/outside; ln -s "+outside+" abs; ln -s ../../outside up; cp /bin/true suid; chmod 4755 suid; mknod dev c 1 3; mkfifo pipe")
	_ = s.CopyOut(t.Context(), "/root/evil", out, 0)
	b, err := os.ReadFile(outside)
	require.NoError(t, err)
	require.Equal(t, "safe", string(b))
	require.NoError(t, s.Remove(t.Context(), "/root/evil/dir", true))
	require.NoError(t, s.CopyOut(t.Context(), "/root/evil", out, 0))
	for _, name := range []string{"abs", "up", "dev", "pipe"} {
		_, err := os.Lstat(filepath.Join(out, "evil", name))
		require.ErrorIs(t, err, fs.ErrNotExist, name)
	}
	st, err := os.Stat(filepath.Join(out, "evil", "suid"))
	require.NoError(t, err)
	require.Zero(t, st.Mode()&fs.ModeSetuid)
}

func TestSearchFindsWhatIsThereWithinItsLimits(t *testing.T) {
	s := sharedSession(t)
	sh(t, s, "rm -rf /root/s; mkdir -p /root/s/a/b /root/s/.hid; cd /root/s; echo 'one two' > a/x.go; printf 'l1\\nl2 match\\nl3\\n' > a/b/y.go; echo match > .hid/z.go; printf 'match\\0' > bin.go; echo none > n.txt")
	list, _, err := s.Glob(t.Context(), sandbox.GlobOptions{Root: "/root/s", Pattern: "**/*.{go,txt}"})
	require.NoError(t, err)
	names := []string{}
	for _, f := range list {
		names = append(names, f.Name)
	}
	require.ElementsMatch(t, []string{"a/x.go", "a/b/y.go", ".hid/z.go", "bin.go", "n.txt"}, names)
	m, truncated, err := s.Grep(t.Context(), sandbox.GrepOptions{Root: "/root/s", Pattern: "MATCH$", IgnoreCase: true, Before: 1, After: 1, Glob: "*.go"})
	require.NoError(t, err)
	require.False(t, truncated)
	require.Equal(t, []sandbox.GrepMatch{
		{Path: "a/b/y.go", Line: 1, Text: "l1", Context: true}, {Path: "a/b/y.go", Line: 2, Text: "l2 match"}, {Path: "a/b/y.go", Line: 3, Text: "l3", Context: true},
	}, m)
	_, truncated, err = s.Grep(t.Context(), sandbox.GrepOptions{Root: "/usr/lib/python3", Pattern: "e", Limit: 10})
	require.NoError(t, err)
	require.True(t, truncated)
	_, _, err = s.Grep(t.Context(), sandbox.GrepOptions{Root: "/root", Pattern: "(?=x)"})
	require.ErrorContains(t, err, "RE2")
	_, _, err = s.Glob(t.Context(), sandbox.GlobOptions{Root: "/root", Pattern: "[a"})
	require.ErrorContains(t, err, "malformed")
}

func TestLinesAreCountedAndRangesAreExact(t *testing.T) {
	s := sharedSession(t)
	put(t, s, "/root/lines", "a\r\nb\n\nlast", sandbox.WriteOptions{})
	l, err := s.ReadLines(t.Context(), "/root/lines", 1, 100, 1000)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b", "", "last"}, l.Lines)
	require.Equal(t, 4, l.TotalLines)
	require.Equal(t, digest([]byte("a\r\nb\n\nlast")), l.SHA256)
	require.False(t, l.Truncated)
	l, err = s.ReadLines(t.Context(), "/root/lines", 2, 1, 1000)
	require.NoError(t, err)
	require.Equal(t, []string{"b"}, l.Lines)
	require.True(t, l.Truncated)
	put(t, s, "/root/lines", strings.Repeat("x", 100000)+"\nsecond\n", sandbox.WriteOptions{})
	l, err = s.ReadLines(t.Context(), "/root/lines", 1, 10, 10)
	require.NoError(t, err)
	require.Equal(t, []string{"xxxxxxxxxx"}, l.Lines)
	require.Equal(t, 2, l.TotalLines)
	require.True(t, l.Truncated)
	l, err = s.ReadLines(t.Context(), "/bin/true", 1, 10, 1000)
	require.NoError(t, err)
	require.True(t, l.Binary)
}

func TestClockOfTheGuestIsTheHosts(t *testing.T) {
	s := newSession(t, newHost(t, sandbox.HostOptions{}), sandbox.Options{})
	now := time.Now()
	guest := sh(t, s, "date +%s.%N")
	d, err := time.ParseDuration(guest + "s")
	require.NoError(t, err)
	require.InDelta(t, float64(now.UnixNano())/1e9, d.Seconds(), 1)
}
