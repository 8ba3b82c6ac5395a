package netguard

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

func TestSSHThroughTheWholeStack(t *testing.T) {
	alone := everything()
	mixed := everything() // then what is spoken has to be found out
	web := policy.Rule{Name: "web", Action: policy.ActionAllow, Hosts: []string{sshHost}, Ports: []string{"*"}}
	for name, rules := range map[string][]policy.Rule{"where SSH alone is possible": {alone}, "where others are": {mixed, web}} {
		t.Run(name, func(t *testing.T) {
			r := newSSHRig(t, nil, rules...)
			guest := newTestGuest(t, r.o)
			conn, err := guest.DialTCP(sshHost, r.port)
			require.NoError(t, err)
			c := r.client(conn)
			out, errs, _ := r.run(c, "cat", "hello")
			assert.Equal(t, "hello", out, errs)
			_, errs, status := r.run(c, "exit 4", "")
			assert.Equal(t, 4, status, errs)

			s, err := c.NewSession()
			require.NoError(t, err)
			require.NoError(t, s.Start("exec sleep 60"))
			require.Eventually(t, func() bool { return r.server.runs() == 1 }, 5*time.Second, time.Millisecond)
			guest.Guard.SetPolicy(mustPolicy(t))
			assert.Error(t, s.Wait())
			require.Eventually(t, func() bool { return r.server.runs() == 0 }, 5*time.Second, time.Millisecond)
			require.Eventually(t, idle(guest), 10*time.Second, 10*time.Millisecond)
		})
	}
}

func BenchmarkSSHDownload(b *testing.B) {
	const size = 32 << 20
	r := newSSHRig(b, nil, everything())
	guest := newTestGuest(b, r.o)
	conn, err := guest.DialTCP(sshHost, r.port)
	require.NoError(b, err)
	c := r.client(conn)
	b.SetBytes(size)
	for b.Loop() {
		s, err := c.NewSession()
		require.NoError(b, err)
		out, err := s.StdoutPipe()
		require.NoError(b, err)
		require.NoError(b, s.Start(fmt.Sprintf("head -c %d /dev/zero", size)))
		n, err := io.Copy(io.Discard, out)
		require.NoError(b, err)
		require.Equal(b, int64(size), n)
	}
}

func BenchmarkSSHConnectAndRun(b *testing.B) {
	r := newSSHRig(b, nil, everything())
	for b.Loop() {
		c := r.dial()
		_, _, status := r.run(c, "true", "")
		require.Zero(b, status)
		c.Close()
	}
}

func TestSSHClientsWithoutCertificatesSeeAPlainKey(t *testing.T) {
	r := newSSHRig(t, nil, everything())
	conn, err := net.Dial("tcp", r.front.Addr().String())
	require.NoError(t, err)
	var shown ssh.PublicKey
	c, _, _, err := ssh.NewClientConn(conn, sshHost, &ssh.ClientConfig{
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
		HostKeyCallback:   func(_ string, _ net.Addr, k ssh.PublicKey) error { shown = k; return nil },
	})
	require.NoError(t, err)
	c.Close()
	assert.Equal(t, ssh.KeyAlgoED25519, shown.Type())
}

func TestSSHServersWithCertificatesAreTrustedByTheirAuthority(t *testing.T) {
	r := newSSHRig(t, nil, everything())
	authority := newSSHKey(t, "")
	cert := &ssh.Certificate{Key: r.server.host.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{sshHost}, ValidBefore: ssh.CertTimeInfinity}
	require.NoError(t, cert.SignCert(rand.Reader, authority))
	signer, err := ssh.NewCertSigner(cert, r.server.host)
	require.NoError(t, err)
	r.server.mu.Lock()
	r.server.cert = signer
	r.server.mu.Unlock()
	line := "@cert-authority *.example " + string(ssh.MarshalAuthorizedKey(authority.PublicKey()))
	require.NoError(t, os.WriteFile(r.known, []byte(line), 0o600))
	out, errs, _ := r.run(r.dial(), "echo in", "")
	assert.Equal(t, "in\n", out, errs)

	require.NoError(t, os.WriteFile(r.known, nil, 0o600))
	_, errs, _ = r.run(r.dial(), "echo in", "")
	assert.Contains(t, errs, "is not known: it shows ssh-ed25519 "+ssh.FingerprintSHA256(r.server.host.PublicKey()))
	assert.Contains(t, errs, "its certificate does not help")

	revoked := "@revoked * " + string(ssh.MarshalAuthorizedKey(r.server.host.PublicKey()))
	require.NoError(t, os.WriteFile(r.known, []byte(line+revoked), 0o600))
	_, errs, _ = r.run(r.dial(), "echo in", "")
	assert.Contains(t, errs, "which is revoked")
}

func TestSSHAKeyWithAPassphraseIsTheAgents(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	dir := t.TempDir()
	locked, open := filepath.Join(dir, "locked"), filepath.Join(dir, "open")
	block, err := ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte("word"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(locked, pem.EncodeToMemory(block), 0o600))
	newSSHKey(t, open)
	ring := agent.NewKeyring()
	for range 3 {
		_, other, err := ed25519.GenerateKey(rand.Reader)
		require.NoError(t, err)
		require.NoError(t, ring.Add(agent.AddedKey{PrivateKey: other}))
	}
	g, err := New(Options{SSH: SSHOptions{KeyFiles: []string{locked, open, dir}}})
	require.NoError(t, err)
	l := g.ssh.newLogin()
	assert.Len(t, l.signers(), 1)
	assert.Equal(t, "the host's key (key file 1 has a passphrase, and the agent does not hold it; key file 3 cannot be used)", l.describe())

	require.NoError(t, ring.Add(agent.AddedKey{PrivateKey: key}))
	l = g.ssh.newLogin()
	l.s.g.o.SSH.Agent = serveAgent(t, ring)
	defer l.close()
	signers := l.signers()
	require.Len(t, signers, 5)
	mine, err := ssh.NewSignerFromKey(key)
	require.NoError(t, err)
	assert.True(t, sameKey(mine.PublicKey(), signers[0].PublicKey()), "before the agent's others")
}

// serveAgent serves a keyring until the test ends.
func serveAgent(t testing.TB, ring agent.Agent) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ng") // short: a socket's path has 104 bytes at most
	require.NoError(t, err)
	l, err := net.Listen("unix", filepath.Join(dir, "a"))
	require.NoError(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = agent.ServeAgent(ring, c)
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-served
		os.RemoveAll(dir)
	})
	return l.Addr().String()
}

func TestSSHAccountsAreMapped(t *testing.T) {
	o := SSHOptions{Users: map[string]string{"agent@a.example": "one", "@a.example": "two", "agent": "three"}}
	for who, want := range map[[2]string]string{
		{"agent", "a.example"}: "one", {"root", "a.example"}: "two", {"agent", "b.example"}: "three", {"root", "b.example"}: "root",
	} {
		assert.Equal(t, want, o.account(who[0], who[1]))
	}
}
