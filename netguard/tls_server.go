package netguard

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// serverTLS is the configuration towards servers: base, with sessions to be resumed.
func serverTLS(base *tls.Config) *tls.Config {
	c := &tls.Config{}
	if base != nil {
		c = base.Clone()
	}
	c.MinVersion = max(c.MinVersion, tls.VersionTLS12)
	if c.ClientSessionCache == nil {
		c.ClientSessionCache = tls.NewLRUClientSessionCache(64)
	}
	return c
}

// dialTLS connects and lets the server prove who it is.
func (u *upstreams) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := u.dialPlain(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	d, ok := ctx.Value(dialingKey{}).(*dialing)
	if !ok {
		return nil, errors.Join(errors.New("a connection that nobody asked for"), conn.Close())
	}
	c := u.tls.Clone()
	c.ServerName = d.target.Host
	c.NextProtos = []string{"http/1.1"}
	if d.kind == upTLS {
		c.NextProtos = []string{"h2", "http/1.1"}
	}
	extra, also := c.RootCAs, c.VerifyConnection
	// crypto/tls knows one pool of roots, and there are two: the verification is the
	// standard one, done here with each. It covers resumed sessions too.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if err := verifyServer(s.PeerCertificates, d.target.Host, extra); err != nil {
			return err
		}
		if also != nil {
			return also(s)
		}
		return nil
	}
	session := tls.Client(conn, c)
	ctx, cancel := context.WithTimeoutCause(ctx, handshakeTime, fmt.Errorf("the TLS handshake took more than %v", handshakeTime))
	defer cancel()
	if err := session.HandshakeContext(ctx); err != nil {
		// Before the transport owns it nobody else closes it.
		_ = conn.Close()
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, &handshakeError{err}
	}
	return session, nil
}

// handshakeError is a TLS handshake with a server that failed.
type handshakeError struct{ error }

func (e *handshakeError) Unwrap() error { return e.error }

// verifyServer checks a server's certificate against the system's roots, and then
// against extra ones, which may be nil.
func verifyServer(chain []*x509.Certificate, host string, extra *x509.CertPool) error {
	if len(chain) == 0 {
		return errors.New("the server has no certificate")
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	o := x509.VerifyOptions{DNSName: host, Intermediates: x509.NewCertPool()}
	for _, c := range chain[1:] {
		o.Intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(o)
	if err != nil && extra != nil {
		o.Roots = extra
		if _, again := chain[0].Verify(o); again == nil || !errors.As(again, new(x509.UnknownAuthorityError)) {
			err = again
		}
	}
	if err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: chain, Err: err}
	}
	return nil
}

// explainCertificate says in words what is wrong with a server's certificate.
func explainCertificate(host string, err error) (reason, remedy string, ok bool) {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var roots x509.SystemRootsError
	var any *tls.CertificateVerificationError
	switch {
	case errors.As(err, &unknown):
		reason = fmt.Sprintf("the certificate of %s is signed by an authority that the host does not trust", host)
		if chain := unknown.Cert; chain != nil {
			reason += fmt.Sprintf(" (issuer %q)", clipped(chain.Issuer.String()))
		}
		return reason, "the operator can add the authority to the trusted roots", true
	case errors.As(err, &name):
		return fmt.Sprintf("the certificate of %s is for other names: %s", host, clipped(strings.Join(certificateNames(name.Certificate), ", "))), "use one of those names, if it is the server that is meant", true
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		now := time.Now()
		if c := invalid.Cert; c != nil && now.Before(c.NotBefore) {
			return fmt.Sprintf("the certificate of %s is valid from %s on only", host, c.NotBefore.UTC().Format(time.RFC3339)), "set the host's clock", true
		} else if c != nil {
			return fmt.Sprintf("the certificate of %s has expired, on %s", host, c.NotAfter.UTC().Format(time.RFC3339)), "the server's operator has to renew it", true
		}
		return fmt.Sprintf("the certificate of %s has expired", host), "the server's operator has to renew it", true
	case errors.As(err, &roots):
		return "the host has no roots to trust: " + roots.Error(), "install the host's ca-certificates", true
	case errors.As(err, &any):
		return fmt.Sprintf("the certificate of %s cannot be verified: %v", host, any.Err), "the server's operator has to mend it", true
	}
	return "", "", false
}

func certificateNames(c *x509.Certificate) []string {
	if c == nil {
		return nil
	}
	list := c.DNSNames
	for _, ip := range c.IPAddresses {
		list = append(list, ip.String())
	}
	return list
}
