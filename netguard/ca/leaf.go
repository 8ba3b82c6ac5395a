package ca

import (
	"container/list"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/netip"
	"strings"
	"sync"
)

// leaf is one place in the cache. Whoever finds it first signs.
type leaf struct {
	name string
	once sync.Once
	cert *tls.Certificate
	err  error
}

// Leaf returns a certificate for a DNS name or an IP address (with or without
// brackets), as a client names it: case and a trailing dot do not matter. The
// certificate is shared and must not be changed.
func (c *CA) Leaf(name string) (*tls.Certificate, error) {
	name, addr, err := parseName(name)
	if err != nil {
		return nil, err
	}
	for {
		l := c.place(name)
		l.once.Do(func() { l.cert, l.err = c.mint(name, addr) })
		if l.err != nil {
			c.forget(l)
			return nil, fmt.Errorf("making a certificate for %q: %w", name, l.err)
		}
		if l.cert.Leaf.NotAfter.Sub(c.now()) >= renewBefore {
			return l.cert, nil
		}
		c.forget(l)
	}
}

// place finds or makes the place of a name and drops the longest unused one.
func (c *CA) place(name string) *leaf {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.leaves[name]; ok {
		c.recent.MoveToFront(e)
		return e.Value.(*leaf)
	}
	l := &leaf{name: name}
	c.leaves[name] = c.recent.PushFront(l)
	if len(c.leaves) > c.size {
		c.drop(c.recent.Back())
	}
	return l
}

// forget drops a place, unless another has taken it already.
func (c *CA) forget(l *leaf) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.leaves[l.name]; ok && e.Value == any(l) {
		c.drop(e)
	}
}

func (c *CA) drop(e *list.Element) {
	c.recent.Remove(e)
	delete(c.leaves, e.Value.(*leaf).name)
}

func (c *CA) mint(name string, addr netip.Addr) (*tls.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	start := c.now().Add(-backdate)
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{"gondolin"}},
		NotBefore:    start, NotAfter: start.Add(leafLifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		SubjectKeyId:          c.leafID,
	}
	if len(name) <= 64 { // RFC 5280, ub-common-name; for clients that look there
		t.Subject.CommonName = name
	}
	if addr.IsValid() {
		t.IPAddresses = append(t.IPAddresses, addr.AsSlice())
	} else {
		t.DNSNames = []string{name}
	}
	if t.NotAfter.After(c.root.NotAfter) {
		t.NotAfter = c.root.NotAfter
	}
	if t.NotAfter.Sub(c.now()) < renewBefore {
		return nil, fmt.Errorf("the session's authority ends at %s", c.root.NotAfter.Format("2006-01-02 15:04:05Z07:00"))
	}
	der, err := x509.CreateCertificate(rand.Reader, t, c.root, c.leafKey.Public(), c.rootKey)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der, c.root.Raw}, PrivateKey: c.leafKey, Leaf: parsed}, nil
}

// parseName returns the name in the form that goes into a certificate, and the
// address if it is one.
func parseName(s string) (string, netip.Addr, error) {
	bare := s
	if inner, ok := strings.CutPrefix(s, "["); ok && strings.HasSuffix(inner, "]") {
		bare = inner[:len(inner)-1]
	}
	if addr, err := netip.ParseAddr(bare); err == nil {
		if addr.Zone() != "" {
			return "", netip.Addr{}, fmt.Errorf("%q: an address with a zone has no certificate", s)
		}
		addr = addr.Unmap()
		return addr.String(), addr, nil
	}
	name := strings.ToLower(strings.TrimSuffix(s, "."))
	if !isName(name) {
		return "", netip.Addr{}, fmt.Errorf("%q is no host name", s[:min(len(s), 300)])
	}
	return name, netip.Addr{}, nil
}

// isName accepts the names that go into a DNS subject alternative name: ASCII
// labels of letters, digits, hyphens and, as in practice, underscores, 253 bytes at
// most (RFC 1035, 2.3.4), the last not all digits.
func isName(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	labels := strings.Split(name, ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return false
		}
		for i := range len(l) {
			if b := l[i]; (b < 'a' || b > 'z') && (b < '0' || b > '9') && b != '-' && b != '_' {
				return false
			}
		}
	}
	return strings.Trim(labels[len(labels)-1], "0123456789") != ""
}
