package netguard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
)

// WebSockets (RFC 6455) come over HTTP/1.1; the extended CONNECT of HTTP/2 (RFC 8441) is
// not offered, and clients then open a connection of their own for it. The upgrade is a
// request like any other: judged as ws or wss, with secrets in its head. After the
// 101 the bytes of both directions pass as they are, and count against the rule.
//
// What the guest sends is masked, and not looked into: placeholders in messages stay
// what they are, which nobody can use. What the server sends is not masked, so its
// stream is scrubbed like a body. That must not change a length; where a secret and its
// placeholder differ in length WebSockets are refused as long as there is such a secret.
// Extensions, and with them compression, are not negotiated while there are secrets.

// serveSocket makes the upgrade and carries the connection until either side ends
// it.
func (x *exchange) serveSocket(resp *http.Response) *refusal {
	server, ok := resp.Body.(io.ReadWriteCloser)
	switch {
	case !x.socket || !ok || !hasToken(resp.Header["Upgrade"], "websocket"):
		return &refusal{status: http.StatusBadGateway, failed: true, rule: "upstream", reason: x.conn.host + " switches to a protocol that was not asked for"}
	case !x.p.secrets.KeepsLength():
		return &refusal{status: http.StatusForbidden, rule: "secret", reason: "WebSockets cannot be searched for secrets, because one differs in length from its placeholder",
			remedy: "the operator can give the placeholder the length of the secret"}
	}
	if err := x.conn.strict.upgrade(); err != nil {
		return unsentUpgrade(err)
	}
	x.p.secrets.ScrubHeader(resp.Header)
	var head bytes.Buffer
	fmt.Fprintf(&head, "HTTP/1.1 101 Switching Protocols\r\n")
	h := resp.Header.Clone()
	stripHops(h)
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", "websocket")
	if err := h.Write(&head); err != nil {
		return &refusal{status: http.StatusBadGateway, failed: true, rule: "upstream", reason: err.Error()}
	}
	head.WriteString("\r\n")

	guest, buffered, err := x.ctl.Hijack()
	x.answered.Store(true)
	if err != nil {
		return x.cut(guestGone{err})
	}
	defer x.conn.release()
	x.event.Status = http.StatusSwitchingProtocols
	if _, err := guest.Write(head.Bytes()); err != nil {
		return x.cut(guestGone{err})
	}
	// Past what it has buffered, net/http's reader is left alone: it takes the end of the
	// guest's stream for that of the request.
	ahead := io.LimitReader(buffered.Reader, int64(buffered.Reader.Buffered()))
	return x.relay(guest, io.MultiReader(ahead, guest), server)
}

func unsentUpgrade(err error) *refusal {
	var v *violation
	if errors.As(err, &v) {
		return malformed(v)
	}
	return &refusal{status: http.StatusBadRequest, rule: "protocol", reason: err.Error()}
}

// relay copies both ways. One direction's end is the other's: a WebSocket says
// goodbye in its own frames.
func (x *exchange) relay(guest net.Conn, from io.Reader, server io.ReadWriteCloser) *refusal {
	incoming := io.Reader(server)
	if !x.p.secrets.Empty() {
		incoming = x.p.secrets.Scrubber().Reader(server)
	}
	stop := context.AfterFunc(x.ctx, func() {
		server.Close()
		x.conn.abort()
	})
	defer stop()
	up := make(chan error, 1)
	go func() {
		err := x.copy(server, from, &x.sent)
		server.Close() // ends the other direction
		up <- err
	}()
	down := x.copy(guest, incoming, &x.received)
	if err := x.conn.out.drain(); err != nil {
		x.conn.abort() // the guest does not take what it is sent
	}
	x.conn.Conn.Close() // ends the first direction
	server.Close()
	if err := <-up; down == nil || isClosed(down) {
		down = err
	}
	if cause := context.Cause(x.ctx); cause == nil && (down == nil || isClosed(down)) {
		return nil
	}
	return x.cut(down)
}

// copy is io.Copy that counts.
func (x *exchange) copy(dst io.Writer, src io.Reader, count *atomic.Int64) error {
	buf := takeBuffer(x.p.underWay())
	defer buf.give()
	decision := x.ruled()
	for {
		n, err := src.Read(buf.b)
		if n > 0 {
			x.watch.touch()
			if lerr := x.p.limiter.Bytes(decision, n); lerr != nil {
				return lerr
			}
			if _, werr := dst.Write(buf.b[:n]); werr != nil {
				return werr
			}
			count.Add(int64(n))
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

func isClosed(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, io.ErrUnexpectedEOF)
}
