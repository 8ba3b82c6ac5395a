package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/vfs"
)

// hostDir serves a directory of the test's own.
func hostDir(t testing.TB) (string, *vfs.HostDirRoot) {
	t.Helper()
	dir := t.TempDir()
	root, err := vfs.HostDir(dir, vfs.HostDirOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, root.Close()) })
	return dir, root
}

// mounted is one session for the tests on mounts: /host is a host directory, /mem is memory.
var mounted struct {
	once sync.Once
	s    *sandbox.Session
	dir  string
	err  error
}

func mountedSession(t *testing.T) (*sandbox.Session, string) {
	t.Helper()
	sharedSession(t) // makes the host
	mounted.once.Do(func() {
		mounted.err = func() error {
			dir, err := os.MkdirTemp("", "gndmount")
			if err != nil {
				return err
			}
			mounted.dir = dir
			root, err := vfs.HostDir(dir, vfs.HostDirOptions{})
			if err != nil {
				return err
			}
			mounted.s, err = shared.host.Create(t.Context(), sandbox.Options{
				Image: bootable(defaultImage(t)),
				Mounts: []sandbox.Mount{
					{Path: "/host", Root: root},
					{Path: "/mem", Root: vfs.NewMemory(vfs.MemoryOptions{MaxBytes: 512 << 20}), Private: true},
				},
			})
			if err != nil {
				return err
			}
			afterAll = append(afterAll, func() { mounted.s.Close(); root.Close(); os.RemoveAll(dir) })
			return nil
		}()
	})
	require.NoError(t, mounted.err)
	return mounted.s, mounted.dir
}

func TestHostDirectoryIsSharedBothWays(t *testing.T) {
	s, dir := mountedSession(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "from-host"), []byte("hello"), 0o644))
	require.Equal(t, "hello", sh(t, s, "cat /host/from-host"))
	sh(t, s, "mkdir /host/d && echo from guest > /host/d/file && sync")
	b, err := os.ReadFile(filepath.Join(dir, "d", "file"))
	require.NoError(t, err)
	require.Equal(t, "from guest\n", string(b))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "from-host"), []byte("edited"), 0o644))
	began := time.Now()
	eventually(t, time.Second, "the edit shows", func() bool { return sh(t, s, "cat /host/from-host") == "edited" })
	t.Log("seen after", time.Since(began))
	df := sh(t, s, "df --output=fstype /host | tail -1")
	require.Equal(t, "fuse.gondolin", df)
}

// Bar: go-fuse's posixtest and checks of our own run inside the guest.
func TestPosixInTheGuest(t *testing.T) {
	s, _ := mountedSession(t)
	program := filepath.Join(t.TempDir(), "inguest.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, "./inguest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, s.CopyIn(t.Context(), program, "/root"))
	for _, dir := range []string{"/host", "/mem"} {
		t.Run(strings.Trim(dir, "/"), func(t *testing.T) {
			var out bytes.Buffer
			exit, err := s.Run(t.Context(), sandbox.Command{
				Argv: []string{"/root/inguest.test", "-test.v", "-rapid.checks=15", "-rapid.nofailfile"}, Env: map[string]string{"GONDOLIN_DIR": dir},
				Stdout: &out, Stderr: &out, Timeout: 5 * time.Minute,
			})
			require.NoError(t, err)
			require.Zero(t, exit.Code, out.String())
			require.Contains(t, out.String(), "--- PASS: TestPosix")
		})
	}
}

func TestGitWorksOnAMount(t *testing.T) {
	s, dir := mountedSession(t)
	sh(t, s, `set -e
		git config --global user.email a@b.c; git config --global user.name n; git config --global init.defaultBranch main
		mkdir /tmp/src && cd /tmp/src && git init -q
		for d in $(seq 20); do mkdir $d; for f in $(seq 100); do echo "$d $f" > $d/$f; done; done
		git add . && git commit -qm first`)
	began := time.Now()
	sh(t, s, "git clone -q /tmp/src /host/clone")
	t.Log("clone of 2000 files", time.Since(began))
	began = time.Now()
	require.Empty(t, sh(t, s, "cd /host/clone && git status --porcelain"))
	t.Log("status", time.Since(began))
	sh(t, s, "cd /host/clone && echo changed > 1/1 && git commit -qam second && git gc -q && git fsck --strict 2>&1")
	require.Empty(t, sh(t, s, "cd /host/clone && git status --porcelain"))
	b, err := os.ReadFile(filepath.Join(dir, "clone/1/1"))
	require.NoError(t, err)
	require.Equal(t, "changed\n", string(b))
}

func TestSqliteWithWALUnderConcurrentWriters(t *testing.T) {
	s, _ := mountedSession(t)
	script := `
import sqlite3, sys, multiprocessing
path = sys.argv[1]
def write(n):
    c = sqlite3.connect(path, timeout=60, isolation_level=None)
    for i in range(100):
        c.execute("begin immediate"); c.execute("insert into t values (?, ?)", (n, i)); c.execute("commit")
c = sqlite3.connect(path)
assert c.execute("pragma journal_mode=wal").fetchone()[0] == "wal"
c.execute("create table t (writer, n)"); c.commit(); c.close()
ps = [multiprocessing.Process(target=write, args=(n,)) for n in range(4)]
[p.start() for p in ps]; [p.join() for p in ps]
c = sqlite3.connect(path)
print(c.execute("select count(*), count(distinct writer) from t").fetchone(), c.execute("pragma integrity_check").fetchone()[0])
`
	for _, dir := range []string{"/host", "/mem"} {
		out, exit := try(t, s, sandbox.Command{Argv: []string{"python3", "-c", script, dir + "/db"}})
		require.Zero(t, exit.Code, out)
		require.Equal(t, "(400, 4) ok\n", out, dir)
	}
}

func TestPipInstallsIntoAVenvOnAMount(t *testing.T) {
	s, _ := mountedSession(t)
	sh(t, s, `set -e
		mkdir /tmp/wheel && cd /tmp/wheel && python3 - <<'EOF2'
import zipfile
with zipfile.ZipFile("hello_gondolin-1.0-py3-none-any.whl", "w") as z:
    z.writestr("hello_gondolin.py", "print('hello from the wheel')")
    z.writestr("hello_gondolin-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: hello-gondolin\nVersion: 1.0\n")
    z.writestr("hello_gondolin-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    z.writestr("hello_gondolin-1.0.dist-info/RECORD", "hello_gondolin.py,,\nhello_gondolin-1.0.dist-info/METADATA,,\nhello_gondolin-1.0.dist-info/WHEEL,,\nhello_gondolin-1.0.dist-info/RECORD,,\n")
EOF2`)
	out, exit := try(t, s, sandbox.Command{Shell: "python3 -m venv /host/venv && /host/venv/bin/pip install -q --no-index --disable-pip-version-check /tmp/wheel/*.whl && /host/venv/bin/python -m hello_gondolin"})
	require.Zero(t, exit.Code, out)
	require.Contains(t, out, "hello from the wheel")
}

// A Go project is compiled on the mount with the host's toolchain, which is mounted too.
func TestGoProjectCompilesOnAMount(t *testing.T) {
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	require.NoError(t, err)
	tools, err := vfs.HostDir(strings.TrimSpace(string(goroot)), vfs.HostDirOptions{})
	require.NoError(t, err)
	defer tools.Close()
	dir, root := hostDir(t)
	write := func(name, content string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
	write("go.mod", "module example.test/hello\n\ngo 1.24\n")
	write("main.go", "package main\n\nimport \"example.test/hello/greet\"\n\nfunc main() { println(greet.Text()) }\n")
	write("greet/greet.go", "package greet\n\nfunc Text() string { return \"before\" }\n")
	// The standard library compiled beforehand: under translation it takes minutes.
	env := append(os.Environ(), "GOCACHE="+filepath.Join(dir, ".cache"), "CGO_ENABLED=0", "GOFLAGS=-trimpath", "GOTOOLCHAIN=local")
	warm := exec.CommandContext(t.Context(), "go", "build", "-o", os.DevNull, ".")
	warm.Dir, warm.Env = dir, env
	out, err := warm.CombinedOutput()
	require.NoError(t, err, "%s", out)
	write("greet/greet.go", "package greet\n\nfunc Text() string { return \"compiled in the guest\" }\n")
	s := newSession(t, newHost(t, sandbox.HostOptions{}), sandbox.Options{Mounts: []sandbox.Mount{
		{Path: "/usr/local/go", Root: vfs.ReadOnly(tools), ReadOnly: true, Private: true}, {Path: "/work", Root: root},
	}})
	got, exit := try(t, s, sandbox.Command{
		Shell: "/usr/local/go/bin/go build -o hello . && ./hello", Dir: "/work",
		Env: map[string]string{"GOCACHE": "/work/.cache", "CGO_ENABLED": "0", "GOFLAGS": "-trimpath", "GOTOOLCHAIN": "local", "HOME": "/root"},
	})
	require.Zero(t, exit.Code, got)
	require.Equal(t, "compiled in the guest\n", got)
	require.FileExists(t, filepath.Join(dir, "hello"))
}

func TestFullHostDiskReachesTheProgramAndLosesNothingThatWasAcknowledged(t *testing.T) {
	s := newSession(t, newHost(t, sandbox.HostOptions{}), sandbox.Options{
		Limits: small.Limits,
		Mounts: []sandbox.Mount{{Path: "/q", Root: vfs.Quota(vfs.NewMemory(vfs.MemoryOptions{}), vfs.QuotaOptions{Bytes: 1 << 20})}},
	})
	out, exit := try(t, s, sandbox.Command{Shell: "echo kept > /q/a; head -c 4000000 /dev/zero > /q/b"})
	require.NotZero(t, exit.Code)
	require.Regexp(t, "(?i)quota|no space", out)
	require.Equal(t, "kept", sh(t, s, "cat /q/a"))
}

// A guest whose connection of the mounts broke gets them back.
func TestMountsComeBackAfterTheirConnectionBroke(t *testing.T) {
	_, root := hostDir(t)
	o := small
	o.Mounts = []sandbox.Mount{{Path: "/w", Root: root}}
	s := newSession(t, newHost(t, sandbox.HostOptions{}), o)
	sh(t, s, "echo before > /w/f")
	sh(t, s, "python3 -c '"+takePort+"' garbage || true")
	eventually(t, 30*time.Second, "the mount answers again", func() bool {
		out, exit := try(t, s, sandbox.Command{Shell: "cat /w/f"})
		return exit.Code == 0 && out == "before\n"
	})
	sh(t, s, "echo after > /w/f")
}

// takePort is a root program in the guest that speaks to the host on the port of the
// mounts in place of its sandboxfs.
const takePort = `
import ctypes, os, random, signal, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
fs = next(int(p) for p in os.listdir("/proc") if p.isdigit() and open(f"/proc/{p}/cmdline","rb").read().split(b"\0")[0] == b"sandboxfs")
pidfd = libc.syscall(434, fs, 0)
links = {fd: os.readlink(f"/proc/{fs}/fd/{fd}") for fd in os.listdir(f"/proc/{fs}/fd")}
port = libc.syscall(438, pidfd, next(int(fd) for fd, l in links.items() if l.startswith("/dev/vport")), 0)
assert port >= 0, ctypes.get_errno()
mode = sys.argv[1]
def frame(op, node, body, unique=None, length=None):
    unique = random.getrandbits(63) if unique is None else unique
    n = 40 + len(body) if length is None else length
    return struct.pack("<IIQQIIII", n, op, unique, node, 0, 0, 1, 0) + body
if mode == "garbage":
    os.write(port, os.urandom(100000)); sys.exit()
os.kill(fs, signal.SIGSTOP)
os.set_blocking(port, False)
end = time.time() + float(sys.argv[2])
ops = [1,3,4,5,6,8,9,10,11,12,13,14,15,16,17,18,20,21,22,23,24,25,27,28,29,30,31,32,33,34,35,37,38,39,40,41,43,44,45,46,47,48,49,50,51,52]
names = [b"..\0", b".\0", b"a/b\0", b"/etc/passwd\0", b"x" * 300 + b"\0", b"x\0", b"\0", b"f\0", b"no nul", b"../../etc/passwd\0", b"0\0", b"1\0"]
def lookups():
    return [frame(1, 1, b"0\0"), frame(1, 2, b"f\0"), frame(1, 3, b"f\0"), frame(14, 3, struct.pack("<II", 2, 0)), frame(27, 2, struct.pack("<II", 0, 0))]
sent = answered = begun = 0
out = b""
while time.time() < end:
    if len(out) < 1 << 16:
        for _ in range(64):
            op, node = random.choice(ops), random.choice([0, 1, 2, 3, 4, 5, 1000, 2**63, 2**64 - 1])
            kind = random.random()
            if kind < .5: body = random.choice(names) * random.randint(1, 2)
            elif kind < .8: body = os.urandom(random.choice([0, 8, 16, 24, 40, 56, 64, 128]))
            else: body = struct.pack("<QQQQII", random.getrandbits(64), random.choice([0, 2**63, 2**64-1]), 2**32-1, 1, 0xffffffff, 7)
            out += frame(op, node, body)
        for f in lookups(): out += f
        if random.random() < .0005: out += frame(random.choice([2, 42, 36, 26]), 3, os.urandom(50))
        sent += 69
    try: out = out[os.write(port, out):]
    except OSError: time.sleep(.001)
    try:
        data = os.read(port, 1 << 20)
        answered += len(data)
        at = data.find(b"GNDLNFS\x01")
        if at >= 0:
            begun += 1
            out = data[at:at+16] + frame(26, 0, struct.pack("<IIII", 7, 38, 65536, 0))
    except OSError: pass
print("sent", sent, "requests, got", answered, "bytes, began", begun, "times")
`

// Bar: a guest that sends hostile FUSE frames harms nobody but itself.
func TestHostileFramesOfTheMountsHarmOnlyTheirOwnSession(t *testing.T) {
	h := newHost(t, sandbox.HostOptions{})
	dir, root := hostDir(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "f"), []byte("content"), 0o644))
	outside := filepath.Join(filepath.Dir(dir), "outside")
	require.NoError(t, os.WriteFile(outside, []byte("untouched"), 0o644))
	o := small
	o.Mounts = []sandbox.Mount{{Path: "/w", Root: root}, {Path: "/m", Root: vfs.NewMemory(vfs.MemoryOptions{MaxBytes: 1 << 20})}}
	s := newSession(t, h, o)
	quiet := newSession(t, h, small)
	before := rss(t, os.Getpid())
	seconds := amount(15, 60)
	done := make(chan string, 1)
	go func() {
		out, _ := try(t, s, sandbox.Command{Argv: []string{"python3", "-c", takePort, "frames", fmt.Sprint(seconds)}})
		done <- out
	}()
	idle := descriptorsOf(t)
	most := 0
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); time.Since(began) < time.Duration(seconds)*time.Second; <-tick.C {
		require.Equal(t, "fine", sh(t, quiet, "echo fine"))
		most = max(most, rss(t, os.Getpid()))
	}
	out := <-done
	require.Contains(t, out, "sent")
	t.Log(strings.TrimSpace(out), "; host memory before and at most:", before, most, "MiB")
	require.Less(t, most, before+64)
	b, err := os.ReadFile(outside)
	require.NoError(t, err)
	require.Equal(t, "untouched", string(b))
	require.Equal(t, "works", sh(t, s, "echo works"), "commands go on")
	require.NoError(t, s.Close())
	require.LessOrEqual(t, descriptorsOf(t), idle, "nothing stays open")
}

// descriptorsOf is how many descriptors this process has open.
func descriptorsOf(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(list)
}
