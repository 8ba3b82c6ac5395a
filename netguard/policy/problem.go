package policy

import (
	"fmt"
	"strings"
)

// Problem is something wrong with, or remarkable about, a Spec.
type Problem struct {
	Key     string // path of the key, such as network.rules[3].hosts[0]
	Message string
	Hint    string // what to do; may be empty
	Warning bool   // the policy works, but probably not as meant
}

// String is the problem on one line.
func (p Problem) String() string {
	s := p.Key + ": " + p.Message
	if p.Hint != "" {
		s += ": " + p.Hint
	}
	if p.Warning {
		return "warning: " + s
	}
	return s
}

// Error is every mistake of a Spec that does not compile.
type Error struct {
	Problems []Problem // no warnings among them
}

// Error is one line for one problem and a list for several.
func (e *Error) Error() string {
	if len(e.Problems) == 1 {
		return e.Problems[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "the network policy has %d mistakes:", len(e.Problems))
	for _, p := range e.Problems {
		b.WriteString("\n" + p.String())
	}
	return b.String()
}

// findings collects problems.
type findings struct{ list []Problem }

// maxProblems bounds what is listed: nobody mends more at a time.
const maxProblems = 100

func (f *findings) bad(key, message, hint string) {
	if len(f.list) < maxProblems {
		f.list = append(f.list, Problem{Key: key, Message: message, Hint: hint})
	}
}

func (f *findings) warn(key, message, hint string) {
	if len(f.list) < maxProblems {
		f.list = append(f.list, Problem{Key: key, Message: message, Hint: hint, Warning: true})
	}
}

func index(key string, i int) string { return fmt.Sprintf("%s[%d]", key, i) }
