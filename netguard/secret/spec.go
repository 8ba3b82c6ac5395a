package secret

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	minValue = 8       // bytes: replacing anything shorter would hit texts that are no secret
	maxValue = 4 << 10 // bytes: a table for the search grows with it
	maxSpecs = 100

	defaultTimeout = 30 * time.Second
)

// Spec is a secret as a configuration writes it.
type Spec struct {
	Name string `koanf:"name" yaml:"name" json:"name"` // unique; shown to the agent
	From From   `koanf:"from" yaml:"from" json:"from"`
	// Hosts may get the value, and no others: names, *.names, addresses, each with
	// or without a port. That a secret is bound to a host does not let the guest reach it.
	Hosts []string `koanf:"hosts" yaml:"hosts" json:"hosts"`
	// GuestEnv are the guest's environment variables that hold the placeholder.
	GuestEnv []string `koanf:"guest_env" yaml:"guest_env,omitempty" json:"guest_env,omitempty"`
	// In lists the parts of a request, besides header values, in which the
	// placeholder is replaced: query, path, body.
	In []Place `koanf:"in" yaml:"in,omitempty" json:"in,omitempty"`
	// PlainHTTP lets the value go out unencrypted.
	PlainHTTP   bool  `koanf:"plain_http" yaml:"plain_http,omitempty" json:"plain_http,omitempty"`
	Placeholder Shape `koanf:"placeholder" yaml:"placeholder,omitempty" json:"placeholder,omitempty"`
}

// From says where a value comes from: exactly one of Env, File, Command and
// Keyring.
type From struct {
	Env     string   `koanf:"env" yaml:"env,omitempty" json:"env,omitempty"`             // a variable of the host
	File    string   `koanf:"file" yaml:"file,omitempty" json:"file,omitempty"`          // a path on the host
	Command []string `koanf:"command" yaml:"command,omitempty" json:"command,omitempty"` // argv, run on the host without a shell; the value is its standard output
	Keyring string   `koanf:"keyring" yaml:"keyring,omitempty" json:"keyring,omitempty"` // "service/account" in the keyring of the operating system

	// Lifetime is how long a value is used before it is fetched again. By
	// default a file is read again after 5 seconds, the others never.
	Lifetime time.Duration `koanf:"lifetime" yaml:"lifetime,omitempty" json:"lifetime,omitempty"`
	// Timeout bounds a command; 30 seconds by default.
	Timeout time.Duration `koanf:"timeout" yaml:"timeout,omitempty" json:"timeout,omitempty"`
}

// Shape makes a placeholder look like the real value, for clients that check. By
// default it is "gdl_" and random letters and digits, as long as the value if that has
// 24 to 256 bytes.
type Shape struct {
	Prefix string `koanf:"prefix" yaml:"prefix,omitempty" json:"prefix,omitempty"`
	Length int    `koanf:"length" yaml:"length,omitempty" json:"length,omitempty"` // bytes, with the prefix, of which at least 16 are random
}

// Place is a part of a request.
type Place string

// The places. Header is always one.
const (
	InHeader Place = "header"
	InQuery  Place = "query"
	InPath   Place = "path"
	InBody   Place = "body"
)

// Problem is a mistake in a Spec.
type Problem struct {
	Key     string // path of the key, such as secrets[1].hosts[0]
	Message string
	Hint    string // may be empty
}

// String is the problem on one line.
func (p Problem) String() string {
	if p.Hint == "" {
		return p.Key + ": " + p.Message
	}
	return p.Key + ": " + p.Message + ": " + p.Hint
}

// Error is every mistake of the secrets.
type Error struct{ Problems []Problem }

// Error lists the problems, one a line.
func (e *Error) Error() string {
	var lines []string
	for _, p := range e.Problems {
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "\n")
}

var (
	nameForm   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
	envForm    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
	prefixForm = regexp.MustCompile(`^[A-Za-z0-9_.~-]*$`) // unreserved: no encoding changes it
)

// Check returns every mistake of the specs. It fetches nothing.
func Check(specs []Spec) []Problem {
	var list []Problem
	if len(specs) > maxSpecs {
		return []Problem{{"secrets", fmt.Sprintf("there are %d secrets", len(specs)), fmt.Sprintf("at most %d are possible", maxSpecs)}}
	}
	names, vars := map[string]bool{}, map[string]bool{}
	for i, s := range specs {
		bad := func(key, message, hint string) {
			list = append(list, Problem{fmt.Sprintf("secrets[%d]%s", i, key), message, hint})
		}
		switch {
		case !nameForm.MatchString(s.Name):
			bad(".name", quote(s.Name)+" is no name", "use up to 64 letters, digits, hyphens, dots and underscores")
		case names[s.Name]:
			bad(".name", "there is another secret "+s.Name, "choose another name")
		}
		names[s.Name] = true
		s.From.check(bad)
		if len(s.Hosts) == 0 {
			bad(".hosts", "the secret is bound to no host", "name those that may get it")
		}
		for j, h := range s.Hosts {
			if _, err := parseBinding(h); err != nil {
				bad(fmt.Sprintf(".hosts[%d]", j), err.Error(), "")
			}
		}
		for j, v := range s.GuestEnv {
			switch {
			case !envForm.MatchString(v):
				bad(fmt.Sprintf(".guest_env[%d]", j), quote(v)+" is no name of a variable", "")
			case vars[v]:
				bad(fmt.Sprintf(".guest_env[%d]", j), "another secret has the variable "+v, "")
			}
			vars[v] = true
		}
		for j, p := range s.In {
			if !slices.Contains([]Place{InHeader, InQuery, InPath, InBody}, p) {
				bad(fmt.Sprintf(".in[%d]", j), quote(string(p))+" is no part of a request", "use header, query, path or body")
			}
		}
		if p := s.Placeholder; !prefixForm.MatchString(p.Prefix) || len(p.Prefix) > 64 {
			bad(".placeholder.prefix", quote(p.Prefix)+" cannot be a prefix", "use up to 64 letters, digits and - . _ ~")
		} else if p.Length != 0 && (p.Length < len(p.Prefix)+minRandom || p.Length > maxPlaceholder) {
			bad(".placeholder.length", fmt.Sprintf("%d is out of range", p.Length), fmt.Sprintf("it has to leave %d random bytes after the prefix, and be at most %d", minRandom, maxPlaceholder))
		}
	}
	return list
}

func (f From) check(bad func(key, message, hint string)) {
	n := 0
	for _, is := range []bool{f.Env != "", f.File != "", len(f.Command) > 0, f.Keyring != ""} {
		if is {
			n++
		}
	}
	if n != 1 {
		bad(".from", fmt.Sprintf("there are %d sources", n), "name exactly one of env, file, command, keyring")
	}
	if f.Env != "" && !envForm.MatchString(f.Env) {
		bad(".from.env", "this is no name of a variable", "write the name, not the value")
	}
	if len(f.Command) > 0 && f.Command[0] == "" {
		bad(".from.command", "the command is empty", "")
	}
	if service, account, ok := strings.Cut(f.Keyring, "/"); f.Keyring != "" && (!ok || service == "" || account == "") {
		bad(".from.keyring", quote(f.Keyring)+" is no entry", "write service/account")
	}
	if f.Lifetime < 0 || f.Timeout < 0 {
		bad(".from", "lifetime and timeout are not negative", "")
	}
}

// checkValue refuses what cannot be replaced safely. Its errors say nothing of
// the value but its length.
func checkValue(v string) error {
	switch {
	case v == "":
		return errors.New("the value is empty")
	case len(v) < minValue:
		return fmt.Errorf("the value has %d bytes: below %d, replacing it in answers would change texts that are not the secret", len(v), minValue)
	case len(v) > maxValue:
		return fmt.Errorf("the value has more than %d bytes", maxValue)
	case !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' && r != '\r' || r == 0x7f }):
		return errors.New("the value is not text: encode it, in base64 for instance")
	}
	return nil
}

func quote(s string) string { return fmt.Sprintf("%+.100q", s) }
