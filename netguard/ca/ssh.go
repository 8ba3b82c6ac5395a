package ca

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// maxPrincipals bounds the names in one host certificate; OpenSSH itself
// refuses to read more than 256.
const maxPrincipals = 64

func (c *CA) makeSSH() error {
	for _, signer := range []*ssh.Signer{&c.ssh, &c.host} {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		if *signer, err = ssh.NewSignerFromKey(key); err != nil {
			return err
		}
	}
	return nil
}

// HostCertificate returns a signer for the SSH server that plays the named
// hosts towards the guest: its public key is a host certificate. Names are what
// the guest typed, without the port; there must be one to 64. A certificate
// without names would be good for every host, so none is never asked for.
func (c *CA) HostCertificate(names ...string) (ssh.Signer, error) {
	if len(names) == 0 || len(names) > maxPrincipals {
		return nil, fmt.Errorf("an SSH host certificate is for 1 to %d names, not %d", maxPrincipals, len(names))
	}
	var principals []string
	for _, n := range names {
		name, _, err := parseName(n)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(principals, name) {
			principals = append(principals, name)
		}
	}
	serial := make([]byte, 8)
	if _, err := rand.Read(serial); err != nil {
		return nil, fmt.Errorf("making an SSH host certificate: %w", err)
	}
	now := c.now()
	cert := &ssh.Certificate{
		Key:      c.host.PublicKey(),
		Serial:   binary.BigEndian.Uint64(serial),
		CertType: ssh.HostCert, KeyId: c.name, ValidPrincipals: principals,
		ValidAfter: unix(now.Add(-backdate)), ValidBefore: unix(now.Add(leafLifetime - backdate)),
	}
	if err := cert.SignCert(rand.Reader, c.ssh); err != nil {
		return nil, fmt.Errorf("making an SSH host certificate: %w", err)
	}
	return ssh.NewCertSigner(cert, c.host)
}

// KnownHosts is the line for the guest's known_hosts file: the authority is
// trusted for every host, since every host that the guest reaches is us.
func (c *CA) KnownHosts() string {
	key := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(c.ssh.PublicKey())))
	return "@cert-authority * " + key + " " + strings.ReplaceAll(strings.Map(printable, c.name), " ", "-") + "\n"
}

// SSHAuthority is the public key of the SSH host authority.
func (c *CA) SSHAuthority() ssh.PublicKey { return c.ssh.PublicKey() }

func unix(t time.Time) uint64 { return uint64(max(t.Unix(), 0)) }

// printable keeps a session's name from ending the line that it stands in.
func printable(r rune) rune {
	if r < ' ' || r > '~' {
		return '-'
	}
	return r
}
