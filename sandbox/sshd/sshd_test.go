package sshd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// here runs commands on this machine and keeps what was asked.
type here struct {
	mu    sync.Mutex
	asked []Command
}

func (h *here) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
}

func (h *here) Start(ctx context.Context, c Command) (Process, error) {
	h.mu.Lock()
	h.asked = append(h.asked, c)
	h.mu.Unlock()
	if c.User == "nobody-knows" {
		return nil, errors.New("no such user")
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", c.Line)
	cmd.Stdout, cmd.Stderr = c.Stdout, c.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	go func() { _, _ = io.Copy(in, c.Stdin); in.Close() }()
	return process{cmd}, cmd.Start()
}

type process struct{ *exec.Cmd }

func (p process) Wait() (Exit, error) {
	var exit *exec.ExitError
	if err := p.Cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return Exit{}, err
	}
	e := Exit{Code: p.ProcessState.ExitCode()}
	if exit != nil && e.Code < 0 {
		e.Signal = strings.TrimPrefix(unix.SignalName(exit.Sys().(interface{ Signal() unix.Signal }).Signal()), "SIG")
	}
	return e, nil
}

func (p process) Signal(_ context.Context, name string) error {
	return p.Process.Signal(unix.SignalNum("SIG" + name))
}

func (p process) Resize(context.Context, Size) error { return nil }

func key(t testing.TB) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	signer, err := ssh.NewSignerFromKey(private)
	require.NoError(t, err)
	return signer
}

// serve starts a server and returns a client that has logged in.
func serve(t *testing.T, h *here, forward bool) (*Server, func(user string, auth ...ssh.AuthMethod) (*ssh.Client, error)) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	host, mine := key(t), key(t)
	s := New(t.Context(), ln, Options{Host: host, Key: mine.PublicKey(), Machine: h, Forward: forward})
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		_ = s.Close()
		require.NoError(t, <-served)
	})
	return s, func(user string, auth ...ssh.AuthMethod) (*ssh.Client, error) {
		if auth == nil {
			auth = []ssh.AuthMethod{ssh.PublicKeys(mine)}
		}
		c, err := ssh.Dial("tcp", ln.Addr().String(), &ssh.ClientConfig{
			User: user, Auth: auth, HostKeyCallback: ssh.FixedHostKey(host.PublicKey()), Timeout: 20 * time.Second,
		})
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return c, err
	}
}

func TestOnlyTheSessionsKeyLogsIn(t *testing.T) {
	_, login := serve(t, &here{}, false)
	for _, auth := range []ssh.AuthMethod{ssh.PublicKeys(key(t)), ssh.Password(""), ssh.KeyboardInteractive(
		func(string, string, []string, []bool) ([]string, error) { return nil, nil })} {
		_, err := login("root", auth)
		require.ErrorContains(t, err, "unable to authenticate")
	}
	_, err := login("root")
	require.NoError(t, err)
}

func TestAChannelIsForOneCommandWithABoundedEnvironment(t *testing.T) {
	h := &here{}
	_, login := serve(t, h, false)
	c, err := login("alice")
	require.NoError(t, err)
	s, err := c.NewSession()
	require.NoError(t, err)
	require.NoError(t, s.Setenv("GREETING", "hi"))
	for name, value := range map[string]string{"A=B": "x", "": "x", "1A": "x", "NUL": "a\x00b", "BIG": strings.Repeat("x", maxEnvBytes)} {
		require.Error(t, s.Setenv(name, value), name)
	}
	refused := 0
	for i := range 2 * maxEnv {
		if s.Setenv(fmt.Sprintf("V%d", i), "x") != nil {
			refused++
		}
	}
	require.Equal(t, maxEnv+1, refused)
	require.NoError(t, s.RequestPty("vt100", 10, 20, nil))
	var out bytes.Buffer
	s.Stdout = &out
	require.NoError(t, s.Run("echo once"))
	require.Equal(t, "once\n", out.String())
	require.Len(t, h.asked, 1)
	assert.Equal(t, "alice", h.asked[0].User)
	assert.Equal(t, "hi", h.asked[0].Env["GREETING"])
	assert.Equal(t, &Size{Rows: 10, Cols: 20}, h.asked[0].TTY)

	other, err := c.NewSession()
	require.NoError(t, err)
	require.NoError(t, other.Start("cat"))
	ok, err := other.SendRequest("exec", true, ssh.Marshal(struct{ Line string }{"echo twice"}))
	require.NoError(t, err)
	require.False(t, ok)
	require.NoError(t, other.Signal(ssh.SIGTERM))
	var exit *ssh.ExitError
	require.ErrorAs(t, other.Wait(), &exit)
	require.Equal(t, "TERM", exit.Signal())
	for _, name := range []string{"auth-agent-req@openssh.com", "x11-req"} {
		s, err := c.NewSession()
		require.NoError(t, err)
		ok, err := s.SendRequest(name, true, nil)
		require.NoError(t, err)
		require.False(t, ok, name)
		s.Close()
	}
	s, err = c.NewSession()
	require.NoError(t, err)
	require.Error(t, s.RequestSubsystem("netconf"))
}

func TestWhatCannotStartIsSaidAndCounted(t *testing.T) {
	_, login := serve(t, &here{}, false)
	c, err := login("nobody-knows")
	require.NoError(t, err)
	s, err := c.NewSession()
	require.NoError(t, err)
	var said bytes.Buffer
	s.Stderr = &said
	var exit *ssh.ExitError
	require.ErrorAs(t, s.Run("true"), &exit)
	require.Equal(t, 126, exit.ExitStatus())
	require.Contains(t, said.String(), "no such user")
}

func TestChannelsAndForwardsAreBounded(t *testing.T) {
	_, login := serve(t, &here{}, true)
	c, err := login("root")
	require.NoError(t, err)
	for range maxChannels {
		_, err := c.NewSession()
		require.NoError(t, err)
	}
	_, err = c.NewSession()
	require.ErrorContains(t, err, "channels")

	c, err = login("root")
	require.NoError(t, err)
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer echo.Close()
	go func() {
		if conn, err := echo.Accept(); err == nil {
			_, _ = io.Copy(conn, conn)
			conn.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(echo.Addr().String())
	conn, err := c.Dial("tcp", "localhost:"+port)
	require.NoError(t, err)
	_, err = io.WriteString(conn, "ping")
	require.NoError(t, err)
	require.NoError(t, conn.(interface{ CloseWrite() error }).CloseWrite())
	back, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, "ping", string(back))
	for _, to := range []string{"10.0.0.1:" + port, "example.com:80", "0.0.0.0:" + port} {
		_, err = c.Dial("tcp", to)
		require.ErrorContains(t, err, "prohibited", to)
	}
	_, err = c.Dial("unix", "/run/x")
	require.Error(t, err)
	_, err = c.Listen("tcp", "127.0.0.1:0")
	require.Error(t, err, "nothing listens for the machine")
}

func TestCloseEndsCommands(t *testing.T) {
	server, login := serve(t, &here{}, false)
	c, err := login("root")
	require.NoError(t, err)
	s, err := c.NewSession()
	require.NoError(t, err)
	require.NoError(t, s.Start("exec sleep 1000"))
	require.NoError(t, server.Close())
	require.Error(t, s.Wait())
}

// full is a listener in a process that has no descriptor left, once.
type full struct {
	net.Listener
	was bool
}

func (f *full) Accept() (net.Conn, error) {
	if !f.was {
		f.was = true
		return nil, unix.EMFILE
	}
	return f.Listener.Accept()
}

func TestAServerOutlivesAConnectionThatCannotBeTaken(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := New(t.Context(), &full{Listener: ln}, Options{Host: key(t), Key: key(t).PublicKey(), Machine: &here{}})
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	conn, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
	banner := make([]byte, 8)
	_, err = conn.Read(banner)
	require.NoError(t, err)
	require.Equal(t, "SSH-2.0-", string(banner))
	require.NoError(t, s.Close())
	require.NoError(t, <-served)
}
