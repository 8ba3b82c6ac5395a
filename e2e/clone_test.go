package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/netguard"
	"github.com/gondolin-go/gondolin/sandbox"
)

// templated returns a host whose template for o is ready.
func templated(t *testing.T, ho sandbox.HostOptions, o sandbox.Options) *sandbox.Host {
	t.Helper()
	h := newHost(t, ho)
	o.Image = bootable(defaultImage(t))
	eventually(t, time.Minute, "a session is cloned", func() bool {
		s, err := h.Create(t.Context(), o)
		require.NoError(t, err)
		origin := s.Info().Origin
		require.NoError(t, s.Close())
		return origin == sandbox.OriginCloned
	})
	return h
}

// small keeps many machines in the memory of this one.
var small = sandbox.Options{Limits: sandbox.Limits{MemoryMiB: 256, CPUs: 1, DiskMiB: 1024}}

// DESIGN: clones of one template share their random state until they are reseeded.
func TestClonesShareNoRandomNumbersNoNamesAndNoClock(t *testing.T) {
	h := templated(t, sandbox.HostOptions{MaxSessions: 20}, small)
	const n = 20
	seen := make([]map[string]string, n)
	var wg sync.WaitGroup
	gate := make(chan struct{}, 2) // as many as there are cores: the clock is measured
	for i := range n {
		wg.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			o := small
			o.Image = bootable(defaultImage(t))
			s, err := h.Create(t.Context(), o)
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			if s.Info().Origin != sandbox.OriginCloned {
				t.Errorf("session %d was %s", i, s.Info().Origin)
			}
			got := map[string]string{}
			for name, command := range map[string]string{
				"urandom":    "head -c 16 /dev/urandom | od -An -tx1",
				"getrandom":  "python3 -c 'import os; print(os.getrandom(16).hex())'",
				"uuid":       "cat /proc/sys/kernel/random/uuid",
				"boot id":    "cat /proc/sys/kernel/random/boot_id",
				"machine-id": "cat /etc/machine-id",
				"host name":  "hostname",
				"/etc names": "cat /etc/hostname /etc/hosts",
			} {
				out, exit := try(t, s, sandbox.Command{Shell: command})
				if exit.Code != 0 {
					t.Error(out)
				}
				got[name] = out
			}
			before := time.Now()
			out, _ := try(t, s, sandbox.Command{Shell: "date +%s.%N"})
			after := time.Now()
			clock, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
			if err != nil {
				t.Error(err)
			}
			if guest := time.Unix(0, int64(clock*1e9)); guest.Before(before.Add(-50*time.Millisecond)) || guest.After(after.Add(50*time.Millisecond)) {
				t.Errorf("the guest's clock says %v between %v and %v", guest, before, after)
			}
			seen[i] = got
		})
	}
	wg.Wait()
	values := map[string]int{}
	for i, got := range seen {
		for name, v := range got {
			if j, dup := values[name+v]; dup {
				t.Errorf("clones %d and %d have the same %s: %s", i, j, name, v)
			}
			values[name+v] = i
		}
	}
	require.Len(t, values, n*7)
}

// A template's agent has served a host and run a command before it was saved.
func TestClonesSeeNothingOfWhatTheirTemplateRehearsed(t *testing.T) {
	s := newSession(t, templated(t, sandbox.HostOptions{}, small), small)
	require.Equal(t, sandbox.OriginCloned, s.Info().Origin)
	jobs, err := s.Jobs(t.Context())
	require.NoError(t, err)
	require.Empty(t, jobs)
	job, err := s.StartJob(t.Context(), sandbox.Command{Argv: []string{"/bin/true"}})
	require.NoError(t, err)
	require.Equal(t, "1", job.ID)
	require.Equal(t, "0", sh(t, s, "ps -e -o stat= | grep -c '^Z' || true"))
}

func TestClonesSeeNothingOfEachOther(t *testing.T) {
	h := templated(t, sandbox.HostOptions{}, small)
	a, b := newSession(t, h, small), newSession(t, h, small)
	require.Equal(t, sandbox.OriginCloned, b.Info().Origin)
	sh(t, a, "echo secret > /root/file; echo secret > /dev/shm/file; sleep 1000 & disown")
	require.Equal(t, "0", sh(t, b, "cat /root/file /dev/shm/file 2>/dev/null | wc -l"))
	require.Equal(t, "0", sh(t, b, "pgrep -c sleep || true"))
	c := newSession(t, h, small)
	require.Equal(t, "0", sh(t, c, "cat /root/file /dev/shm/file 2>/dev/null | wc -l"))
	require.Equal(t, "1073741824", sh(t, c, "blockdev --getsize64 /dev/vdb || cat /sys/block/vdb/size | awk '{print $1*512}'"))
}

func TestDamagedTemplateOnDiskIsBuiltAgainWhileSessionsBoot(t *testing.T) {
	cache := cacheOfOwn(t)
	h := templated(t, sandbox.HostOptions{CacheDir: cache}, small)
	require.NoError(t, h.Close())
	files, err := filepath.Glob(filepath.Join(cache, "templates", "*", "memory"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	f, err := os.OpenFile(files[0], os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("damage"), 32<<20)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	h = newHost(t, sandbox.HostOptions{CacheDir: cache})
	s := newSession(t, h, small)
	require.Equal(t, sandbox.OriginBooted, s.Info().Origin)
	require.Equal(t, "works", sh(t, s, "echo works"))
	o := small
	o.Image = bootable(defaultImage(t))
	eventually(t, time.Minute, "a good template", func() bool {
		s, err := h.Create(t.Context(), o)
		require.NoError(t, err)
		defer s.Close()
		return s.Info().Origin == sandbox.OriginCloned
	})
}

// A template whose digests are right and from which no machine comes to life, as after a
// change of the host that the key does not know of.
func TestTemplateThatDoesNotWorkIsRemovedAndTheSessionBoots(t *testing.T) {
	cache, runtime := cacheOfOwn(t), runtimeDir(t)
	require.NoError(t, templated(t, sandbox.HostOptions{CacheDir: cache}, small).Close())
	dirs, err := filepath.Glob(filepath.Join(cache, "templates", "*", "state"))
	require.NoError(t, err)
	require.Len(t, dirs, 1)
	state, err := os.ReadFile(dirs[0])
	require.NoError(t, err)
	old, broken := sha256.Sum256(state), append(make([]byte, 1000), state[1000:]...)
	now := sha256.Sum256(broken)
	require.NoError(t, os.WriteFile(dirs[0], broken, 0o600))
	manifest := filepath.Join(filepath.Dir(dirs[0]), "manifest.json")
	b, err := os.ReadFile(manifest)
	require.NoError(t, err)
	require.Contains(t, string(b), hex.EncodeToString(old[:]))
	require.NoError(t, os.WriteFile(manifest, bytes.ReplaceAll(b, []byte(hex.EncodeToString(old[:])), []byte(hex.EncodeToString(now[:]))), 0o600))

	s := newSession(t, newHost(t, sandbox.HostOptions{CacheDir: cache, RuntimeDir: runtime}), small)
	require.Equal(t, sandbox.OriginBooted, s.Info().Origin)
	require.Equal(t, "works", sh(t, s, "echo works"))
	require.NoDirExists(t, filepath.Dir(dirs[0]), "the next process must not try it too")
	require.Len(t, entries(t, runtime), 1, "nothing of the failed clone is left")
}

// cacheOfOwn is a cache directory without templates.
func cacheOfOwn(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gndcache")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755)) // QEMU runs as a user of its own
	return dir
}

func TestHostWithoutTemplatesBoots(t *testing.T) {
	s := newSession(t, newHost(t, sandbox.HostOptions{NoTemplates: true}), small)
	require.Equal(t, sandbox.OriginBooted, s.Info().Origin)
	require.Equal(t, "works", sh(t, s, "echo works"))
}

func TestPoolHandsOutReadySessionsWithTheRightTime(t *testing.T) {
	templated(t, sandbox.HostOptions{}, small)
	h := newHost(t, sandbox.HostOptions{Pool: sandbox.Pool{Size: 2, MemoryMiB: 1024}})
	o := small
	o.Image = bootable(defaultImage(t))
	require.NoError(t, h.Prepare(o))
	ids := map[string]bool{}
	random := map[string]bool{}
	for i := range 3 {
		var s *sandbox.Session
		eventually(t, time.Minute, "the pool is filled", func() bool {
			var err error
			s, err = h.Create(t.Context(), o)
			require.NoError(t, err)
			if s.Info().Origin == sandbox.OriginPooled {
				return true
			}
			require.NoError(t, s.Close())
			return false
		})
		defer s.Close()
		require.False(t, ids[s.ID()])
		ids[s.ID()] = true
		r := sh(t, s, "cat /proc/sys/kernel/random/uuid")
		require.False(t, random[r])
		random[r] = true
		clock, err := strconv.ParseFloat(sh(t, s, "date +%s.%N"), 64)
		require.NoError(t, err)
		require.InDelta(t, float64(time.Now().UnixNano())/1e9, clock, 0.5, fmt.Sprint(i))
		if i == 0 {
			time.Sleep(2 * time.Second) // the pooled ones stand still meanwhile
		}
	}
}

// Its warm-up is a command, and a session need not be able to run that one.
func TestPoolIsFilledForAUserThatTheImageLacks(t *testing.T) {
	templated(t, sandbox.HostOptions{}, small)
	h := newHost(t, sandbox.HostOptions{Pool: sandbox.Pool{Size: 1}})
	o := small
	o.Image, o.User = bootable(defaultImage(t)), "nobody-here"
	require.NoError(t, h.Prepare(o))
	eventually(t, 20*time.Second, "it is filled", func() bool { return h.Ready() == 1 })
	s, err := h.Create(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, sandbox.OriginPooled, s.Info().Origin)
	out, exit := try(t, s, sandbox.Command{Argv: []string{"id", "-un"}, User: "root"})
	require.Zero(t, exit.Code)
	require.Equal(t, "root\n", out)
}

// A session of the pool trusts its own authority before anybody asks for it, and what a mapped port needs too.
func TestPoolHandsOutSessionsThatTrustWhatTheirNetworkNeeds(t *testing.T) {
	templated(t, sandbox.HostOptions{}, small)
	h := newHost(t, sandbox.HostOptions{Pool: sandbox.Pool{Size: 1}})
	o := small
	o.Image = bootable(defaultImage(t))
	require.NoError(t, h.Prepare(o))
	const certificates = "grep -c BEGIN $SSL_CERT_FILE; grep -c 'session begins' /etc/ssl/certs/ca-certificates.crt /etc/ssh/ssh_known_hosts | cut -d: -f2; openssl x509 -noout -subject -in /run/gondolin/session-ca.crt"
	seen := map[string]bool{}
	for _, maps := range [][]netguard.Map{nil, {{Host: "db.test", Port: 5432, To: "127.0.0.1:1"}}} {
		eventually(t, 20*time.Second, "the pool is filled", func() bool { return h.Ready() == 1 })
		o.Network = &sandbox.Network{Maps: maps}
		s := newSession(t, h, o)
		require.Equal(t, sandbox.OriginPooled, s.Info().Origin)
		got := strings.Split(sh(t, s, certificates), "\n")
		require.Len(t, got, 4)
		require.Equal(t, maps == nil, got[0] == "1", "certificates: %s", got[0])
		require.Equal(t, []string{"1", "1"}, got[1:3], "its own, once")
		require.Contains(t, got[3], s.ID())
		seen[got[3]] = true
	}
	require.Len(t, seen, 2)
}

func TestPoolStaysWithinItsMemory(t *testing.T) {
	h := newHost(t, sandbox.HostOptions{Pool: sandbox.Pool{Size: 8, MemoryMiB: 600}})
	o := small
	o.Image = bootable(defaultImage(t))
	require.NoError(t, h.Prepare(o))
	machines := func() int { return len(children(t, os.Getpid(), "qemu-system")) }
	before := machines()
	eventually(t, time.Minute, "two sessions of 256 MiB stand ready", func() bool { return machines() == before+2 })
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	<-ctx.Done()
	require.Equal(t, before+2, machines())
	require.NoError(t, h.Close())
	require.Equal(t, before, machines(), "they die with their owner")
}

// children returns the processes that pid started and whose program's name holds name.
func children(t *testing.T, pid int, name string) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	var found []int
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it ended
		}
		program, rest, _ := strings.Cut(string(b), ") ")
		fields := strings.Fields(rest)
		if len(fields) > 1 && fields[1] == strconv.Itoa(pid) && strings.Contains(program, name) {
			child, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			require.NoError(t, err)
			found = append(found, child)
		}
	}
	return found
}
