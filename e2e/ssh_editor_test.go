package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

// editorServer is what an editor's remote extension feeds to a shell: it puts a server into the
// machine, leaves it running on a port of the machine's loopback, and says which.
const editorServer = `
mkdir -p ~/.editor-server && cd ~/.editor-server
cat > server.py <<'P'
import http.server
s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
print(s.server_port, flush=True)
s.serve_forever()
P
rm -f port
setsid nohup python3 server.py > port 2> log < /dev/null &
echo $! > pid
until [ -s port ]; do sleep 0.1; done
echo "listening on $(cat port)"
`

// The steps of editors that work over SSH: VS Code's extension speaks to its server through a SOCKS
// proxy of the client (-D), Zed shares one connection between all that it does (ControlMaster).
func TestEditorsReachTheServerThatTheyLeaveInTheMachine(t *testing.T) {
	c := sshInto(t, sandbox.SSHOptions{Forward: true})
	install := client(t, c, "ssh", "-T", sandbox.SSHName, "bash")
	install.Stdin = strings.NewReader(editorServer)
	_, port, ok := strings.Cut(strings.TrimSpace(output(t, install)), "listening on ")
	require.True(t, ok)
	t.Cleanup(func() {
		_, _ = sharedSession(t).Run(context.WithoutCancel(t.Context()), sandbox.Command{Shell: "kill $(cat ~/.editor-server/pid)"})
	})

	socks := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	background(t, client(t, c, "ssh", "-N", "-D", socks, sandbox.SSHName))
	eventually(t, 10*time.Second, "the client's proxy listens", func() bool {
		conn, err := net.Dial("tcp", socks)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	web := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "socks5h", Host: socks})}, Timeout: 20 * time.Second}
	defer web.CloseIdleConnections()
	for range 3 {
		res, err := web.Get("http://127.0.0.1:" + port + "/server.py")
		require.NoError(t, err)
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.Contains(t, string(body), "serve_forever")
	}

	shared := []string{"-o", "ControlPath=" + filepath.Join(runtimeDir(t), "master")}
	with := func(program string, args ...string) *exec.Cmd {
		return client(t, c, program, append(shared, args...)...)
	}
	background(t, with("ssh", "-o", "ControlMaster=yes", "-N", sandbox.SSHName))
	eventually(t, 10*time.Second, "the shared connection is there", func() bool {
		return with("ssh", "-O", "check", sandbox.SSHName).Run() == nil
	})
	var all sync.WaitGroup
	for i := range 6 {
		cmd := with("ssh", sandbox.SSHName, fmt.Sprintf("read line; sleep 0.3; echo %d $line", i))
		cmd.Stdin = strings.NewReader("hello\n")
		all.Go(func() {
			out, err := cmd.CombinedOutput()
			if err != nil || string(out) != fmt.Sprintf("%d hello\n", i) {
				t.Errorf("command %d of those at once: %v: %s", i, err, out)
			}
		})
	}
	all.Wait()
	batch := with("sftp", "-b", "-", sandbox.SSHName)
	batch.Stdin = bytes.NewReader([]byte("ls .editor-server\n"))
	require.Contains(t, output(t, batch), "server.py")
}

// background runs a program until the test ends.
func background(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
