package e2e

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

// hijack is a root program in the guest that freezes the agent, takes its
// control port, and speaks to the host itself.
const hijack = `
import ctypes, os, signal, sys, time
libc = ctypes.CDLL(None, use_errno=True)
agent = next(int(p) for p in os.listdir('/proc') if p.isdigit()
             and open(f'/proc/{p}/cmdline','rb').read().split(b'\0')[0] == b'sandboxd')
pidfd = libc.syscall(434, agent, 0)
def link(fd):
    try: return os.readlink(f'/proc/{agent}/fd/{fd}')
    except FileNotFoundError: return '' # the agent works meanwhile
links = {fd: link(fd) for fd in os.listdir(f'/proc/{agent}/fd')}
target = next(int(fd) for fd, l in links.items() if l.startswith('/dev/vport'))
port = libc.syscall(438, pidfd, target, 0)
assert port >= 0, ctypes.get_errno()
os.kill(agent, signal.SIGSTOP)
def frame(kind, flags, stream, length, body=b''):
    return bytes([0, kind]) + flags.to_bytes(2,'big') + stream.to_bytes(4,'big') + length.to_bytes(4,'big') + body
mode = sys.argv[1]
end = time.time() + 20
try:
    while time.time() < end:
        if mode == 'garbage': os.write(port, os.urandom(65536))
        elif mode == 'half': os.write(port, frame(0, 0, 1, 400000, b'x' * 1000)); time.sleep(20)
        elif mode == 'deaf': time.sleep(20)
        elif mode == 'pings': os.write(port, frame(2, 1, 0, 7) * 2000)
        elif mode == 'streams': os.write(port, b''.join(frame(1, 1, 2 + 2*i, 0) for i in range(2000)))
        elif mode == 'orphans': os.write(port, frame(0, 0, 99999, 100000, b'x' * 100000))
        elif mode == 'huge': os.write(port, frame(0, 0, 1, 0xffffffff, b'x' * 60000))
        elif mode == 'console': open('/dev/console','w').write('flood ' * 10000)
except OSError as e:
    print(e, file=sys.stderr)
`

// rss is a process's resident memory in MiB.
func rss(t testing.TB, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(b), "VmRSS:")
	require.True(t, ok)
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	require.NoError(t, err)
	return kib >> 10
}

func TestHostileGuestHarmsOnlyItsOwnSession(t *testing.T) {
	h := newHost(t, sandbox.HostOptions{})
	quiet := newSession(t, h, sandbox.Options{})
	require.Equal(t, "fine", sh(t, quiet, "echo fine"))
	for _, mode := range []string{"garbage", "half", "pings", "streams", "orphans", "huge", "console"} {
		t.Run(mode, func(t *testing.T) {
			s := newSession(t, h, sandbox.Options{Limits: sandbox.Limits{MemoryMiB: 512}})
			before := rss(t, os.Getpid())
			p, err := s.Start(t.Context(), sandbox.Command{Argv: []string{"python3", "-c", hijack, mode}, Timeout: 4 * time.Second, Grace: time.Second})
			require.NoError(t, err)
			for range 20 {
				require.Equal(t, "fine", sh(t, quiet, "echo fine"), "another session is not disturbed")
			}
			require.Less(t, rss(t, os.Getpid()), before+64, "host memory stays bounded")
			closed := make(chan struct{})
			go func() { _, _ = p.Wait(); close(closed) }()
			require.NoError(t, s.Close())
			select {
			case <-closed:
			case <-time.After(10 * time.Second):
				t.Fatal("the call was not answered")
			}
		})
	}
}

// An agent that says nothing any more must not take its callers along.
func TestCallsToAFrozenGuestAreAnsweredWhenTheyAreCancelled(t *testing.T) {
	s := newSession(t, newHost(t, sandbox.HostOptions{}), sandbox.Options{Limits: sandbox.Limits{MemoryMiB: 512}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p, err := s.Start(ctx, sandbox.Command{Argv: []string{"sleep", "1000"}, Grace: 100 * time.Millisecond})
	require.NoError(t, err)
	_, err = s.StartJob(t.Context(), sandbox.Command{Shell: "sleep 0.5; pkill -STOP -x sandboxd"})
	require.NoError(t, err)
	soon, end := context.WithTimeout(t.Context(), 3*time.Second)
	defer end()
	<-soon.Done()
	began := time.Now()
	brief, done := context.WithTimeout(t.Context(), time.Second)
	defer done()
	_, err = s.Run(brief, sandbox.Command{Argv: []string{"true"}})
	require.ErrorIs(t, err, context.DeadlineExceeded, "a start")
	_, err = s.Stat(brief, "/")
	require.ErrorIs(t, err, context.DeadlineExceeded, "a request")
	require.Less(t, time.Since(began), 10*time.Second)
	cancel()
	_, err = p.Wait()
	require.Error(t, err, "a command under way")
	require.Less(t, time.Since(began), 30*time.Second)
}

func TestBreachOfTheProtocolEndsTheSessionWithAReason(t *testing.T) {
	s := newSession(t, newHost(t, sandbox.HostOptions{}), sandbox.Options{Limits: sandbox.Limits{MemoryMiB: 512}})
	_, err := s.Start(t.Context(), sandbox.Command{Argv: []string{"python3", "-c", hijack, "garbage"}})
	require.NoError(t, err)
	select {
	case <-s.Done():
	case <-time.After(90 * time.Second):
		t.Fatal("the session goes on")
	}
	_, err = s.Run(t.Context(), sandbox.Command{Argv: []string{"true"}})
	require.ErrorIs(t, err, sandbox.ErrClosed)
	require.ErrorContains(t, err, "connection to the guest was lost")
}
