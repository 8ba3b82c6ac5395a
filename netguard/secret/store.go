package secret

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zalando/go-keyring"
)

const (
	// maxHistory and maxHistoryBytes bound the values of one secret that answers are
	// searched for: the latest ones, so that a value that was replaced in mid-session is
	// still found. The bytes are shared by all secrets. One takes some 300 bytes of memory
	// in the search.
	maxHistory      = 64
	maxHistoryBytes = 128 << 10
	// maxTotal bounds the values of all secrets together, in bytes.
	maxTotal = 64 << 10
	// retryAfter is how long a source that failed is left alone.
	retryAfter = time.Second
)

// Store holds the secrets of a process and fetches their values. Sessions get
// a [Set] each. It is safe for concurrent use.
type Store struct {
	specs   []Spec
	entries []*entry
	options Options

	mu      sync.Mutex               // held while current is replaced
	current atomic.Pointer[snapshot] // never nil
}

// entry is the state of one secret.
type entry struct {
	turn    chan struct{} // holds a token while nobody fetches
	value   Value
	fetched time.Time
	failed  time.Time
	err     error
}

// snapshot is every value that is to be found in answers.
type snapshot struct {
	values [][]string // by secret, the oldest first
	find   *automaton
}

// Open checks the specs and fetches all values. Its error is an [*Error] with
// everything that is wrong, or the context's.
func Open(ctx context.Context, specs []Spec, o Options) (*Store, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.LookupEnv == nil {
		o.LookupEnv = os.LookupEnv
	}
	if o.Keyring == nil {
		o.Keyring = keyring.Get
	}
	problems := Check(specs)
	if len(problems) > 0 {
		return nil, &Error{Problems: problems}
	}
	s := &Store{specs: slices.Clone(specs), options: o}
	s.current.Store(&snapshot{values: make([][]string, len(specs)), find: newAutomaton(nil)})
	for range specs {
		e := &entry{turn: make(chan struct{}, 1)}
		e.turn <- struct{}{}
		s.entries = append(s.entries, e)
	}
	for i := range specs {
		if _, err := s.value(ctx, i); err != nil {
			problems = append(problems, Problem{Key: fmt.Sprintf("secrets[%d].from", i), Message: err.Error()})
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("fetching secrets: %w", ctx.Err())
		}
	}
	total := 0
	for _, values := range s.current.Load().values {
		total += size(values)
	}
	if total > maxTotal {
		problems = append(problems, Problem{Key: "secrets", Message: fmt.Sprintf("the values have more than %d bytes together", maxTotal)})
	}
	if len(problems) > 0 {
		return nil, &Error{Problems: problems}
	}
	return s, nil
}

// value returns a secret's value, fetched again if it is too old. Of callers
// at the same time one fetches and the others wait, each for as long as its
// context lets it. A value that cannot be fetched again is not used any longer.
func (s *Store) value(ctx context.Context, i int) (Value, error) {
	e, spec := s.entries[i], &s.specs[i]
	select {
	case <-e.turn:
		defer func() { e.turn <- struct{}{} }()
	case <-ctx.Done():
		return Value{}, fmt.Errorf("secret %s: %w", spec.Name, ctx.Err())
	}
	now, life := s.options.Now(), spec.From.lifetime()
	switch {
	case !e.fetched.IsZero() && (life == 0 || now.Sub(e.fetched) < life):
		return e.value, nil
	case e.err != nil && now.Sub(e.failed) < retryAfter:
		return Value{}, e.err
	}
	text, err := spec.From.fetch(ctx, s.options)
	if err == nil {
		err = checkValue(text)
	}
	if err != nil {
		err = fmt.Errorf("secret %s: %w", spec.Name, err)
		if ctx.Err() == nil { // else it says nothing about the source
			e.err, e.failed = err, now
		}
		return Value{}, err
	}
	// First it is found in answers, then it is given out.
	s.remember(i, text)
	e.value, e.fetched, e.err = NewValue(spec.Name, text), now, nil
	return e.value, nil
}

// remember adds a value to what is searched for.
func (s *Store) remember(i int, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.current.Load()
	values := slices.DeleteFunc(slices.Clone(old.values[i]), func(v string) bool { return v == text })
	next := &snapshot{values: slices.Clone(old.values), find: old.find}
	next.values[i] = append(values, text)
	if len(next.values[i]) == len(old.values[i]) { // it was used before
		s.current.Store(next)
		return
	}
	share := maxHistoryBytes / len(s.specs)
	for n := len(next.values[i]); n > 1 && (n > maxHistory || size(next.values[i]) > share); n-- {
		next.values[i] = next.values[i][1:]
	}
	var list []pattern
	for secret, values := range next.values {
		for _, v := range values {
			list = append(list, forms(secret, v)...)
		}
	}
	next.find = newAutomaton(list)
	s.current.Store(next)
}

func size(values []string) (n int) {
	for _, v := range values {
		n += len(v)
	}
	return n
}
