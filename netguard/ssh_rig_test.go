package netguard

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/gondolin-go/gondolin/netguard/ca"
	"github.com/gondolin-go/gondolin/netguard/policy"
)

// sshRig is a Guard that carries SSH from a listener on loopback, as though the stack were
// between, to a server that runs commands on this machine.
type sshRig struct {
	t      testing.TB
	o      Options
	g      *Guard
	ca     *ca.CA
	server *sshTestServer
	log    *recorded
	port   uint16 // of the server, and as the guest dials it
	front  net.Listener
	known  string // file
	key    string // file: a key that the server accepts

	stop  context.CancelFunc
	serve sync.WaitGroup
}

const sshHost = "git.example"

// sshRule allows what section names on the rig's host.
func sshRule(section policy.SSHRule) policy.Rule {
	return policy.Rule{
		Name: "test", Action: policy.ActionAllow, Hosts: []string{sshHost, "127.0.0.1"}, Ports: []string{"*"},
		Protocols: []policy.Protocol{policy.SSH}, SSH: &section, AllowAddresses: []string{"127.0.0.0/8"},
	}
}

func everything() policy.Rule {
	return sshRule(policy.SSHRule{Commands: []string{"**"}, Shell: true, Subsystems: []string{"sftp"}})
}

// newSSHRig makes one. change may alter the options.
func newSSHRig(t testing.TB, change func(*sshRig, *Options), rules ...policy.Rule) *sshRig {
	t.Helper()
	dir := t.TempDir()
	r := &sshRig{t: t, log: &recorded{}, known: filepath.Join(dir, "known_hosts"), key: filepath.Join(dir, "id")}
	user := newSSHKey(t, r.key)
	r.server = newSSHTestServer(t, user.PublicKey())
	r.port = portOf(t, r.server.address)
	r.trust(r.server.host.PublicKey())
	var err error
	r.ca, err = ca.New(ca.Options{Session: "test"})
	require.NoError(t, err)
	o := Options{
		Policy: mustPolicy(t, rules...), CA: r.ca, Recorder: r.log,
		Upstream: Upstream{Hosts: map[string]netip.Addr{sshHost: netip.MustParseAddr("127.0.0.1")}},
		SSH:      SSHOptions{KnownHosts: []string{filepath.Join(dir, "none"), r.known}, KeyFiles: []string{r.key}, Users: map[string]string{"@" + sshHost: "git"}},
	}
	if change != nil {
		change(r, &o)
	}
	r.o = o
	r.g, err = New(o)
	require.NoError(t, err)
	r.front, err = net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var ctx context.Context
	ctx, r.stop = context.WithCancel(context.Background())
	r.serve.Add(1)
	go r.accept(ctx)
	t.Cleanup(func() {
		r.front.Close()
		r.stop()
		r.serve.Wait()
	})
	return r
}

func (r *sshRig) accept(ctx context.Context) {
	defer r.serve.Done()
	for n := uint64(1); ; n++ {
		conn, err := r.front.Accept()
		if err != nil {
			return
		}
		r.serve.Add(1)
		go func() {
			defer r.serve.Done()
			r.g.serveSSH(ctx, &Flow{ID: n, Conn: conn, Name: sshHost, Dst: netip.AddrPortFrom(netip.MustParseAddr("198.19.0.7"), r.port)}, conn)
		}()
	}
}

// trust replaces what is known of the server.
func (r *sshRig) trust(keys ...ssh.PublicKey) {
	var b strings.Builder
	for _, k := range keys {
		fmt.Fprintln(&b, knownhosts.Line([]string{net.JoinHostPort(sshHost, fmt.Sprint(r.port))}, k))
	}
	require.NoError(r.t, os.WriteFile(r.known, []byte(b.String()), 0o600))
}

// dial is a client in the guest, which trusts the session's authority alone.
func (r *sshRig) dial() *ssh.Client {
	r.t.Helper()
	conn, err := net.Dial("tcp", r.front.Addr().String())
	require.NoError(r.t, err)
	return r.client(conn)
}

func (r *sshRig) client(conn net.Conn) *ssh.Client {
	r.t.Helper()
	checker := ssh.CertChecker{IsHostAuthority: func(k ssh.PublicKey, _ string) bool { return sameKey(k, r.ca.SSHAuthority()) }}
	c, chans, reqs, err := ssh.NewClientConn(conn, sshHost+":22", &ssh.ClientConfig{
		User: "agent", HostKeyCallback: checker.CheckHostKey, HostKeyAlgorithms: []string{ssh.CertAlgoED25519v01},
	})
	require.NoError(r.t, err)
	client := ssh.NewClient(c, chans, reqs)
	r.t.Cleanup(func() { client.Close() })
	return client
}

// run runs a command and returns what a shell would see of it.
func (r *sshRig) run(c *ssh.Client, command, stdin string) (stdout, stderr string, status int) {
	r.t.Helper()
	s, err := c.NewSession()
	require.NoError(r.t, err)
	defer s.Close()
	var out, errs bytes.Buffer
	s.Stdout, s.Stderr, s.Stdin = &out, &errs, strings.NewReader(stdin)
	err = s.Run(command)
	return out.String(), errs.String(), exitStatus(r.t, err)
}

func exitStatus(t testing.TB, err error) int {
	t.Helper()
	var exit *ssh.ExitError
	if errors.As(err, &exit) {
		return exit.ExitStatus()
	}
	require.NoError(t, err)
	return 0
}

// last waits for the record of an end.
func (r *sshRig) last() Event {
	r.t.Helper()
	var e Event
	require.Eventually(r.t, func() bool {
		all := r.log.all()
		if len(all) > 0 {
			e = all[len(all)-1]
		}
		return e.Duration > 0
	}, 5*time.Second, time.Millisecond)
	return e
}

func newSSHKey(t testing.TB, file string) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	signer, err := ssh.NewSignerFromKey(key)
	require.NoError(t, err)
	if file != "" {
		block, err := ssh.MarshalPrivateKey(key, "")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(block), 0o600))
	}
	return signer
}

// sshTestServer is a server that runs commands with sh.
type sshTestServer struct {
	address string
	host    ssh.Signer
	cert    ssh.Signer // nil: none
	accepts []ssh.PublicKey
	dir     string // where commands run

	mu       sync.Mutex
	users    []string
	requests []string
	running  int
}

func newSSHTestServer(t testing.TB, users ...ssh.PublicKey) *sshTestServer {
	s := &sshTestServer{host: newSSHKey(t, ""), accepts: users, dir: t.TempDir()}
	conf := ssh.ServerConfig{PublicKeyCallback: func(m ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, a := range s.accepts {
			if sameKey(a, k) {
				s.users = append(s.users, m.User())
				return nil, nil
			}
		}
		return nil, errors.New("no")
	}}
	s.address = tcpServer(t, func(c net.Conn) {
		conf := conf
		conf.AddHostKey(s.host)
		s.mu.Lock()
		if s.cert != nil {
			conf.AddHostKey(s.cert)
		}
		s.mu.Unlock()
		conn, chans, reqs, err := ssh.NewServerConn(c, &conf)
		if err != nil {
			return
		}
		var work sync.WaitGroup
		work.Add(1)
		go func() { defer work.Done(); ssh.DiscardRequests(reqs) }()
		for opens := range chans {
			work.Add(1)
			go func() { defer work.Done(); s.channel(opens) }()
		}
		conn.Close()
		work.Wait()
	})
	return s
}

func (s *sshTestServer) note(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, text)
}

// seen is what has been asked of the server.
func (s *sshTestServer) seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.requests...)
}

func (s *sshTestServer) channel(opens ssh.NewChannel) {
	s.note("open " + opens.ChannelType())
	ch, reqs, err := opens.Accept()
	if err != nil {
		return
	}
	defer ch.Close()
	if opens.ChannelType() == "direct-tcpip" {
		var d sshDirect
		if ssh.Unmarshal(opens.ExtraData(), &d) != nil {
			return
		}
		s.note(fmt.Sprintf("direct %s:%d from %s:%d", d.Host, d.Port, d.OriginHost, d.OriginPort))
		go ssh.DiscardRequests(reqs)
		_, _ = io.Copy(ch, ch)
		return
	}
	var cmd *exec.Cmd
	done := make(chan error, 1)
	kill := func() {
		if cmd != nil {
			_ = cmd.Process.Kill()
		}
	}
	defer kill()
	for {
		select {
		case err := <-done:
			s.finish(ch, err)
			ch.Close()
			go ssh.DiscardRequests(reqs)
			return
		case r, ok := <-reqs:
			if !ok {
				kill()
				if cmd != nil {
					<-done
				}
				return
			}
			var text sshText
			_ = ssh.Unmarshal(r.Payload, &text)
			s.note(r.Type + " " + text.Value)
			_ = r.Reply(true, nil)
			switch r.Type {
			case "exec":
				cmd = exec.Command("sh", "-c", text.Value)
			case "shell":
				cmd = exec.Command("sh")
			case "subsystem":
				cmd = exec.Command("cat")
			case "signal":
				kill()
				continue
			default:
				continue
			}
			cmd.Dir = s.dir
			cmd.Stdout, cmd.Stderr = ch, ch.Stderr()
			in, err := cmd.StdinPipe()
			if err != nil || cmd.Start() != nil {
				return
			}
			s.mu.Lock()
			s.running++
			s.mu.Unlock()
			go func() { _, _ = io.Copy(in, ch); in.Close() }()
			go func() {
				err := cmd.Wait()
				s.mu.Lock()
				s.running--
				s.mu.Unlock()
				done <- err
			}()
		}
	}
}

func (s *sshTestServer) runs() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}

func (s *sshTestServer) finish(ch ssh.Channel, err error) {
	var exit *exec.ExitError
	status := uint32(0)
	if errors.As(err, &exit) {
		if !exit.Exited() {
			_, _ = ch.SendRequest("exit-signal", false, ssh.Marshal(sshKilled{Signal: "KILL"}))
			return
		}
		status = uint32(exit.ExitCode())
	}
	_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(sshExit{status}))
}
