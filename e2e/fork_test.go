package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/netguard/secret"
	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/vfs"
)

// fork makes n copies of a session.
func fork(t *testing.T, s *sandbox.Session, n int) []*sandbox.Session {
	t.Helper()
	f, err := s.Fork(t.Context(), sandbox.ForkOptions{Count: n})
	require.NoError(t, err)
	t.Logf("the session stood still for %v", f.Pause)
	for _, c := range f.Sessions {
		t.Cleanup(func() { c.Close() })
	}
	return f.Sessions
}

// counter starts a process that counts in memory, and returns what asks it how far it is.
func counter(t *testing.T, s *sandbox.Session) (job string, count func(s *sandbox.Session) int) {
	t.Helper()
	j, err := s.StartJob(t.Context(), sandbox.Command{Shell: `n=0; while :; do n=$((n+1)); echo $n > /dev/shm/count; echo $n; sleep 0.02; done`})
	require.NoError(t, err)
	count = func(s *sandbox.Session) int {
		n, _ := strconv.Atoi(sh(t, s, "cat /dev/shm/count 2>/dev/null || echo 0"))
		return n
	}
	eventually(t, 20*time.Second, "it counts", func() bool { return count(s) > 5 })
	return j.ID, count
}

func TestForkKeepsProcessesJobsMemoryAndDiskOfBoth(t *testing.T) {
	h := templated(t, sandbox.HostOptions{}, small)
	s := newSession(t, h, small)
	require.Equal(t, sandbox.OriginCloned, s.Info().Origin)
	job, count := counter(t, s)
	sh(t, s, "echo on disk > /root/file; echo in memory > /dev/shm/file")
	at := count(s)
	forks := fork(t, s, 2)
	require.Len(t, forks, 2)
	for i, c := range append(forks, s) {
		require.GreaterOrEqual(t, count(c), at, i)
		before := count(c)
		eventually(t, 20*time.Second, "it counts on", func() bool { return count(c) > before+5 })
		require.Equal(t, "on disk\nin memory", sh(t, c, "cat /root/file /dev/shm/file"))
		chunk, err := c.Output(t.Context(), job, 0, 1<<10, 0)
		require.NoError(t, err)
		require.Contains(t, string(chunk.Data), "1\n2\n3\n")
		require.Equal(t, sandbox.JobRunning, chunk.Job.State)
	}
	require.Equal(t, sandbox.OriginForked, forks[0].Info().Origin)
	sh(t, forks[0], "echo changed > /root/file; echo changed > /dev/shm/file")
	require.NoError(t, forks[0].Signal(t.Context(), job, "KILL"))
	for _, c := range []*sandbox.Session{s, forks[1]} {
		require.Equal(t, "on disk\nin memory", sh(t, c, "cat /root/file /dev/shm/file"))
		before := count(c)
		eventually(t, 20*time.Second, "it counts on", func() bool { return count(c) > before })
	}
}

// A process that draws random numbers all the time draws none in a copy before that has
// entropy of its own.
func TestForksShareNoRandomNumbersNoNamesAndNoClock(t *testing.T) {
	h := templated(t, sandbox.HostOptions{}, small)
	s := newSession(t, h, small)
	job, err := s.StartJob(t.Context(), sandbox.Command{Shell: `exec python3 -uc '
import os, itertools
for i in itertools.count(): print(i, os.getrandom(8).hex())'`, SpoolBytes: 64 << 20})
	require.NoError(t, err)
	drawn := func(s *sandbox.Session) map[string]string {
		list := map[string]string{}
		for offset := int64(0); offset < 1<<20; {
			chunk, err := s.Output(t.Context(), job.ID, offset, 256<<10, 0)
			require.NoError(t, err)
			if len(chunk.Data) == 0 {
				break
			}
			offset = chunk.Next
			for line := range strings.Lines(string(chunk.Data)) {
				if n, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && len(v) == 16 {
					list[n] = v
				}
			}
		}
		return list
	}
	eventually(t, 20*time.Second, "it draws", func() bool { return len(drawn(s)) > 20 })
	forks := fork(t, s, 3)
	require.NoError(t, s.Signal(t.Context(), job.ID, "STOP"))
	all := []map[string]string{drawn(s)}
	ids := map[string]bool{sh(t, s, "cat /etc/machine-id"): true}
	for _, c := range forks {
		begun := len(drawn(c))
		eventually(t, 20*time.Second, "it draws on", func() bool { return len(drawn(c)) > begun+20 })
		require.NoError(t, c.Signal(t.Context(), job.ID, "STOP"))
		all = append(all, drawn(c))
		ids[sh(t, c, "cat /etc/machine-id")] = true
		clock, err := strconv.ParseFloat(sh(t, c, "date +%s.%N"), 64)
		require.NoError(t, err)
		require.InDelta(t, float64(time.Now().UnixNano())/1e9, clock, 1)
	}
	require.Len(t, ids, 4)
	for i := range all {
		for j := range i {
			common, parted := 0, false
			for n := 0; ; n++ {
				a, b := all[i][strconv.Itoa(n)], all[j][strconv.Itoa(n)]
				if a == "" || b == "" {
					break
				}
				if a == b {
					require.False(t, parted, "number %d is the same again", n)
					common++
				} else {
					parted = true
				}
			}
			require.True(t, parted, "%d and %d drew the same", i, j)
			t.Logf("%d and %d have %d numbers in common, from before", i, j, common)
		}
	}
}

func TestForkWithOpenFilesOfAMountIsRefusedWithTheirHolder(t *testing.T) {
	h := templated(t, sandbox.HostOptions{}, small)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("shared\n"), 0o644))
	root, err := vfs.HostDir(dir, vfs.HostDirOptions{})
	require.NoError(t, err)
	defer root.Close()
	o := small
	o.Mounts = []sandbox.Mount{{Path: "/work", Root: root}}
	s := newSession(t, h, o)
	for what, command := range map[string]string{
		"/work/file open":                "exec 3< /work/file; exec sleep 1000",
		"/work as its working directory": "cd /work; exec sleep 1000",
		"a mount namespace of its own":   "exec unshare -m sleep 1000",
	} {
		job, err := s.StartJob(t.Context(), sandbox.Command{Shell: command})
		require.NoError(t, err)
		eventually(t, 20*time.Second, "it sleeps", func() bool { return strings.Contains(sh(t, s, "ps -eo args"), "sleep 1000") })
		_, err = s.Fork(t.Context(), sandbox.ForkOptions{})
		require.ErrorIs(t, err, sandbox.ErrBusy)
		require.ErrorContains(t, err, "(sleep) has "+what)
		_, err = s.Snapshot(t.Context(), "busy", sandbox.SnapshotOptions{})
		require.ErrorIs(t, err, sandbox.ErrBusy)
		require.NoError(t, s.Signal(t.Context(), job.ID, "KILL"))
		eventually(t, 20*time.Second, "it is gone", func() bool { return !strings.Contains(sh(t, s, "ps -eo args"), "sleep 1000") })
	}
	require.Len(t, h.Sessions(), 1)
	c := fork(t, s, 1)[0]
	for i, m := range []*sandbox.Session{s, c} {
		require.Equal(t, "shared", sh(t, m, "cat /work/file"))
		sh(t, m, fmt.Sprintf("echo %d > /work/by-%d", i, i))
		b, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("by-%d", i)))
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintln(i), string(b))
	}
	require.NoError(t, s.Close())
	require.Equal(t, "shared", sh(t, c, "cat /work/file"), "each has its own connection")
	_, err = c.Fork(t.Context(), sandbox.ForkOptions{})
	require.NoError(t, err, "a copy can be copied")
}

// A program that was started before the fork and holds a placeholder, trusts the authority and has a
// connection open.
func TestForkedProcessKeepsItsSecretAndLosesItsConnections(t *testing.T) {
	const value = "s3cr3t-value-of-the-operator"
	t.Setenv("E2E_TOKEN", value)
	seen := make(chan string, 64)
	hang := make(chan struct{})
	defer close(hang)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			select {
			case <-hang:
			case <-r.Context().Done():
			}
			return
		}
		seen <- r.Header.Get("Authorization")
	})
	store, err := secret.Open(t.Context(), []secret.Spec{{Name: "TOKEN", Hosts: []string{"example.com"}, GuestEnv: []string{"TOKEN"}, From: secret.From{Env: "E2E_TOKEN"}}}, secret.Options{})
	require.NoError(t, err)
	out := newOutside(t, handler, store)
	o := small
	o.Network = out.network
	s := newSession(t, templated(t, sandbox.HostOptions{}, small), o)
	job, err := s.StartJob(t.Context(), sandbox.Command{Shell: `until [ -e /dev/shm/go ]; do sleep 0.05; done; curl -sS -H "Authorization: Bearer $TOKEN" ` + out.url(t, true) + ` && echo done`})
	require.NoError(t, err)
	waiting, err := s.StartJob(t.Context(), sandbox.Command{Shell: `curl -sSN ` + out.url(t, false) + `/hang; echo ended $?`})
	require.NoError(t, err)
	eventually(t, 20*time.Second, "it is connected", func() bool { return strings.Contains(sh(t, s, "cat /proc/net/tcp /proc/net/tcp6"), " 01 ") })

	c := fork(t, s, 1)[0]
	eventually(t, 20*time.Second, "the copy's connection is reset", func() bool {
		chunk, err := c.Output(t.Context(), waiting.ID, 0, 1<<10, 100*time.Millisecond)
		require.NoError(t, err)
		return strings.Contains(string(chunk.Data), "ended 56") // CURLE_RECV_ERROR
	})
	state, err := s.Job(t.Context(), waiting.ID)
	require.NoError(t, err)
	require.Equal(t, sandbox.JobRunning, state.State, "the session's own connection is untouched")
	for _, m := range []*sandbox.Session{c, s} {
		sh(t, m, "touch /dev/shm/go")
		require.Equal(t, "Bearer "+value, <-seen)
		eventually(t, 20*time.Second, "it is done", func() bool {
			chunk, err := m.Output(t.Context(), job.ID, 0, 1<<10, 100*time.Millisecond)
			require.NoError(t, err)
			return string(chunk.Data) == "done\n"
		})
		require.NotContains(t, sh(t, m, "echo $TOKEN"), value)
		sh(t, m, `curl -sS -H "Authorization: Bearer $TOKEN" `+out.url(t, true))
		require.Equal(t, "Bearer "+value, <-seen, "a new process too")
	}
}

func TestForksBeyondTheLimitOfSessionsAreRefusedAndNoneIsMade(t *testing.T) {
	h := newHost(t, sandbox.HostOptions{MaxSessions: 3})
	s := newSession(t, h, small)
	_, err := s.Fork(t.Context(), sandbox.ForkOptions{Count: 3})
	require.ErrorIs(t, err, sandbox.ErrLimit)
	require.ErrorContains(t, err, "ask for 2")
	require.Len(t, h.Sessions(), 1)
	require.Len(t, fork(t, s, 2), 2, "of a session that was booted, too")
}
