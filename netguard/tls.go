package netguard

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// handshakeTime bounds a TLS handshake with the guest and one with a server. An
// emulated guest takes some 0.1 s for one.
const handshakeTime = 15 * time.Second

// guestTLS is the configuration towards the guest: one for the session, so that its
// ticket keys (made at random, kept in memory, changed daily by crypto/tls) let a later
// process resume what an earlier one began.
func (p *proxy) guestTLS() *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		// Nobody listens between guest and host: the hybrid key exchange would cost an
		// emulated guest time for nothing.
		CurvePreferences:            []tls.CurveID{tls.X25519, tls.CurveP256},
		DynamicRecordSizingDisabled: true, // nor is there a slow line
	}
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		// Asked on every handshake, resumed ones included: a ticket that was given for
		// one name does not open another.
		if _, err := p.leafName(hello); err != nil {
			if c, ok := hello.Conn.(*corked); ok {
				c.refused = err.Error()
			}
			return refuseName, nil
		}
		return nil, nil
	}
	c.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		name, err := p.leafName(hello)
		if err != nil {
			return nil, err
		}
		return p.ca.Leaf(name)
	}
	return c
}

// refuseName has no certificate, which makes crypto/tls answer unrecognized_name.
var refuseName = &tls.Config{
	MinVersion:             tls.VersionTLS12,
	SessionTicketsDisabled: true,
	GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil },
}

// leafName is the name that the guest is to be shown a certificate for. The SNI has
// to be the name that the guest looked up for the address it dialled; without one,
// only an address that a rule names is served.
func (p *proxy) leafName(hello *tls.ClientHelloInfo) (string, error) {
	c, ok := hello.Conn.(*corked)
	if !ok {
		return "", errors.New("the handshake is none of the guard's")
	}
	f := c.flow
	if hello.ServerName == "" {
		if f.Name != "" {
			return "", fmt.Errorf("the TLS ClientHello for %s names no server (no SNI)", f.Name)
		}
		d := p.policy().Possible(f.Host(), f.Dst.Port(), policy.HTTPS, policy.WSS)
		if d.Verdict == policy.Deny {
			return "", errors.New(d.Reason)
		}
		return f.Dst.Addr().Unmap().String(), nil
	}
	if name, err := policy.ParseHost(hello.ServerName); err != nil || name.String() != f.Name {
		return "", fmt.Errorf("the TLS ClientHello names the server %q, and the connection is to %s", clipped(hello.ServerName), f.Host())
	}
	return f.Name, nil
}

// serveTLS terminates TLS and serves what is within. It returns when the
// connection is over, and closes it.
func (p *proxy) serveTLS(ctx context.Context, f *Flow, conn net.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	raw := &corked{Conn: conn, flow: f}
	if p.ca == nil {
		p.handshakeFailed(f, "the session has no certificate authority, so that TLS cannot be looked into", nil)
		return
	}
	session := tls.Server(raw, p.tls)
	if err := conn.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return // it is closed already
	}
	if err := session.HandshakeContext(ctx); err != nil {
		p.handshakeFailed(f, raw.refused, err)
		return
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return
	}
	c := &webConn{Conn: session, flow: f, tls: true, in: session}
	c.out = newWebWriter(p.underWay, func(b []byte) error {
		return raw.write(func() error { return timedWrite(session, p.limits.Idle, b) })
	})
	p.serveConn(ctx, c, session.ConnectionState().NegotiatedProtocol == "h2")
	// The farewell of TLS tells the end from a cut, and waits 5 s at most.
	_ = session.Close()
}

// handshakeFailed records why there will be no request.
func (p *proxy) handshakeFailed(f *Flow, refused string, err error) {
	e := Event{Time: time.Now(), Flow: f.ID, Protocol: "https", Host: f.Host(), Port: f.Dst.Port(), Verdict: "error"}
	var op *net.OpError
	switch {
	case refused != "":
		e.Verdict, e.Reason = "deny", refused
		e.Remedy = "connect to the name that was looked up, and name it in the handshake"
	case errors.As(err, &op) && op.Op == "remote error": // as crypto/tls marks the peer's alerts
		e.Reason = "the guest broke off the TLS handshake: " + op.Err.Error()
		e.Remedy = "the program has to trust the session's certificate authority"
	default:
		e.Reason = "the TLS handshake failed: " + err.Error()
	}
	if err := recordFailure(p.recorder, e); err != nil {
		p.log.Error("recording a failed handshake", "flow", e.Flow, "err", err)
	}
}
