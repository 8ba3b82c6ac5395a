package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop/grpc_testing"

	"github.com/gondolin-go/gondolin/netguard"
	"github.com/gondolin-go/gondolin/netguard/policy"
	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/vfs"
)

// clients is a guest whose programs speak to real servers of this machine: example.com
// has HTTP, git, registries and gRPC, git.example and moved.example are one SSH server.
type clients struct {
	*outside
	s        *sandbox.Session
	web      *http.ServeMux
	repos    string // bare repositories, example.com/git/ and SSH alike
	uploaded atomic.Int64
	sshd     *sshd
	grpc     string // address
}

// TestRealClients is the bar that ordinary programs just work inside.
func TestRealClients(t *testing.T) {
	c := newClients(t)
	t.Run("curl", c.curl)
	t.Run("upload of 1 GiB", c.upload)
	t.Run("python", c.python)
	t.Run("openssl", c.openssl)
	t.Run("WebSocket, gRPC, DNS", c.ownPrograms)
	t.Run("a refused port", c.refusedPort)
	t.Run("git over HTTPS", c.gitHTTPS)
	t.Run("git over SSH", c.gitSSH)
	t.Run("ssh", c.ssh)
	t.Run("pip", c.pip)
	t.Run("npm", c.npm)
}

func newClients(t *testing.T) *clients {
	c := &clients{web: http.NewServeMux(), repos: t.TempDir()}
	c.outside = newOutside(t, c.web, nil)
	c.sshd = startSSHD(t)
	c.grpc = c.startGRPC(t)
	c.serveWeb(t)
	p, err := policy.Compile(policy.Spec{Rules: c.rules(t)})
	require.NoError(t, err)
	loopback := netip.MustParseAddr("127.0.0.1")
	c.network.Policy = p
	c.network.Upstream.Hosts = map[string]netip.Addr{"example.com": loopback, "git.example": loopback, "moved.example": loopback}
	c.network.SSH = netguard.SSHOptions{
		KnownHosts: []string{c.sshd.knownHosts}, KeyFiles: []string{c.sshd.key}, Users: map[string]string{"git": c.sshd.user},
	}
	c.network.Recorder = func(id string) (netguard.Recorder, error) { return told{t, id}, nil }
	programs, err := filepath.Abs("../bin/.inspector/node_modules")
	require.NoError(t, err)
	node, err := vfs.HostDir(programs, vfs.HostDirOptions{})
	require.NoError(t, err, "fetch them with `make inspector`")
	t.Cleanup(func() { require.NoError(t, node.Close()) })
	c.s = newSession(t, newHost(t, sandbox.HostOptions{}), sandbox.Options{
		Limits: sandbox.Limits{MemoryMiB: 768, CPUs: 2, DiskMiB: 2048}, Network: c.network,
		Mounts: []sandbox.Mount{{Path: "/node", Root: vfs.ReadOnly(node)}},
	})
	return c
}

// told logs what did not work, for whoever reads a failed test.
type told struct {
	t       *testing.T
	session string
}

func (r told) Record(e netguard.Event) error {
	if e.Verdict != "allow" {
		r.t.Logf("%s: %s %s %s:%d %s %s: %s", r.session, e.Verdict, e.Protocol, e.Host, e.Port, e.Method, e.Path+e.Command, e.Reason)
	}
	return nil
}

func (c *clients) rules(t *testing.T) []policy.Rule {
	_, grpcPort, err := net.SplitHostPort(c.grpc)
	require.NoError(t, err)
	sshPort := []string{strconv.Itoa(c.sshd.port)}
	open := []string{"127.0.0.1"}
	return []policy.Rule{
		{
			Name: "web", Action: policy.ActionAllow, Hosts: []string{"example.com"}, AllowAddresses: open,
			Ports: []string{fmt.Sprint(portOf(t, c.plain)), fmt.Sprint(portOf(t, c.secure)), grpcPort},
		},
		{
			Name: "push", Action: policy.ActionAllow, Protocols: []policy.Protocol{policy.SSH}, Hosts: []string{"git.example"}, Ports: sshPort, AllowAddresses: open,
			SSH: &policy.SSHRule{Git: []string{policy.GitUploadPack, policy.GitReceivePack}, Repositories: []string{strings.TrimPrefix(c.repos, "/") + "/work"}},
		},
		{
			Name: "read", Action: policy.ActionAllow, Protocols: []policy.Protocol{policy.SSH}, Hosts: []string{"git.example"}, Ports: sshPort, AllowAddresses: open,
			SSH: &policy.SSHRule{Git: []string{policy.GitUploadPack}, Repositories: []string{strings.TrimPrefix(c.repos, "/") + "/lib"}},
		},
		{
			Name: "commands", Action: policy.ActionAllow, Protocols: []policy.Protocol{policy.SSH}, Hosts: []string{"git.example", "moved.example"}, Ports: sshPort, AllowAddresses: open,
			SSH: &policy.SSHRule{Commands: []string{"echo **", "uname"}},
		},
	}
}

// serveWeb says what example.com has.
func (c *clients) serveWeb(t *testing.T) {
	c.web.HandleFunc("/hello", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello ") })
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	c.web.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "big.bin", time.Unix(1e9, 0), bytes.NewReader(big))
	})
	c.web.HandleFunc("/upload", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		c.uploaded.Add(n)
		fmt.Fprintf(w, "%d %v\n", n, err)
	})
	c.web.HandleFunc("/refuse", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "no room", http.StatusRequestEntityTooLarge)
	})
	c.web.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer ws.CloseNow()
		ws.SetReadLimit(1 << 20)
		for {
			kind, msg, err := ws.Read(r.Context())
			if err != nil || ws.Write(r.Context(), kind, msg) != nil {
				return
			}
		}
	})
	backend, err := exec.Command("git", "--exec-path").Output()
	require.NoError(t, err)
	c.web.Handle("/git/", &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(backend)), "git-http-backend"), Root: "/git", Stderr: testWriter{t},
		Env: []string{"GIT_PROJECT_ROOT=" + c.repos, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=agent", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	})
	c.servePyPI(t)
	c.serveNPM(t)
}

func (c *clients) curl(t *testing.T) {
	plain, secure := c.url(t, false), c.url(t, true)
	for flag, version := range map[string]string{"--http1.1": "1.1", "--http2": "2"} {
		require.Equal(t, "hello "+version, sh(t, c.s, "curl -sS "+flag+" -w '%{http_version}' "+secure+"/hello"))
	}
	require.Equal(t, "0123456789abcdef", sh(t, c.s, "curl -sS -r 1048560- "+secure+"/big"))
	require.Contains(t, sh(t, c.s, "curl -sSi -r 16-19,32-35 "+plain+"/big"), "multipart/byteranges")
	require.Equal(t, "206 1048576", sh(t, c.s, `cd /tmp && curl -sS -r 0-4095 -o part `+secure+`/big && curl -sS -C - -o part -w '%{http_code} ' `+secure+`/big && stat -c %s part`), "a download that broke off goes on")
	require.Contains(t, sh(t, c.s, "curl -sSI "+secure+"/big"), "content-length: 1048576")
	// The server's own word on `Expect` reaches the client: to go on, or not to.
	upload := "head -c 3M /dev/zero > /tmp/3M; curl -sS --http1.1 --expect100-timeout 20 -H 'Expect: 100-continue' -T /tmp/3M "
	began := time.Now()
	require.Equal(t, "3145728 <nil>", sh(t, c.s, upload+secure+"/upload"))
	require.Contains(t, sh(t, c.s, upload+secure+"/refuse -o /dev/null -w '%{http_code} %{size_upload}'"), "413 0", "the body was not sent in vain")
	require.Less(t, time.Since(began), 15*time.Second, "nobody waited for a 100 in vain")
	out, exit := try(t, c.s, sandbox.Command{Shell: "curl -sS " + strings.Replace(secure, "example.com", "other.example", 1) + "/"})
	require.NotZero(t, exit.Code, out)
}

// upload sends more than the host could hold unnoticed.
func (c *clients) upload(t *testing.T) {
	size := amount(128, 1024) << 20
	before := c.uploaded.Load()
	peak := resetPeak(t)
	began := time.Now()
	var out bytes.Buffer
	exit, err := c.s.Run(t.Context(), sandbox.Command{
		Shell: fmt.Sprintf("head -c %d /dev/zero", size) + " | curl -sS -H Expect: -T - " + c.url(t, false) + "/upload", Stdout: &out, Stderr: &out, Timeout: 10 * time.Minute,
	})
	require.NoError(t, err)
	require.Zero(t, exit.Code, out.String())
	took := time.Since(began)
	require.Equal(t, fmt.Sprintf("%d <nil>\n", size), out.String())
	require.EqualValues(t, size, c.uploaded.Load()-before)
	grown := peak()
	t.Logf("%d MiB in %v, %.0f MB/s, memory grew by %d MiB", size>>20, took, float64(size)/1e6/took.Seconds(), grown>>20)
	require.Less(t, grown, int64(64<<20), "the host holds windows, not bodies")
}

func (c *clients) python(t *testing.T) {
	url := c.url(t, true)
	require.Equal(t, "200 hello", sh(t, c.s, `python3 -c 'import urllib.request as u; r = u.urlopen("`+url+`/hello", data=b"x"); print(r.status, r.read().decode().strip())'`))
	// requests itself is what pip brings along.
	require.Equal(t, "206 cdef\nCERTIFIED", sh(t, c.s, `python3 - <<'PY'
from pip._vendor import requests
s = requests.Session()
r = s.get("`+url+`/big", headers={"Range": "bytes=12-15"})
print(r.status_code, r.text)
assert s.post("`+url+`/upload", data=iter([b"x" * 70000] * 20)).text.startswith("1400000 ")
assert len(s.get("`+url+`/big").content) == 1 << 20
print("CERTIFIED")
PY`))
}

func (c *clients) openssl(t *testing.T) {
	addr := fmt.Sprintf("example.com:%d", portOf(t, c.secure))
	out := sh(t, c.s, `printf 'GET /hello HTTP/1.1\r\nHost: `+addr+`\r\nConnection: close\r\n\r\n' | openssl s_client -quiet -verify_return_error -servername example.com -connect `+addr+` 2>/dev/null`)
	require.Contains(t, out, "HTTP/1.1 200 OK")
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		require.Contains(t, sh(t, c.s, `echo | openssl s_client `+version+` -alpn h2,http/1.1 -servername example.com -connect `+addr+` 2>&1`), "ALPN protocol: h2")
	}
	out, exit := try(t, c.s, sandbox.Command{Shell: `echo | openssl s_client -servername other.example -connect ` + addr + ` 2>&1`})
	require.NotZero(t, exit.Code, out)
	require.Contains(t, out, "alert", "a name in the handshake that is not the one looked up")
}

func (c *clients) refusedPort(t *testing.T) {
	for _, to := range []string{"example.com/1", "192.0.2.1/9", "198.18.0.1/22"} {
		began := time.Now()
		out, exit := try(t, c.s, sandbox.Command{Shell: "exec 3<>/dev/tcp/" + to})
		require.NotZero(t, exit.Code)
		require.Contains(t, out, "Connection refused", to)
		require.Less(t, time.Since(began), 3*time.Second, "a reset, not silence")
	}
}

// ownPrograms runs clients that are written in Go, in the guest.
func (c *clients) ownPrograms(t *testing.T) {
	require.NoError(t, c.s.CopyIn(t.Context(), guestTests(t), "/root"))
	_, grpcPort, err := net.SplitHostPort(c.grpc)
	require.NoError(t, err)
	var out bytes.Buffer
	exit, err := c.s.Run(t.Context(), sandbox.Command{
		Argv: []string{"/root/inguest.test", "-test.v", "-test.run", "^TestNet"}, Stdout: &out, Stderr: &out, Timeout: 3 * time.Minute,
		Env: map[string]string{"GONDOLIN_WS": "wss" + strings.TrimPrefix(c.url(t, true), "https") + "/ws", "GONDOLIN_GRPC": "example.com:" + grpcPort},
	})
	require.NoError(t, err)
	require.Zero(t, exit.Code, out.String())
	for _, test := range []string{"TestNetWebSocketEchoes", "TestNetGRPCStreamsBothWays", "TestNetDNSAnswersOverUDPAndTCP"} {
		require.Contains(t, out.String(), "--- PASS: "+test)
	}
	require.Contains(t, sh(t, c.s, "getent ahostsv4 example.com && getent ahostsv6 example.com"), "198.19.")
}

// startGRPC starts the echo of gRPC's own test service.
func (c *clients) startGRPC(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&c.secure.TLS.Certificates[0])))
	grpc_testing.RegisterTestServiceServer(server, grpcEcho{})
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); require.NoError(t, <-served) })
	return l.Addr().String()
}

type grpcEcho struct {
	grpc_testing.UnimplementedTestServiceServer
}

func (grpcEcho) FullDuplexCall(s grpc_testing.TestService_FullDuplexCallServer) error {
	for {
		in, err := s.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(&grpc_testing.StreamingOutputCallResponse{Payload: in.Payload}); err != nil {
			return err
		}
	}
}

// guestTests builds the tests that run inside a guest, for one that has no Go.
func guestTests(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "inguest.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-ldflags", "-s -w", "-o", program, "./inguest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return program
}

// resetPeak begins to watch this process's memory; what it gives returns by how much it
// grew at most.
func resetPeak(t *testing.T) (grown func() int64) {
	t.Helper()
	require.NoError(t, os.WriteFile("/proc/self/clear_refs", []byte("5"), 0))
	before := status(t, "VmRSS:")
	return func() int64 { return status(t, "VmHWM:") - before }
}

// status reads a size in bytes from /proc/self/status.
func status(t *testing.T, key string) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(b), key)
	require.True(t, found)
	kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	require.NoError(t, err)
	return kib << 10
}

func sums(b []byte) (hexed, integrity string) {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}
