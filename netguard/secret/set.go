package secret

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/semaphore"
)

// Set is the secrets of one session: the placeholders that stand for them in
// the guest, and where they may go. Which secrets there are never changes, so that
// no flow runs past one that came later; their values may. It is safe for
// concurrent use.
type Set struct {
	store   *Store
	secrets []held
	find    *automaton // of placeholders

	decoders *semaphore.Weighted // bytes of maxDecoders
}

// held is one secret as a session has it.
type held struct {
	spec        *Spec
	bindings    []binding
	placeholder string
}

// LeakError is a placeholder on its way to where its secret must not go. The
// request was refused.
type LeakError struct {
	Name  string // of the secret
	Where string // "header X-Token", "query", "path", "body"
	Host  string
	Plain bool // the host may have it, but not unencrypted
}

// Error says which secret was found where.
func (e *LeakError) Error() string {
	if e.Plain {
		return fmt.Sprintf("the placeholder of the secret %s is in the %s of an unencrypted request to %s", e.Name, e.Where, e.Host)
	}
	return fmt.Sprintf("the placeholder of the secret %s is in the %s of a request to %s, which the secret is not for", e.Name, e.Where, e.Host)
}

// Remedy is what the agent or the operator can do.
func (e *LeakError) Remedy() string {
	if e.Plain {
		return "use https; the operator can set plain_http for the secret"
	}
	return "send it to its own hosts only; the operator can add " + e.Host + " to hosts of the secret"
}

// Session makes the set of one session, with fresh placeholders.
func (s *Store) Session() (*Set, error) {
	set := &Set{store: s, decoders: semaphore.NewWeighted(maxDecoders)}
	var list []pattern
	values := s.current.Load().values
	for i := range s.specs {
		h := held{spec: &s.specs[i]}
		for _, text := range h.spec.Hosts {
			b, err := parseBinding(text)
			if err != nil {
				return nil, fmt.Errorf("secret %s: %w", h.spec.Name, err)
			}
			h.bindings = append(h.bindings, b)
		}
		var err error
		if h.placeholder, err = h.spec.Placeholder.placeholder(values[i][len(values[i])-1]); err != nil {
			return nil, err
		}
		set.secrets = append(set.secrets, h)
		list = append(list, forms(i, h.placeholder)...)
	}
	set.find = newAutomaton(list)
	set.find.soft = 0 // a request to the wrong host is refused, not shortened
	return set, nil
}

// Empty says whether there is no secret at all, so that nothing has to be looked
// through. A nil Set is empty.
func (s *Set) Empty() bool { return s == nil || len(s.secrets) == 0 }

// Env is the guest's environment: variables and the placeholders that they hold.
func (s *Set) Env() map[string]string {
	env := map[string]string{}
	if s.Empty() {
		return env
	}
	for _, h := range s.secrets {
		for _, name := range h.spec.GuestEnv {
			env[name] = h.placeholder
		}
	}
	return env
}

// Placeholder is what stands for the named secret in the guest.
func (s *Set) Placeholder(name string) (string, bool) {
	if s.Empty() {
		return "", false
	}
	for _, h := range s.secrets {
		if h.spec.Name == name {
			return h.placeholder, true
		}
	}
	return "", false
}

// For lists the secrets that a host may get, by name.
func (s *Set) For(t Target) []string {
	if s.Empty() {
		return nil
	}
	var names []string
	for i := range s.secrets {
		if s.secrets[i].bound(t) && s.secrets[i].open(t) {
			names = append(names, s.secrets[i].spec.Name)
		}
	}
	return names
}

func (h *held) bound(t Target) bool {
	return slices.ContainsFunc(h.bindings, func(b binding) bool { return b.match(t) })
}

// open says whether a host that may have the secret is reached in a way that
// keeps it from others.
func (h *held) open(t Target) bool { return t.TLS || h.spec.PlainHTTP }

func (h *held) in(p Place) bool { return p == InHeader || slices.Contains(h.spec.In, p) }

// leak is the error if a secret must not go to a target.
func (h *held) leak(t Target, where string) error {
	switch {
	case !h.bound(t):
		return &LeakError{Name: h.spec.Name, Where: where, Host: t.Host}
	case !h.open(t):
		return &LeakError{Name: h.spec.Name, Where: where, Host: t.Host, Plain: true}
	}
	return nil
}

// value is the current value of secret i.
func (s *Set) value(ctx context.Context, i int) (string, error) {
	v, err := s.store.value(ctx, i)
	return v.Reveal(), err
}

// KeepsLength says whether every value is as long as its placeholder, so that
// replacing one by the other keeps Content-Length and the lengths within a message
// (gRPC, WebSocket frames, protobuf) as they are. It speaks of values that stand there as they
// are or in base64: one that a server wrote with percent or JSON escapes becomes shorter,
// and an answer whose announced length is wrong by that breaks off.
func (s *Set) KeepsLength() bool {
	if s.Empty() {
		return true
	}
	var all []string
	for i, values := range s.store.current.Load().values {
		for _, v := range values {
			if len(v) != len(s.secrets[i].placeholder) {
				return false
			}
		}
		all = append(all, values...)
	}
	for i, a := range all {
		for j, b := range all {
			if i != j && a != b && strings.Contains(b, a) {
				return false // what remains of the longer one is replaced with the shorter
			}
		}
	}
	return true
}
