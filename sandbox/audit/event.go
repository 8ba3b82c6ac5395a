package audit

import (
	"strings"
	"time"
	"unicode/utf8"
)

// Kind is the sort of an event.
type Kind string

// The kinds.
const (
	KindSession Kind = "session" // it began, was copied or ended: Detail
	KindExec    Kind = "exec"    // a command: Exec, Command, and at its end Status
	KindFile    Kind = "file"    // a refusal on a mount: Method, Path
	KindNetwork Kind = "network" // a decision about the network
	KindLog     Kind = "log"     // of the record itself: Detail is one of the next
)

// Details of KindLog.
const (
	detailBegin     = "begin"
	detailContinued = "continued" // in another file
	detailRemoved   = "removed"   // an old file, to make room
	detailEnd       = "end"
)

// Verdicts of an event.
const (
	Allow = "allow"
	Deny  = "deny"
	Error = "error" // allowed, and did not work
)

// Event is one thing to be recorded. Fields that say nothing about it stay empty.
type Event struct {
	Time     time.Time `json:"time"` // when zero: now
	Kind     Kind      `json:"kind"`
	Exec     string    `json:"exec,omitempty"` // number of the command; of what the network did, of the one that ran if it was one alone
	Flow     uint64    `json:"flow,omitempty"` // TCP connection of the session
	Protocol string    `json:"protocol,omitempty"`
	Host     string    `json:"host,omitempty"`
	Port     uint16    `json:"port,omitempty"`
	Addr     string    `json:"addr,omitempty"` // connected to
	Method   string    `json:"method,omitempty"`
	Path     string    `json:"path,omitempty"` // without query
	Command  string    `json:"command,omitempty"`
	Status   int       `json:"status,omitempty"`
	Verdict  string    `json:"verdict,omitempty"`
	Rule     string    `json:"rule,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Remedy   string    `json:"remedy,omitempty"`
	Secrets  []string  `json:"secrets,omitempty"` // names of those put in
	Sent     int64     `json:"sent,omitempty"`    // bytes from the guest
	Received int64     `json:"received,omitempty"`
	Seconds  float64   `json:"seconds,omitempty"` // how long it took
	// Done tells the second event of two about the same thing: the first says what was
	// decided, before anything leaves, and the second how it ended.
	Done   bool   `json:"done,omitempty"`
	Detail string `json:"detail,omitempty"`
}

// Record is an event as a line of the record.
type Record struct {
	Seq     uint64   `json:"seq"`  // from 1
	Prev    string   `json:"prev"` // SHA-256 of the line before, in hexadecimal
	Session string   `json:"session"`
	Removed *Removed `json:"removed,omitempty"`
	Event
}

// Removed says which part of the record is not there any more.
type Removed struct {
	File string `json:"file"`
	Seq  uint64 `json:"seq"`  // of its last line
	Hash string `json:"hash"` // of its last line
}

const (
	// maxText bounds one text of an event, in bytes.
	maxText = 4096
	// maxLine is more than a line can have: ten texts, each byte escaped as six, and a hundred names.
	maxLine = 1 << 20
	// maxSecrets bounds the names of one event; package secret has no more.
	maxSecrets = 100
)

// bounded cuts the texts of an event.
func (e Event) bounded() Event {
	for _, s := range []*string{&e.Exec, &e.Protocol, &e.Host, &e.Addr, &e.Method, &e.Path, &e.Command, &e.Verdict, &e.Rule, &e.Reason, &e.Remedy, &e.Detail} {
		*s = cut(*s)
	}
	if len(e.Secrets) > maxSecrets {
		e.Secrets = e.Secrets[:maxSecrets]
	}
	return e
}

func cut(s string) string {
	if len(s) > maxText {
		n := maxText
		for n > maxText-utf8.UTFMax && !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
