package ca

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

func newCA(t testing.TB, o Options) *CA {
	t.Helper()
	c, err := New(o)
	require.NoError(t, err)
	return c
}

func pool(t testing.TB, c *CA) *x509.CertPool {
	t.Helper()
	p := x509.NewCertPool()
	require.True(t, p.AppendCertsFromPEM(c.PEM()))
	return p
}

func cached(c *CA) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.leaves)
}

func TestALeafIsGoodForItsNameAndNoOther(t *testing.T) {
	c := newCA(t, Options{Session: "s-1"})
	for name, want := range map[string]string{
		"example.com": "example.com", "Example.COM.": "example.com", "under_score.example": "under_score.example",
		"192.0.2.1": "192.0.2.1", "[2001:db8::1]": "2001:db8::1", "2001:db8::1": "2001:db8::1", "xn--bcher-kva.example": "xn--bcher-kva.example",
		strings.Repeat("a.", 100) + "example": strings.Repeat("a.", 100) + "example",
	} {
		cert, err := c.Leaf(name)
		require.NoError(t, err, name)
		chains, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: pool(t, c), DNSName: want, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		require.NoError(t, err, name)
		assert.Len(t, chains[0], 2)
		assert.Error(t, cert.Leaf.VerifyHostname("other.example"))
		_, err = cert.Leaf.Verify(x509.VerifyOptions{Roots: pool(t, c), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		assert.Error(t, err, "a leaf must not pass as a client")
	}
}

func TestALeafCannotSignCertificates(t *testing.T) {
	cert, err := newCA(t, Options{}).Leaf("example.com")
	require.NoError(t, err)
	assert.False(t, cert.Leaf.IsCA)
	assert.Equal(t, x509.KeyUsageDigitalSignature, cert.Leaf.KeyUsage)
}

func TestStrangeNamesGetNoCertificate(t *testing.T) {
	c := newCA(t, Options{})
	for _, name := range []string{
		"", ".", "..", "a..b", "*.example.com", "a b", "a\x00b.example", "bücher.example", "-a.example", "a-.example", "fe80::1%eth0",
		"300.300.300.300", "1.2.3", "[example.com]", "[::1", "http://a", strings.Repeat("a", 64) + ".example", strings.Repeat("a.", 130) + "b",
	} {
		_, err := c.Leaf(name)
		assert.Error(t, err, "%q", name)
		_, err = c.HostCertificate(name)
		assert.Error(t, err, "%q", name)
	}
	assert.Zero(t, cached(c))
}

func TestEverySessionHasItsOwnKeys(t *testing.T) {
	a, b := newCA(t, Options{}), newCA(t, Options{})
	assert.False(t, a.rootKey.Equal(b.rootKey))
	assert.False(t, a.leafKey.Equal(b.leafKey))
	assert.False(t, a.rootKey.Equal(a.leafKey))
	cert, err := a.Leaf("example.com")
	require.NoError(t, err)
	_, err = cert.Leaf.Verify(x509.VerifyOptions{Roots: pool(t, b)})
	assert.Error(t, err)
}

// §10: clock wrong after resume (certificate not yet valid).
func TestCertificatesAreValidForAGuestWhoseClockIsWrong(t *testing.T) {
	c := newCA(t, Options{})
	cert, err := c.Leaf("example.com")
	require.NoError(t, err)
	for _, skew := range []time.Duration{-47 * time.Hour, 0, 4 * 24 * time.Hour} {
		_, err = cert.Leaf.Verify(x509.VerifyOptions{Roots: pool(t, c), CurrentTime: time.Now().Add(skew)})
		assert.NoError(t, err, skew)
	}
	assert.LessOrEqual(t, cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore), 7*24*time.Hour)
}

// §10: unbounded leaf cache.
func TestTheLeafCacheIsBoundedAndTheLongestUnusedGoes(t *testing.T) {
	c := newCA(t, Options{CacheSize: 8})
	kept, err := c.Leaf("kept.example")
	require.NoError(t, err)
	gone, err := c.Leaf("gone.example")
	require.NoError(t, err)
	for i := range 50 {
		_, err := c.Leaf(fmt.Sprintf("h%d.example", i))
		require.NoError(t, err)
		_, err = c.Leaf("kept.example")
		require.NoError(t, err)
		assert.LessOrEqual(t, cached(c), 8)
	}
	again, err := c.Leaf("kept.example")
	require.NoError(t, err)
	assert.Same(t, kept, again)
	again, err = c.Leaf("gone.example")
	require.NoError(t, err)
	assert.NotSame(t, gone, again)
}

func TestManyCallersForOneNameShareOneSignature(t *testing.T) {
	c := newCA(t, Options{})
	var wg sync.WaitGroup
	certs := make([]*tls.Certificate, 32)
	for i := range certs {
		wg.Go(func() { certs[i], _ = c.Leaf("example.com") })
	}
	wg.Wait()
	for _, cert := range certs {
		require.NotNil(t, cert)
		assert.Same(t, certs[0], cert)
	}
}

func TestALeafNearItsEndIsMintedAnew(t *testing.T) {
	var offset atomic.Int64
	c := newCA(t, Options{Now: func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }})
	first, err := c.Leaf("example.com")
	require.NoError(t, err)
	offset.Store(int64(4*24*time.Hour + time.Hour))
	second, err := c.Leaf("example.com")
	require.NoError(t, err)
	assert.NotSame(t, first, second)
	assert.Equal(t, 1, cached(c))
	offset.Store(int64(400 * 24 * time.Hour))
	_, err = c.Leaf("example.com")
	assert.ErrorContains(t, err, "authority ends at")
}

func TestNoPrintedFormHasAKey(t *testing.T) {
	c := newCA(t, Options{Session: "s\n1"})
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		assert.Equal(t, "[authority of gondolin session s-1]", fmt.Sprintf(verb, c))
	}
	assert.NotContains(t, string(c.PEM()), "PRIVATE")
}

func TestATLSHandshakeWorksInEveryVersionAndWithOneKey(t *testing.T) {
	c := newCA(t, Options{})
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		client, server := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() {
			defer func() { _ = server.Close() }()
			_ = tls.Server(server, &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return c.Leaf(h.ServerName) }}).Handshake()
		})
		conn := tls.Client(client, &tls.Config{RootCAs: pool(t, c), ServerName: "api.example.com", MinVersion: v, MaxVersion: v})
		assert.NoError(t, conn.HandshakeContext(t.Context()))
		_ = client.Close()
		wg.Wait()
	}
}

func TestOpenSSLVerifiesTheChain(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	c := newCA(t, Options{Session: "s-1"})
	dir := t.TempDir()
	root, leafFile := filepath.Join(dir, "root.pem"), filepath.Join(dir, "leaf.pem")
	require.NoError(t, os.WriteFile(root, c.PEM(), 0o600))
	for arg, names := range map[string][]string{"-verify_hostname": {"example.com", strings.Repeat("a.", 50) + "example"}, "-verify_ip": {"192.0.2.1", "2001:db8::1"}} {
		for _, name := range names {
			cert, err := c.Leaf(name)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(leafFile, pemOf(cert.Certificate[0]), 0o600))
			out, err := exec.CommandContext(t.Context(), openssl, "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", root, arg, name, leafFile).CombinedOutput()
			assert.NoError(t, err, "%s", out)
		}
	}
}

func TestAnSSHClientTrustsTheHostForItsNamesOnly(t *testing.T) {
	c := newCA(t, Options{Session: "s-1"})
	file := filepath.Join(t.TempDir(), "known_hosts")
	require.NoError(t, os.WriteFile(file, []byte(c.KnownHosts()), 0o600))
	check, err := knownhosts.New(file)
	require.NoError(t, err)
	signer, err := c.HostCertificate("Git.example.com", "git.example.com.", "192.0.2.1")
	require.NoError(t, err)
	cert, ok := signer.PublicKey().(*ssh.Certificate)
	require.True(t, ok)
	assert.Equal(t, []string{"git.example.com", "192.0.2.1"}, cert.ValidPrincipals)
	addr := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 9), Port: 22}
	assert.NoError(t, check("git.example.com:22", addr, cert))
	assert.Error(t, check("other.example.com:22", addr, cert))
	_, err = c.HostCertificate()
	assert.Error(t, err, "a certificate without names is good for every host")
	_, err = c.HostCertificate(make([]string, 65)...)
	assert.Error(t, err)
	assert.Equal(t, 1, strings.Count(newCA(t, Options{Session: "a\nb * ssh-ed25519 x"}).KnownHosts(), "\n"))
}

func TestSSHKeygenReadsTheHostCertificate(t *testing.T) {
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		t.Skip("ssh-keygen is not installed")
	}
	c := newCA(t, Options{})
	signer, err := c.HostCertificate("git.example.com")
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "cert.pub")
	require.NoError(t, os.WriteFile(file, ssh.MarshalAuthorizedKey(signer.PublicKey()), 0o600))
	out, err := exec.CommandContext(t.Context(), keygen, "-L", "-f", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), "ssh-ed25519-cert-v01@openssh.com host certificate")
	assert.Contains(t, string(out), "git.example.com")
}

func BenchmarkMint(b *testing.B) {
	c := newCA(b, Options{CacheSize: 1})
	names := []string{"a.example", "b.example"}
	for i := 0; b.Loop(); i++ {
		if _, err := c.Leaf(names[i%2]); err != nil {
			b.Fatal(err)
		}
	}
}

func pemOf(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}) }

func FuzzLeafNames(f *testing.F) {
	for _, s := range []string{"example.com", "[::1]", "1.2.3", "a\x00b", "xn--a", "a..b"} {
		f.Add(s)
	}
	c := newCA(f, Options{CacheSize: 4})
	f.Fuzz(func(t *testing.T, name string) {
		cert, err := c.Leaf(name)
		if err == nil {
			require.Equal(t, 1, len(cert.Leaf.DNSNames)+len(cert.Leaf.IPAddresses))
		}
		require.LessOrEqual(t, cached(c), 4)
	})
}
