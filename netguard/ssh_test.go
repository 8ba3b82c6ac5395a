package netguard

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

func TestSSHCommandsRunOnTheServerWithTheHostsKey(t *testing.T) {
	r := newSSHRig(t, nil, everything())
	c := r.dial()
	out, errs, status := r.run(c, "cat; echo bad >&2; exit 7", "some input")
	assert.Equal(t, "some input", out)
	assert.Equal(t, "bad\n", errs)
	assert.Equal(t, 7, status)
	e := r.last()
	assert.Equal(t, Event{
		Time: e.Time, Duration: e.Duration, Flow: 1, Protocol: "ssh", Host: sshHost, Port: r.port, Addr: r.server.address,
		Method: "exec", Command: "cat; echo bad >&2; exit 7", Verdict: "allow", Rule: "test", Reason: e.Reason, Sent: 10, Received: 14,
	}, e)
	all := r.log.all()
	require.Len(t, all, 2, "before anything leaves, and at the end")
	assert.Empty(t, all[0].Addr)
	assert.Equal(t, []string{"git"}, r.server.users)

	out, _, _ = r.run(c, "echo again", "")
	assert.Equal(t, "again\n", out)
	assert.Equal(t, []string{"git"}, r.server.users, "the connection to the server is used again")
}

func TestSSHRefusalsAreToldOnStderrWithStatusOne(t *testing.T) {
	r := newSSHRig(t, nil, sshRule(policy.SSHRule{Git: []string{policy.GitUploadPack}, Repositories: []string{"o/r"}}))
	c := r.dial()
	for _, command := range []string{"ls", "git-receive-pack 'o/r'", "git-upload-pack 'o/other'", "git-upload-pack 'o/r'; id"} {
		out, errs, status := r.run(c, command, "unread input")
		assert.Empty(t, out)
		assert.Equal(t, 1, status, command)
		assert.Contains(t, errs, "gondolin: refused: ")
		assert.Contains(t, errs, "; run git-upload-pack on o/r")
	}
	s, err := c.NewSession()
	require.NoError(t, err)
	var errs bytes.Buffer
	s.Stderr = &errs
	require.NoError(t, s.Shell())
	assert.Equal(t, 1, exitStatus(t, s.Wait()))
	assert.Contains(t, errs.String(), "gondolin: refused: ")
	s, err = c.NewSession()
	require.NoError(t, err)
	said, err := s.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, s.RequestSubsystem("sftp"))
	text, err := io.ReadAll(said)
	require.NoError(t, err)
	assert.Contains(t, string(text), `SSH subsystem "sftp"`)
	assert.Empty(t, r.server.seen(), "nothing has reached the server")
	assert.Empty(t, r.server.users)
	denials := r.g.Denials(0)
	require.Len(t, denials, 6)
	assert.Equal(t, "ls", denials[0].Command)
	assert.Equal(t, "shell", denials[4].Method)
}

func TestSSHShellsAndSubsystemsWorkWhereARuleSaysSo(t *testing.T) {
	r := newSSHRig(t, nil, everything())
	c := r.dial()
	s, err := c.NewSession()
	require.NoError(t, err)
	require.NoError(t, s.RequestPty("xterm", 24, 80, nil))
	require.NoError(t, s.Setenv("LC_ALL", "C"))
	assert.Error(t, s.Setenv("LD_PRELOAD", "x"))
	in, err := s.StdinPipe()
	require.NoError(t, err)
	var out bytes.Buffer
	s.Stdout = &out
	require.NoError(t, s.Shell())
	require.Eventually(t, func() bool { return r.server.runs() == 1 }, 5*time.Second, time.Millisecond)
	require.NoError(t, s.WindowChange(30, 100))
	_, err = io.WriteString(in, "echo hi; exit 3\n")
	require.NoError(t, err)
	assert.Equal(t, 3, exitStatus(t, s.Wait()))
	assert.Equal(t, "hi\n", out.String())
	assert.Equal(t, []string{"open session", "pty-req xterm", "env LC_ALL", "shell ", "window-change "}, normal(r.server.seen()))

	s, err = c.NewSession()
	require.NoError(t, err)
	require.NoError(t, s.Setenv("LANG", "C"))
	in, err = s.StdinPipe()
	require.NoError(t, err)
	got, err := s.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, s.RequestSubsystem("sftp"))
	_, err = io.WriteString(in, "\x00\x00\x00\x05\x01\x00\x00\x00\x03")
	require.NoError(t, err)
	require.NoError(t, in.Close())
	b, err := io.ReadAll(got)
	require.NoError(t, err)
	assert.Len(t, b, 9)
	assert.Equal(t, []string{"open session", "subsystem sftp"}, r.server.seen()[5:], "a subsystem gets no environment")
}

// normal cuts texts that are no texts.
func normal(list []string) []string {
	for i, s := range list {
		if strings.HasPrefix(s, "window-change") {
			list[i] = "window-change "
		}
	}
	return list
}

func TestSSHSignalsReachAnAllowedCommand(t *testing.T) {
	r := newSSHRig(t, nil, everything())
	s, err := r.dial().NewSession()
	require.NoError(t, err)
	require.NoError(t, s.Start("exec sleep 60"))
	require.NoError(t, s.Signal(ssh.SIGKILL)) // which may well come before the server has begun
	var exit *ssh.ExitError
	require.ErrorAs(t, s.Wait(), &exit)
	assert.Equal(t, "KILL", exit.Signal())
}

func TestSSHCarriesNoForwardsAgentsOrX11(t *testing.T) {
	r := newSSHRig(t, nil, everything())
	c := r.dial()
	_, err := c.Dial("tcp", "db.example:5432")
	var open *ssh.OpenChannelError
	require.ErrorAs(t, err, &open)
	assert.Equal(t, ssh.Prohibited, open.Reason)
	assert.Contains(t, open.Message, "gondolin: refused: ")
	_, err = c.Listen("tcp", "127.0.0.1:0")
	assert.Error(t, err)
	_, _, err = c.OpenChannel("direct-streamlocal@openssh.com", nil)
	assert.ErrorContains(t, err, "gondolin: refused: ")
	_, _, err = c.OpenChannel("direct-tcpip", []byte("x"))
	assert.ErrorContains(t, err, "malformed")
	s, err := c.NewSession()
	require.NoError(t, err)
	assert.Error(t, agent.RequestAgentForwarding(s))
	ok, err := s.SendRequest("x11-req", true, nil)
	require.NoError(t, err)
	assert.False(t, ok)
	require.NoError(t, s.Run("true"))
	assert.Equal(t, []string{"open session", "exec true"}, r.server.seen())
	assert.Len(t, r.g.Denials(0), 6)
}

func TestSSHForwardsWhereARuleSaysSo(t *testing.T) {
	r := newSSHRig(t, nil, sshRule(policy.SSHRule{Forwards: []string{"db.example:5432"}}))
	c := r.dial()
	_, err := c.Dial("tcp", "db.example:5433")
	assert.Error(t, err)
	conn, err := c.Dial("tcp", "db.example:5432")
	require.NoError(t, err)
	_, err = io.WriteString(conn, "hello")
	require.NoError(t, err)
	require.NoError(t, conn.(interface{ CloseWrite() error }).CloseWrite())
	b, err := io.ReadAll(conn)
	require.NoError(t, err)
	assert.Equal(t, "hello", string(b))
	conn.Close()
	assert.Equal(t, []string{"open direct-tcpip", "direct db.example:5432 from 127.0.0.1:0"}, r.server.seen())
	e := r.last()
	assert.Equal(t, "forward db.example:5432", e.Method+" "+e.Command)
}

func TestSSHServersWithAnotherOrAnUnknownKeyAreRefused(t *testing.T) {
	r := newSSHRig(t, nil, everything())
	other := newSSHKey(t, "").PublicKey()
	r.trust(other)
	_, errs, status := r.run(r.dial(), "id", "")
	assert.Equal(t, 1, status)
	assert.Contains(t, errs, "gondolin: refused: the server git.example:")
	assert.Contains(t, errs, ssh.FingerprintSHA256(r.server.host.PublicKey()))
	assert.Contains(t, errs, ssh.FingerprintSHA256(other))
	assert.Contains(t, errs, "the operator has to replace it")
	assert.NotContains(t, errs, filepath.Dir(r.known), "paths of the host stay here")

	require.NoError(t, os.Remove(r.known))
	_, errs, status = r.run(r.dial(), "id", "")
	assert.Equal(t, 1, status)
	assert.Contains(t, errs, "is not known: it shows ssh-ed25519 "+ssh.FingerprintSHA256(r.server.host.PublicKey()))
	assert.Equal(t, "deny", r.last().Verdict)

	require.NoError(t, os.WriteFile(r.known, []byte("nonsense here\n"), 0o600))
	_, errs, _ = r.run(r.dial(), "id", "")
	assert.Contains(t, errs, "the host's known_hosts cannot be read")
	assert.Empty(t, r.server.seen())

	r.trust(r.server.host.PublicKey(), other)
	_, errs, status = r.run(r.dial(), "true", "")
	assert.Equal(t, 0, status, errs)
}

func TestSSHUsesTheHostsAgentAndSaysWhyNoKeyServes(t *testing.T) {
	var socket string
	r := newSSHRig(t, func(r *sshRig, o *Options) {
		dir, err := os.MkdirTemp("", "ng")
		require.NoError(t, err)
		t.Cleanup(func() { os.RemoveAll(dir) })
		socket = filepath.Join(dir, "a")
		o.SSH.Agent = socket
		o.SSH.KeyFiles = []string{filepath.Join(dir, "missing")}
	}, everything())
	_, errs, status := r.run(r.dial(), "id", "")
	assert.Equal(t, 1, status)
	assert.Contains(t, errs, `gondolin: failed: the server git.example does not let "git" in with no key`)
	assert.Contains(t, errs, "key file 1 cannot be used")
	assert.NotContains(t, errs, socket)

	text, err := os.ReadFile(r.key)
	require.NoError(t, err)
	key, err := ssh.ParseRawPrivateKey(text)
	require.NoError(t, err)
	ring := agent.NewKeyring()
	require.NoError(t, ring.Add(agent.AddedKey{PrivateKey: key}))
	r.g.o.SSH.Agent = serveAgent(t, ring)
	out, errs, _ := r.run(r.dial(), "echo in", "")
	assert.Equal(t, "in\n", out, errs)
}

func TestSSHChannelsThatANewPolicyDeniesEnd(t *testing.T) {
	r := newSSHRig(t, nil, sshRule(policy.SSHRule{Commands: []string{"**"}}))
	c := r.dial()
	start := func(command string) (*ssh.Session, *bytes.Buffer) {
		s, err := c.NewSession()
		require.NoError(t, err)
		var errs bytes.Buffer
		s.Stderr = &errs
		require.NoError(t, s.Start(command))
		return s, &errs
	}
	gone, errs := start("exec sleep 61")
	stays, _ := start("exec sleep 60")
	require.Eventually(t, func() bool { return r.server.runs() == 2 }, 5*time.Second, time.Millisecond)
	r.g.SetPolicy(mustPolicy(t, sshRule(policy.SSHRule{Commands: []string{"exec sleep 60"}})))
	assert.Equal(t, 1, exitStatus(t, gone.Wait()))
	assert.Contains(t, errs.String(), "gondolin: refused: the policy has changed: ")
	require.Eventually(t, func() bool { return r.server.runs() == 1 }, 5*time.Second, time.Millisecond)
	require.NoError(t, stays.Signal(ssh.SIGKILL))
	assert.Error(t, stays.Wait())
}

type answer struct {
	yes  bool
	err  error
	ds   chan policy.Decision
	wait chan struct{} // nil: no
}

func (a *answer) Ask(_ context.Context, d policy.Decision) (bool, error) {
	a.ds <- d
	if a.wait != nil {
		<-a.wait
	}
	return a.yes, a.err
}

func TestSSHAsksTheHuman(t *testing.T) {
	a := &answer{ds: make(chan policy.Decision, 10)}
	rule := everything()
	rule.Action = policy.ActionAsk
	r := newSSHRig(t, func(_ *sshRig, o *Options) { o.Asker = a }, rule)
	c := r.dial()
	_, errs, status := r.run(c, "echo no", "")
	assert.Equal(t, 1, status)
	assert.Contains(t, errs, "who did not")
	a.yes = true
	out, _, _ := r.run(c, "echo yes", "")
	assert.Equal(t, "yes\n", out)
	a.err = errors.New("away")
	_, errs, _ = r.run(c, "echo no", "")
	assert.Contains(t, errs, "asking failed: away")
	assert.Len(t, a.ds, 3)
}

func TestSSHAnAnswerThatComesAfterANewPolicyCountsForNothing(t *testing.T) {
	a := &answer{yes: true, ds: make(chan policy.Decision, 1), wait: make(chan struct{})}
	rule := everything()
	rule.Action = policy.ActionAsk
	r := newSSHRig(t, func(_ *sshRig, o *Options) { o.Asker = a }, rule)
	s, err := r.dial().NewSession()
	require.NoError(t, err)
	var errs bytes.Buffer
	s.Stderr = &errs
	require.NoError(t, s.Start("id"))
	<-a.ds
	r.g.SetPolicy(mustPolicy(t, sshRule(policy.SSHRule{Commands: []string{"true"}})))
	close(a.wait)
	assert.Equal(t, 1, exitStatus(t, s.Wait()))
	assert.Contains(t, errs.String(), "gondolin: refused: ")
	assert.Empty(t, r.server.seen())
}

func TestSSHWhatCannotBeRecordedIsRefused(t *testing.T) {
	r := newSSHRig(t, nil, everything())
	r.log.mu.Lock()
	r.log.fail = true
	r.log.mu.Unlock()
	_, errs, status := r.run(r.dial(), "id", "")
	assert.Equal(t, 1, status)
	assert.Contains(t, errs, "the decision cannot be recorded")
	assert.Empty(t, r.server.seen())
}

func TestHoleSSHToAnAddressThatIsBlockedIsRefused(t *testing.T) {
	rule := everything()
	rule.AllowAddresses = nil
	r := newSSHRig(t, nil, rule)
	_, errs, status := r.run(r.dial(), "id", "")
	assert.Equal(t, 1, status)
	assert.Contains(t, errs, "127.0.0.1")
	assert.Contains(t, errs, "gondolin: refused: ")
	assert.Equal(t, "deny", r.last().Verdict)
}
