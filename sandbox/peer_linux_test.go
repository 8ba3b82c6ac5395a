package sandbox

import (
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// The run directory keeps others out as well: this is the wall behind that.
func TestAnotherUserMayNotAttachToASession(t *testing.T) {
	const socketEnv = "GONDOLIN_TEST_SOCKET"
	if path := os.Getenv(socketEnv); path != "" { // the other user
		conn, err := net.Dial("unix", path)
		require.NoError(t, err)
		_, _ = conn.Read(make([]byte, 1)) // until it is refused
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("another user's process needs root")
	}
	dir, err := os.MkdirTemp("", "gndpeer") // t.TempDir is closed to others
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, os.Chmod(path, 0o666))
	program, err := os.ReadFile(os.Args[0]) // which lies where others may not look
	require.NoError(t, err)
	self := filepath.Join(dir, "self")
	require.NoError(t, os.WriteFile(self, program, 0o755))
	other := exec.CommandContext(t.Context(), self, "-test.run=^"+t.Name()+"$")
	other.Dir, other.Env = "/", []string{socketEnv + "=" + path}
	other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	require.NoError(t, other.Start())
	conn, err := l.Accept()
	require.NoError(t, err)
	s := &Session{}
	s.init(t.Context(), "mine", slog.New(slog.DiscardHandler))
	_, err = s.greet(conn.(*net.UnixConn), "")
	require.ErrorContains(t, err, "user 65534 may not attach")
	conn.Close()
	require.NoError(t, other.Wait())
}
