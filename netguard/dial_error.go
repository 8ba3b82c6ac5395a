package netguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// DialFailure says at which point a connection to a server failed.
type DialFailure string

// The failures.
const (
	FailedBlocked     DialFailure = "blocked"      // the policy closes all its addresses; see Decision
	FailedNoSuchHost  DialFailure = "no such host" // the name does not exist or has no address
	FailedLookup      DialFailure = "lookup"       // the resolver gave no answer
	FailedRefused     DialFailure = "refused"
	FailedTimeout     DialFailure = "timeout"
	FailedUnreachable DialFailure = "unreachable"
	FailedProxy       DialFailure = "proxy" // the host's proxy, or on the way to it
	FailedOther       DialFailure = "failed"
)

// DialError is a connection to a server that did not come about.
type DialError struct {
	Host     string
	Port     uint16
	Addr     netip.Addr // that was blocked
	Why      DialFailure
	Decision policy.Decision // of FailedBlocked
	Err      error
}

// Error says what failed on what and why.
func (e *DialError) Error() string {
	if e.Why == FailedBlocked {
		return e.Err.Error()
	}
	return fmt.Sprintf("connecting to %s: %v", net.JoinHostPort(e.Host, fmt.Sprint(e.Port)), e.Err)
}

// Unwrap returns Err.
func (e *DialError) Unwrap() error { return e.Err }

// Timeout says whether the server did not answer in time.
func (e *DialError) Timeout() bool { return e.Why == FailedTimeout }

var errDialTimeout = fmt.Errorf("no address answered within %s: %w", dialTimeout, os.ErrDeadlineExceeded)

func lookFailure(err error) DialFailure {
	var d *net.DNSError
	if errors.As(err, &d) && d.IsNotFound {
		return FailedNoSuchHost
	}
	return FailedLookup
}

func dialFailure(err error) DialFailure {
	var t interface{ Timeout() bool }
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return FailedRefused
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return FailedTimeout
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL):
		return FailedUnreachable
	case errors.As(err, &t) && t.Timeout():
		return FailedTimeout
	}
	return FailedOther
}
