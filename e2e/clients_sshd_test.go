package e2e

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// sshd is a real OpenSSH server on loopback, one process a connection.
type sshd struct {
	port       int
	user       string // who may log in
	knownHosts string // file: git.example is this server, moved.example is another one
	key        string // file: a key that it accepts
	host       ssh.PublicKey
	other      ssh.PublicKey // what is known of moved.example
}

// startSSHD starts one that is not installed: `make sshd` unpacks it.
func startSSHD(t *testing.T) *sshd {
	dir, err := filepath.Abs("../bin/.sshd")
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(dir, "usr/sbin/sshd"), "fetch it with `make sshd`")
	me, err := user.Current()
	require.NoError(t, err)
	own := t.TempDir()
	s := &sshd{user: me.Username, knownHosts: filepath.Join(own, "known_hosts"), key: filepath.Join(own, "id")}
	hostKey := filepath.Join(own, "host")
	s.host = writeKey(t, hostKey)
	login := writeKey(t, s.key)
	s.other = writeKey(t, filepath.Join(own, "other"))
	config := fmt.Sprintf("HostKey %s\nAuthorizedKeysFile %s\nPidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"+
		"PermitRootLogin yes\nSubsystem sftp internal-sftp\nAcceptEnv GIT_PROTOCOL\nLogLevel VERBOSE\n", hostKey, filepath.Join(own, "authorized"))
	// From OpenSSH 9.8 and 10 on these are programs of their own.
	for key, file := range map[string]string{"SshdSessionPath": "sshd-session", "SshdAuthPath": "sshd-auth"} {
		if path := filepath.Join(dir, "usr/lib/openssh", file); exists(path) {
			config += key + " " + path + "\n"
		}
	}
	write := func(name, text string) string {
		path := filepath.Join(own, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		return path
	}
	write("authorized", string(ssh.MarshalAuthorizedKey(login)))
	argv := []string{filepath.Join(dir, "usr/sbin/sshd"), "-i", "-e", "-f", write("config", config)}
	if me.Uid == "0" {
		// As root it wants an account and a directory that only its package makes, and one
		// of root's that is not locked: it sees these in a mount namespace of its own.
		passwd := write("passwd", "root:x:0:0::"+own+":/bin/sh\nsshd:x:65000:65534::/run/sshd:/bin/false\n")
		shadow := write("shadow", "root:*:20000::::::\n")
		argv = append([]string{"unshare", "--mount", "sh", "-c", fmt.Sprintf(
			`mount --bind %s /etc/passwd && mount --bind %s /etc/shadow && mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec "$@"`, passwd, shadow), "sh"}, argv...)
	}
	s.listen(t, argv, libraries(t, dir))
	write("known_hosts", knownhosts.Line([]string{fmt.Sprintf("[git.example]:%d", s.port)}, s.host)+"\n"+
		knownhosts.Line([]string{fmt.Sprintf("[moved.example]:%d", s.port)}, s.other)+"\n")
	return s
}

// listen runs argv for each connection, as inetd does, until the test ends.
func (s *sshd) listen(t *testing.T, argv []string, library string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s.port = l.Addr().(*net.TCPAddr).Port
	var work sync.WaitGroup
	t.Cleanup(func() { l.Close(); work.Wait() })
	work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			file, err := conn.(*net.TCPConn).File()
			conn.Close()
			if err != nil {
				t.Error(err)
				return
			}
			cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = file, file, testWriter{t}
			cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+library)
			if err := cmd.Start(); err != nil {
				t.Error(err)
			}
			file.Close()
			work.Go(func() { _ = cmd.Wait() }) // it ends as the client makes it end
		}
	})
}

// libraries is where those are that came with the server.
func libraries(t *testing.T, dir string) string {
	var list []string
	for _, pattern := range []string{"lib/*-linux-gnu*", "usr/lib/*-linux-gnu*"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		require.NoError(t, err)
		list = append(list, found...)
	}
	return strings.Join(list, ":")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func writeKey(t *testing.T, path string) ssh.PublicKey {
	t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	block, err := ssh.MarshalPrivateKey(key, "")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(block), 0o600))
	signed, err := ssh.NewPublicKey(public)
	require.NoError(t, err)
	return signed
}
