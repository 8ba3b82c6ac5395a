package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

func TestCommandSeesWhatItWasGiven(t *testing.T) {
	s := sharedSession(t)
	out, exit := try(t, s, sandbox.Command{
		Argv: []string{"sh", "-c", `echo "$0 $1|$PWD|$GREETING|$(id -un)|$HOME"`, "a b", "c"},
		Dir:  "/usr", Env: map[string]string{"GREETING": "hi there"}, User: "nobody",
	})
	require.Zero(t, exit.Code)
	require.Equal(t, "a b c|/usr|hi there|nobody|/nonexistent\n", out)
}

func TestUserWhoseHomeIsMissingStartsInTheRoot(t *testing.T) {
	out, exit := try(t, sharedSession(t), sandbox.Command{Argv: []string{"pwd"}, User: "nobody"})
	require.Zero(t, exit.Code)
	require.Equal(t, "/\n", out)
}

func TestExitCodeAndSignalAreToldApart(t *testing.T) {
	s := sharedSession(t)
	_, exit := try(t, s, sandbox.Command{Shell: "exit 7"})
	require.Equal(t, 7, exit.Code)
	require.Empty(t, exit.Signal)
	_, exit = try(t, s, sandbox.Command{Shell: "kill -SEGV $$"})
	require.Equal(t, "SIGSEGV", exit.Signal)
	require.Equal(t, 128+11, exit.Code)
}

func TestFailureToStartSaysWhatAndWhy(t *testing.T) {
	s := sharedSession(t)
	sh(t, s, "printf 'not a program' > /tmp/plain; printf '\\0junk' > /tmp/junk; chmod 755 /tmp/junk")
	for name, c := range map[string]struct {
		cmd  sandbox.Command
		want []string
	}{
		"unknown program":   {sandbox.Command{Argv: []string{"no-such-program"}}, []string{"no-such-program", "not found", "PATH"}},
		"missing directory": {sandbox.Command{Argv: []string{"true"}, Dir: "/no/such/dir"}, []string{"working directory", "/no/such/dir"}},
		"file as directory": {sandbox.Command{Argv: []string{"true"}, Dir: "/etc/passwd"}, []string{"working directory", "not a directory"}},
		"not executable":    {sandbox.Command{Argv: []string{"/tmp/plain"}}, []string{"/tmp/plain", "permission denied"}},
		"not a program":     {sandbox.Command{Argv: []string{"/tmp/junk"}}, []string{"exec format error"}},
		"unknown user":      {sandbox.Command{Argv: []string{"true"}, User: "mallory"}, []string{"mallory", "/etc/passwd"}},
		"nothing to run":    {sandbox.Command{}, []string{"exactly one of argv and shell"}},
		"both forms":        {sandbox.Command{Argv: []string{"true"}, Shell: "true"}, []string{"exactly one of argv and shell"}},
		"bad variable":      {sandbox.Command{Argv: []string{"true"}, Env: map[string]string{"A=B": "c"}}, []string{"A=B"}},
		"too long":          {sandbox.Command{Argv: []string{"true", strings.Repeat("x", 2<<20)}}, []string{"too large"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Run(t.Context(), c.cmd)
			require.Error(t, err)
			for _, want := range c.want {
				require.ErrorContains(t, err, want)
			}
		})
	}
}

func TestManyCommandsRunAtOnce(t *testing.T) {
	s := sharedSession(t)
	var wg sync.WaitGroup
	errs := make(chan error, 30)
	for i := range cap(errs) {
		wg.Go(func() {
			var out bytes.Buffer
			_, err := s.Run(t.Context(), sandbox.Command{Shell: fmt.Sprintf("sleep 0.3; echo %d", i), Stdout: &out})
			if err == nil && out.String() != fmt.Sprintf("%d\n", i) {
				err = fmt.Errorf("command %d printed %q", i, out.String())
			}
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
}

func TestInputAndOutputAreBinarySafe(t *testing.T) {
	s := sharedSession(t)
	data := make([]byte, 3<<20)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(data)
	var out bytes.Buffer
	exit, err := s.Run(t.Context(), sandbox.Command{Argv: []string{"cat"}, Stdin: bytes.NewReader(data), Stdout: &out})
	require.NoError(t, err)
	require.Zero(t, exit.Code)
	require.Equal(t, sha256.Sum256(data), sha256.Sum256(out.Bytes()))
}

func TestProcessThatDoesNotReadItsInputDoesNotHang(t *testing.T) {
	s := sharedSession(t)
	exit, err := s.Run(t.Context(), sandbox.Command{Argv: []string{"true"}, Stdin: io.LimitReader(zeros{}, 64<<20)})
	require.NoError(t, err)
	require.Zero(t, exit.Code)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A dev server started with & must neither hold up the call nor be killed by it.
func TestBackgroundChildNeitherHoldsUpTheCallNorDiesWithIt(t *testing.T) {
	s := sharedSession(t)
	began := time.Now()
	out, exit := try(t, s, sandbox.Command{Shell: "(while sleep 0.1; do echo tick; date +%N > /tmp/tick; done) & echo started"})
	require.Zero(t, exit.Code)
	require.Contains(t, out, "started")
	require.Less(t, time.Since(began), 20*time.Second)
	first := sh(t, s, "cat /tmp/tick 2>/dev/null || true")
	eventually(t, 10*time.Second, "the child goes on and may write to its output", func() bool {
		return sh(t, s, "cat /tmp/tick 2>/dev/null || true") != first
	})
	sh(t, s, "pkill -f '[/]tmp/tick' || true")
}

func TestSlowReaderStopsOnlyItsOwnProcess(t *testing.T) {
	s := sharedSession(t)
	ctx, cancel := context.WithCancel(t.Context())
	gate := &gatedWriter{open: make(chan struct{})}
	p, err := s.Start(ctx, sandbox.Command{Shell: "head -c 20000000 /dev/zero", Stdout: gate})
	require.NoError(t, err)
	for range 5 {
		require.Equal(t, "quick", sh(t, s, "echo quick"))
	}
	close(gate.open)
	exit, err := p.Wait()
	require.NoError(t, err)
	require.Equal(t, int64(20000000), exit.Stdout)
	require.Equal(t, int64(20000000), gate.n)
	cancel()
}

type gatedWriter struct {
	open chan struct{}
	n    int64
}

func (g *gatedWriter) Write(p []byte) (int, error) {
	<-g.open
	g.n += int64(len(p))
	return len(p), nil
}

func TestTerminalHasASizeThatCanChange(t *testing.T) {
	s := sharedSession(t)
	in, feed := io.Pipe()
	var out syncBuffer
	p, err := s.Start(t.Context(), sandbox.Command{
		Argv: []string{"bash", "--norc", "-i"}, TTY: &sandbox.TTYSize{Rows: 30, Cols: 100}, Stdin: in, Stdout: &out,
	})
	require.NoError(t, err)
	_, _ = io.WriteString(feed, "stty size; tty\n")
	eventually(t, 20*time.Second, "first size", func() bool { return strings.Contains(out.String(), "30 100") })
	require.NoError(t, p.Resize(t.Context(), sandbox.TTYSize{Rows: 44, Cols: 132}))
	_, _ = io.WriteString(feed, "stty size\n")
	eventually(t, 20*time.Second, "new size", func() bool { return strings.Contains(out.String(), "44 132") })
	require.Contains(t, out.String(), "/dev/pts/")
	feed.Close() // end of file at the prompt ends the shell
	exit, err := p.Wait()
	require.NoError(t, err)
	require.Zero(t, exit.Code)
}

// It is set for what is dear under translation; whoever sets it otherwise has a reason.
func TestWhatProgramsAreToldOfTheProcessorCanBeOverridden(t *testing.T) {
	out, exit := try(t, sharedSession(t), sandbox.Command{
		Shell: "echo $OPENSSL_ia32cap; openssl dgst -sha256 /dev/null", Env: map[string]string{"OPENSSL_ia32cap": "~0"},
	})
	require.Zero(t, exit.Code)
	require.Contains(t, out, "~0\n")
	require.Contains(t, out, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
}

// Agents' own sandboxes are built on it.
func TestProgramsCanConfineThemselvesWithLandlock(t *testing.T) {
	const version = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1) >= 1)" // landlock_create_ruleset(2)
	require.Equal(t, "True", sh(t, sharedSession(t), `python3 -c "`+version+`"`))
}

// Input that ends in the middle of a line, and while nobody reads, still ends for every reader.
func TestTerminalWhoseInputEndsGivesEndOfFileToEachReader(t *testing.T) {
	s := sharedSession(t)
	var out syncBuffer
	p, err := s.Start(t.Context(), sandbox.Command{
		Shell: "cat; stty raw; sleep 0.2; stty cooked; cat; cat; echo over", TTY: &sandbox.TTYSize{Rows: 30, Cols: 100},
		Stdin: strings.NewReader("half a line"), Stdout: &out, Timeout: time.Minute,
	})
	require.NoError(t, err)
	exit, err := p.Wait()
	require.NoError(t, err)
	require.Zero(t, exit.Code)
	require.Contains(t, out.String(), "over")
	require.Contains(t, out.String(), "half a line")
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestMemoryHungryCommandDiesAndTheSessionLives(t *testing.T) {
	s := newSession(t, newHost(t, sandbox.HostOptions{}), sandbox.Options{Limits: sandbox.Limits{MemoryMiB: 512}})
	_, exit := try(t, s, sandbox.Command{Argv: []string{"python3", "-c", "b=[bytearray(1<<20) for _ in range(4000)]"}})
	require.Equal(t, "SIGKILL", exit.Signal)
	require.Contains(t, exit.Note, "limits.memory")
	require.Equal(t, "alive", sh(t, s, "echo alive"))
}

func TestProcessLimitIsToldAndTheSessionLives(t *testing.T) {
	s := newSession(t, newHost(t, sandbox.HostOptions{}), sandbox.Options{Limits: sandbox.Limits{Processes: 40}})
	out, _ := try(t, s, sandbox.Command{Shell: "for i in $(seq 100); do sleep 5 & done; wait", Timeout: 3 * time.Second})
	require.Contains(t, out, "Resource temporarily unavailable")
	eventually(t, 20*time.Second, "a command runs again", func() bool {
		_, err := s.Run(t.Context(), sandbox.Command{Argv: []string{"true"}})
		return err == nil
	})
}

// The guest's own programs are kept on a processor and have coarse timers; commands are not.
func TestCommandsHaveAllProcessorsAndExactTimers(t *testing.T) {
	s := sharedSession(t)
	for range 5 {
		require.Equal(t, "2 50000", sh(t, s, "echo $(nproc) $(cat /proc/self/timerslack_ns)"))
	}
}
