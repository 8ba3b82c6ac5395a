package netguard

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gondolin-go/gondolin/netguard/policy"
	"github.com/gondolin-go/gondolin/netguard/secret"
)

const (
	// refusedHeader names the rule that refused, or what else did: "default" where
	// no rule matched.
	refusedHeader = "X-Gondolin-Refused"
	// failedHeader says that the answer is not the server's, because none came.
	failedHeader = "X-Gondolin-Failed"
)

// refusal is an answer that the guard gives in place of the server.
type refusal struct {
	status  int
	failed  bool   // it was tried, and did not work; not a refusal in the proper sense
	rule    string // or "default", "protocol", "secret", "hook", "audit", "limit", "upstream"
	named   bool   // rule is one of the policy's
	reason  string // a sentence without a full stop
	remedy  string
	nearest string
	retry   time.Duration
	last    bool // nothing more is read of the connection
}

func (r *refusal) Error() string { return r.reason }

// refusalBody is what the guest reads.
type refusalBody struct {
	Error      string  `json:"error"` // "refused" or "failed"
	Reason     string  `json:"reason"`
	Rule       string  `json:"rule,omitempty"`
	Nearest    string  `json:"nearest,omitempty"`
	Remedy     string  `json:"remedy,omitempty"`
	Method     string  `json:"method,omitempty"`
	Protocol   string  `json:"protocol"`
	Host       string  `json:"host"`
	Port       uint16  `json:"port"`
	Path       string  `json:"path,omitempty"`
	RetryAfter float64 `json:"retry_after,omitempty"` // seconds
}

// write answers with the refusal. It fails only as the connection does.
func (r *refusal) write(w http.ResponseWriter, e *Event) error {
	body := refusalBody{
		Error: "refused", Reason: r.reason, Nearest: r.nearest, Remedy: r.remedy,
		Method: e.Method, Protocol: e.Protocol, Host: e.Host, Port: e.Port, Path: clipped(e.Path),
		RetryAfter: r.retry.Seconds(),
	}
	if r.named {
		body.Rule = r.rule
	}
	h := w.Header()
	clear(h)
	if r.failed {
		body.Error = "failed"
		h.Set(failedHeader, headerText(r.rule))
	} else {
		h.Set(refusedHeader, headerText(r.rule))
	}
	if r.retry > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((r.retry+time.Second-1)/time.Second), 10))
	}
	if r.last {
		h.Set("Connection", "close")
	}
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	text, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("writing the refusal: %w", err)
	}
	text = append(text, '\n')
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(r.status)
	_, err = w.Write(text)
	return err
}

// headerText is a rule's name as far as a header field can hold it.
func headerText(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, clipped(s))
}

func denied(d policy.Decision) *refusal {
	r := &refusal{status: http.StatusForbidden, rule: d.Rule, named: true, reason: d.Reason, remedy: d.Remedy, nearest: d.Nearest}
	if d.Rule == "" {
		r.rule, r.named = "default", false
	}
	return r
}

func malformed(v *violation) *refusal {
	return &refusal{status: v.status, rule: "protocol", reason: v.reason, remedy: "send a well-formed request"}
}

// limited is a quota or rate that is used up.
func limited(err error) *refusal {
	r := &refusal{status: http.StatusTooManyRequests, rule: "limit", reason: err.Error()}
	var limit *policy.LimitError
	if errors.As(err, &limit) {
		r.rule, r.named, r.remedy, r.retry = limit.Rule, true, limit.Remedy, limit.Retry
		if limit.Retry == 0 {
			r.status = http.StatusForbidden
		}
	}
	return r
}

// leaked is a placeholder on its way to the wrong host, or a value that cannot be had.
func leaked(err error) *refusal {
	var leak *secret.LeakError
	if errors.As(err, &leak) {
		return &refusal{status: http.StatusForbidden, rule: "secret", reason: leak.Error(), remedy: leak.Remedy()}
	}
	return &refusal{status: http.StatusBadGateway, failed: true, rule: "secret", reason: err.Error(), remedy: "the operator has to look after the secret's source"}
}

// event puts the refusal into the record.
func (r *refusal) event(e *Event) {
	e.Verdict, e.Reason, e.Remedy, e.Status, e.Rule = "deny", r.reason, r.remedy, r.status, ""
	if r.failed {
		e.Verdict = "error"
	}
	if r.named {
		e.Rule = r.rule
	}
}
