package ca

import (
	"bytes"
	"container/list"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	backdate     = 48 * time.Hour       // how far a guest's clock may be behind
	leafLifetime = 7 * 24 * time.Hour   // from NotBefore to NotAfter
	rootLifetime = 366 * 24 * time.Hour // likewise
	renewBefore  = 24 * time.Hour       // a cached leaf with less left is minted anew

	// DefaultCacheSize is the number of leaves kept when Options names none.
	// A leaf is about 2 KiB.
	DefaultCacheSize = 1024
)

// Options of a CA. The zero value is useful.
type Options struct {
	// Session is shown in the names of certificates, so that people see whose
	// they are. At most 40 bytes are used.
	Session string
	// CacheSize bounds the leaves kept; 0 means DefaultCacheSize.
	CacheSize int
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// CA is a session's authority for X.509 and SSH host keys.
type CA struct {
	now  func() time.Time
	name string

	root    *x509.Certificate
	rootKey *ecdsa.PrivateKey
	pem     []byte
	leafKey *ecdsa.PrivateKey
	leafID  []byte // subject key identifier of leafKey

	ssh  ssh.Signer // signs host certificates
	host ssh.Signer // the session's one host key

	mu     sync.Mutex // guards what follows
	size   int
	leaves map[string]*list.Element // of *leaf
	recent *list.List               // most recently used first
}

// New makes the keys and the root certificate. It fails only if the system
// gives no randomness.
func New(o Options) (*CA, error) {
	c := &CA{now: o.Now, name: "gondolin session", size: o.CacheSize, leaves: map[string]*list.Element{}, recent: list.New()}
	if c.now == nil {
		c.now = time.Now
	}
	if c.size <= 0 {
		c.size = DefaultCacheSize
	}
	if o.Session != "" {
		// A common name has room for 64 bytes (RFC 5280, ub-common-name).
		c.name += " " + strings.Map(printable, o.Session[:min(len(o.Session), 40)])
	}
	if err := c.makeRoot(); err != nil {
		return nil, fmt.Errorf("making the session's certificate authority: %w", err)
	}
	if err := c.makeSSH(); err != nil {
		return nil, fmt.Errorf("making the session's SSH host authority: %w", err)
	}
	return c, nil
}

func (c *CA) makeRoot() (err error) {
	if c.rootKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	if c.leafKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	if c.leafID, err = keyID(c.leafKey); err != nil {
		return err
	}
	id, err := keyID(c.rootKey)
	if err != nil {
		return err
	}
	serial, err := newSerial()
	if err != nil {
		return err
	}
	start := c.now().Add(-backdate)
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: c.name, Organization: []string{"gondolin"}},
		NotBefore:    start, NotAfter: start.Add(rootLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
		SubjectKeyId: id, AuthorityKeyId: id,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, c.rootKey.Public(), c.rootKey)
	if err != nil {
		return err
	}
	c.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	c.root, err = x509.ParseCertificate(der)
	return err
}

// PEM is the root certificate for the guest's trust stores.
func (c *CA) PEM() []byte { return bytes.Clone(c.pem) }

// Certificate is the root certificate. It must not be changed.
func (c *CA) Certificate() *x509.Certificate { return c.root }

// Format implements [fmt.Formatter]: whatever the verb, no key is printed.
func (c *CA) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[authority of " + c.name + "]")) }

// keyID is method 1 of RFC 7093, section 2.
func keyID(key *ecdsa.PrivateKey) ([]byte, error) {
	pub, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(pub)
	return sum[:20], nil
}

// newSerial draws 127 random bits: positive and within 20 octets (RFC 5280, 4.1.2.2).
func newSerial() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, err
	}
	b[0] = b[0]&0x7f | 0x40 // never short, never zero
	return new(big.Int).SetBytes(b), nil
}
