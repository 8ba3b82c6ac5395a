package policy

import (
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limiter counts what a session has used of each rule. It is the state that
// Decide does not have: ask it after Decide has allowed something. It is safe for
// concurrent use and keeps counting when the policy is replaced, because it
// goes by the names of rules.
type Limiter struct {
	now func() time.Time

	mu   sync.Mutex
	used map[string]*usage
}

// usage is a rule's. There are as many as rules, so nothing needs to expire.
type usage struct {
	requests int64
	bytes    int64
	bucket   *rate.Limiter
	rate     Rate // that bucket was made for
}

// LimitError is a request or a transfer that exceeds a bound of its rule.
type LimitError struct {
	Rule   string
	What   string        // "requests", "bytes" or "rate"
	Bound  string        // such as "10MiB" or "5 a second"
	Retry  time.Duration // when it may work again; 0 if not in this session
	Remedy string
}

// Error says which bound of which rule it was.
func (e *LimitError) Error() string {
	if e.What == "rate" {
		return fmt.Sprintf("the rule %s allows %s: try again in %s", quote(e.Rule), e.Bound, e.Retry.Round(time.Millisecond))
	}
	return fmt.Sprintf("the rule %s allows %s in a session, and they are used up", quote(e.Rule), e.Bound)
}

// NewLimiter returns a Limiter that has counted nothing. A nil clock is time.Now.
func NewLimiter(now func() time.Time) *Limiter {
	if now == nil {
		now = time.Now
	}
	return &Limiter{now: now, used: map[string]*usage{}}
}

// Request counts one request (or connection, for what has no requests) that d
// allows, or returns a [*LimitError] and counts nothing.
func (l *Limiter) Request(d Decision) error {
	if d.Limits == (Limits{}) {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	u, q := l.of(d), d.Limits.Quota
	if q.Requests > 0 && u.requests >= q.Requests {
		return spent(d.Rule, "requests", fmt.Sprintf("%d requests", q.Requests))
	}
	if q.Bytes > 0 && u.bytes >= int64(q.Bytes) {
		return spent(d.Rule, "bytes", q.Bytes.String())
	}
	if r := d.Limits.Rate; r.PerSecond > 0 {
		if u.bucket == nil || u.rate != r {
			u.bucket, u.rate = rate.NewLimiter(rate.Limit(r.PerSecond), max(r.Burst, 1)), r
		}
		now := l.now()
		reservation := u.bucket.ReserveN(now, 1)
		if wait := reservation.DelayFrom(now); wait > 0 {
			reservation.CancelAt(now)
			return &LimitError{Rule: d.Rule, What: "rate", Bound: fmt.Sprintf("%g a second", r.PerSecond), Retry: wait, Remedy: "wait and try again"}
		}
	}
	u.requests++
	return nil
}

// Bytes counts n bytes of a transfer that d allows, before they are passed on.
// It returns a [*LimitError] when they exceed the quota; they are counted all the
// same, so that the quota stays used up. n below 0 counts nothing.
func (l *Limiter) Bytes(d Decision, n int) error {
	if d.Limits.Quota.Bytes <= 0 || n <= 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.of(d)
	u.bytes += min(int64(n), math.MaxInt64-u.bytes)
	if u.bytes > int64(d.Limits.Quota.Bytes) {
		return spent(d.Rule, "bytes", d.Limits.Quota.Bytes.String())
	}
	return nil
}

// Used is what has been counted for a rule.
func (l *Limiter) Used(rule string) Quota {
	l.mu.Lock()
	defer l.mu.Unlock()
	if u := l.used[rule]; u != nil {
		return Quota{Bytes: Bytes(u.bytes), Requests: u.requests}
	}
	return Quota{}
}

func (l *Limiter) of(d Decision) *usage {
	u := l.used[d.Rule]
	if u == nil {
		u = &usage{}
		l.used[d.Rule] = u
	}
	return u
}

func spent(rule, what, bound string) error {
	return &LimitError{Rule: rule, What: what, Bound: bound, Remedy: "do without; the operator can raise the quota of the rule"}
}
