package configs

import (
	"fmt"
	"strings"
)

// Kind is the sort of place that a value can come from.
type Kind string

// The kinds of origins, weakest first.
const (
	KindDefault Kind = "default"
	KindFile    Kind = "file"
	KindEnv     Kind = "environment"
	KindFlag    Kind = "flag"
)

// Origin is where a value comes from.
type Origin struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name,omitempty"` // path of the file, name of the variable, or the flag with its hyphens
	Line int    `json:"line,omitempty"` // in a file, from 1; 0 when it concerns the whole file
}

// String is for people: "default", "config.yaml:3", "environment variable GONDOLIN_LOG_LEVEL", "flag --memory".
func (o Origin) String() string {
	switch o.Kind {
	case KindFile:
		if o.Line > 0 {
			return fmt.Sprintf("%s:%d", o.Name, o.Line)
		}
		return o.Name
	case KindEnv:
		return "environment variable " + o.Name
	case KindFlag:
		return "flag " + o.Name
	}
	return string(o.Kind)
}

// Problem is one mistake in a configuration.
type Problem struct {
	Origin
	Key     string `json:"key,omitempty"`  // path of the key, as far as there is one
	Message string `json:"message"`        // what is wrong
	Hint    string `json:"hint,omitempty"` // what to do, or what was probably meant; may be empty
}

// String is the problem on one line.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.Origin.String())
	b.WriteString(": ")
	// The name of a variable says the key already.
	if p.Key != "" && p.Kind != KindEnv && !strings.Contains(p.Message, show(p.Key)) {
		b.WriteString(show(p.Key) + ": ")
	}
	b.WriteString(p.Message)
	if p.Hint != "" {
		b.WriteString(": " + p.Hint)
	}
	return b.String()
}

// maxProblems bounds what one error lists: nobody mends more at a time, and a
// megabyte of rubbish should not come back as many.
const maxProblems = 100

// Error lists every mistake of a configuration.
type Error struct {
	Problems []Problem
	More     int // how many were left off
}

// Error is one line for one problem and a list for several.
func (e *Error) Error() string {
	if len(e.Problems) == 1 {
		return e.Problems[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "the configuration has %d mistakes:", len(e.Problems)+e.More)
	for _, p := range e.Problems {
		b.WriteString("\n" + p.String())
	}
	if e.More > 0 {
		fmt.Fprintf(&b, "\nand %d more", e.More)
	}
	return b.String()
}
