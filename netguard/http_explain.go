package netguard

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
)

// explain says what failed, on what and why, when a server could not be asked.
func (x *exchange) explain(err error) *refusal {
	server := fmt.Sprintf("%s:%d", x.conn.host, x.conn.port)
	ref := &refusal{status: http.StatusBadGateway, failed: true, rule: "upstream", remedy: "check the host and the port; the server may be down"}
	if reason, remedy, ok := explainCertificate(x.conn.host, err); ok {
		ref.rule, ref.reason, ref.remedy = "certificate", reason, remedy
		return ref
	}
	var dial *DialError
	var connect *connectError
	var handshake *handshakeError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &dial):
		ref.reason = dial.Error()
	case errors.As(err, &connect):
		ref.reason = fmt.Sprintf("connecting to %s: %s", server, short(connect.error))
	case errors.As(err, &record):
		ref.reason, ref.remedy = server+" does not speak TLS", "use http, or the server's port for https"
	case errors.As(err, &handshake):
		ref.reason = fmt.Sprintf("the TLS handshake with %s failed: %s", server, short(handshake.error))
	default:
		ref.reason = fmt.Sprintf("%s gave no answer: %s", server, short(err))
		ref.remedy = "try again"
	}
	if timedOut(err) {
		ref.status = http.StatusGatewayTimeout
	}
	return ref
}

// short is an error of the network without the numbers of the host's side.
func short(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "the connection was refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "the connection was reset"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was closed"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "there is no route"
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return err.Error()
}

func timedOut(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) ||
		errors.Is(err, errConnectTime) || errors.As(err, &t) && t.Timeout()
}
