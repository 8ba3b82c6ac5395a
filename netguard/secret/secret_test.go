package secret

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/zalando/go-keyring"
)

const (
	ghValue = "ghp_realrealrealrealrealrealrealreal1234"
	pwValue = `p@ss w"ord\/%41+x`
)

// newSet opens a store of two secrets: gh for api.example and *.gh.example in headers
// alone, pw for db.example in every place and also unencrypted.
func newSet(t testing.TB, change ...func(*Spec)) *Set {
	t.Helper()
	env := map[string]string{"GH": ghValue, "PW": pwValue}
	specs := []Spec{
		{Name: "gh", From: From{Env: "GH"}, Hosts: []string{"api.example", "*.gh.example"}, GuestEnv: []string{"GH_TOKEN", "GITHUB_TOKEN"}, Placeholder: Shape{Prefix: "ghp_", Length: 40}},
		{Name: "pw", From: From{Env: "PW"}, Hosts: []string{"db.example:8080"}, In: []Place{InQuery, InPath, InBody}, PlainHTTP: true},
	}
	for _, c := range change {
		c(&specs[0])
	}
	store, err := Open(t.Context(), specs, Options{LookupEnv: func(k string) (string, bool) { v, ok := env[k]; return v, ok }})
	require.NoError(t, err)
	set, err := store.Session()
	require.NoError(t, err)
	return set
}

func placeholderOf(t testing.TB, s *Set, name string) string {
	t.Helper()
	p, ok := s.Placeholder(name)
	require.True(t, ok)
	return p
}

// §10: secret in URL, log, error, audit record.
func TestAValueNeverPrints(t *testing.T) {
	v := NewValue("gh", ghValue)
	type inner struct{ v Value }
	type outer struct {
		Exported Value
		hidden   *inner
		m        map[string]Value
	}
	o := outer{v, &inner{v}, map[string]Value{"k": v}}
	for _, x := range []any{v, &v, []Value{v}, o, &o, map[string]any{"v": v}, inner{v}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p", "%c", "% x", "%10.3v"} {
			out := fmt.Sprintf(verb, x)
			require.NotContains(t, out, "realreal", verb)
			require.NotContains(t, out, fmt.Sprintf("%x", "realreal"), verb)
		}
	}
	assert.Equal(t, "[secret gh]", fmt.Sprint(v))
	assert.Equal(t, "[secret gh]", v.GoString())
	j, err := json.Marshal(o)
	require.NoError(t, err)
	assert.JSONEq(t, `{"Exported":"[secret gh]"}`, string(j))
	x, err := xml.Marshal(v)
	require.NoError(t, err)
	assert.Contains(t, string(x), "[secret gh]")
	var buf bytes.Buffer
	require.Error(t, gob.NewEncoder(&buf).Encode(v))
	for _, h := range []slog.Handler{slog.NewTextHandler(&buf, nil), slog.NewJSONHandler(&buf, nil)} {
		slog.New(h).Info("x", "v", v, "o", o, slog.Any("e", fmt.Errorf("with %w and %v", errors.New("x"), v)))
	}
	assert.NotContains(t, buf.String(), "realreal")
	assert.Equal(t, ghValue, v.Reveal())
	assert.Empty(t, Value{}.Reveal())
}

func TestASetAndAStoreNeverPrintAValue(t *testing.T) {
	s := newSet(t)
	for _, verb := range []string{"%v", "%+v", "%s"} {
		assert.NotContains(t, fmt.Sprintf(verb, s), "realreal")
		assert.NotContains(t, fmt.Sprintf(verb, s.store), "realreal")
	}
}

// §10: a secret without hosts.
func TestEveryMistakeOfASpecIsNamed(t *testing.T) {
	for want, change := range map[string]func(*Spec){
		"secrets[0].hosts: the secret is bound to no host":                         func(s *Spec) { s.Hosts = nil },
		"secrets[0].hosts[0]: a secret cannot be bound to every host":              func(s *Spec) { s.Hosts = []string{"*"} },
		`secrets[0].hosts[0]: "*.com" would bind the secret to names that anybody`: func(s *Spec) { s.Hosts = []string{"*.com"} },
		`secrets[0].hosts[0]: "*.co.uk" would bind`:                                func(s *Spec) { s.Hosts = []string{"*.co.uk"} },
		`secrets[0].hosts[0]: "https://a" is no host name`:                         func(s *Spec) { s.Hosts = []string{"https://a"} },
		`secrets[0].hosts[0]: "a.*" is no host name`:                               func(s *Spec) { s.Hosts = []string{"a.*"} },
		`secrets[0].hosts[0]: "a:0" has no valid port`:                             func(s *Spec) { s.Hosts = []string{"a:0"} },
		`secrets[0].name: "a b" is no name`:                                        func(s *Spec) { s.Name = "a b" },
		"secrets[0].from: there are 0 sources":                                     func(s *Spec) { s.From = From{} },
		"secrets[0].from: there are 2 sources":                                     func(s *Spec) { s.From.File = "x" },
		"secrets[0].from.env: this is no name of a variable":                       func(s *Spec) { s.From.Env = "ghp-value" },
		"secrets[0].from.keyring":                                                  func(s *Spec) { s.From = From{Keyring: "x"} },
		`secrets[0].in[0]: "cookie" is no part of a request`:                       func(s *Spec) { s.In = []Place{"cookie"} },
		`secrets[0].guest_env[0]: "A=B" is no name of a variable`:                  func(s *Spec) { s.GuestEnv = []string{"A=B"} },
		"secrets[0].placeholder.length: 19 is out of range":                        func(s *Spec) { s.Placeholder = Shape{Prefix: "ghp_", Length: 19} },
		"secrets[0].placeholder.prefix":                                            func(s *Spec) { s.Placeholder = Shape{Prefix: "a/b"} },
		"secrets[0].from: secret x: the value has 7 bytes: below 8":                func(s *Spec) { s.From.Env = "SHORT" },
		"secrets[0].from: secret x: the value is empty":                            func(s *Spec) { s.From.Env = "EMPTY" },
		"secrets[0].from: secret x: the value is not text":                         func(s *Spec) { s.From.Env = "BINARY" },
		"secrets[0].from: secret x: the value has more than 4096 bytes":            func(s *Spec) { s.From.Env = "LONG" },
		"secrets[0].from: secret x: the environment variable MISSING is not set":   func(s *Spec) { s.From.Env = "MISSING" },
	} {
		env := map[string]string{"OK": "long enough", "SHORT": "1234567", "EMPTY": "\n", "BINARY": "\x00\xff0123456789", "LONG": strings.Repeat("x", 5000)}
		s := Spec{Name: "x", From: From{Env: "OK"}, Hosts: []string{"a.example"}}
		change(&s)
		_, err := Open(t.Context(), []Spec{s}, Options{LookupEnv: func(k string) (string, bool) { v, ok := env[k]; return v, ok }})
		require.Error(t, err, want)
		assert.Contains(t, err.Error(), want)
		for _, v := range env {
			if len(strings.TrimSpace(v)) > 3 {
				assert.NotContains(t, err.Error(), v)
			}
		}
	}
	_, err := Open(t.Context(), []Spec{{}, {}}, Options{})
	var e *Error
	require.ErrorAs(t, err, &e)
	assert.Len(t, e.Problems, 6, "all at once: %v", err)
}

// §10: predictable placeholder that third-party text could carry.
func TestPlaceholdersAreRandomForEachSessionAndSecret(t *testing.T) {
	s := newSet(t)
	seen := map[string]bool{}
	for range 50 {
		set, err := s.store.Session()
		require.NoError(t, err)
		for _, name := range []string{"gh", "pw"} {
			p := placeholderOf(t, set, name)
			assert.False(t, seen[p])
			seen[p] = true
			assert.Regexp(t, `^[A-Za-z0-9_]{24,}$`, p)
		}
		assert.Equal(t, map[string]string{"GH_TOKEN": placeholderOf(t, set, "gh"), "GITHUB_TOKEN": placeholderOf(t, set, "gh")}, set.Env())
	}
	p := placeholderOf(t, s, "gh")
	assert.True(t, strings.HasPrefix(p, "ghp_"))
	assert.Len(t, p, 40)
	assert.True(t, strings.HasPrefix(placeholderOf(t, s, "pw"), "gdl_"))
}

func TestAPlaceholderIsAsLongAsAnOrdinaryValue(t *testing.T) {
	s := newSet(t)
	assert.False(t, s.KeepsLength(), "pw is too short for that")
	env := func(string) (string, bool) { return strings.Repeat("v", 57), true }
	store, err := Open(t.Context(), []Spec{{Name: "a", From: From{Env: "A"}, Hosts: []string{"a.example"}}}, Options{LookupEnv: env})
	require.NoError(t, err)
	set, err := store.Session()
	require.NoError(t, err)
	assert.Len(t, placeholderOf(t, set, "a"), 57)
	assert.True(t, set.KeepsLength())
}

func TestHostsAreBoundExactlyByNameWildcardAddressAndPort(t *testing.T) {
	for _, c := range []struct {
		bound, host string
		port        uint16
		want        bool
	}{
		{"api.example", "api.example", 443, true}, {"API.example.", "api.example", 443, true}, {"api.example", "x.api.example", 443, false}, {"api.example", "xapi.example", 443, false}, {"api.example", "api.example.evil", 443, false},
		{"*.api.example", "x.api.example", 443, true}, {"*.api.example", "x.y.api.example", 443, true}, {"*.api.example", "api.example", 443, false}, {"*.api.example", "xapi.example", 443, false},
		{"api.example:8443", "api.example", 8443, true}, {"api.example:8443", "api.example", 443, false}, {"127.0.0.1", "127.0.0.1", 80, true}, {"127.0.0.1:81", "127.0.0.1", 80, false}, {"127.0.0.1", "::ffff:127.0.0.1", 80, true},
		{"[::1]:80", "::1", 80, true}, {"::1", "::1", 1, true}, {"bücher.example", "xn--bcher-kva.example", 443, true}, {"my_host.example", "my_host.example", 1, true}, {"*.local", "a.local", 1, true},
	} {
		b, err := parseBinding(c.bound)
		require.NoError(t, err, c.bound)
		assert.Equal(t, c.want, b.match(Target{Host: c.host, Port: c.port}), "%s for %s:%d", c.bound, c.host, c.port)
	}
}

func TestSourcesGiveTheirValues(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte("value-from-file\r\n"), 0o600))
	for want, from := range map[string]From{
		"value-from-file": {File: file}, "value-from-command": {Command: []string{"echo", "value-from-command"}}, "value-from-keyring": {Keyring: "svc/acct/x"}, "value-from-env": {Env: "E"},
	} {
		o := Options{
			LookupEnv: func(string) (string, bool) { return "value-from-env", true },
			Keyring: func(service, account string) (string, error) {
				assert.Equal(t, "svc acct/x", service+" "+account)
				return "value-from-keyring", nil
			},
		}
		store, err := Open(t.Context(), []Spec{{Name: "x", From: from, Hosts: []string{"a.example"}}}, o)
		require.NoError(t, err)
		v, err := store.value(t.Context(), 0)
		require.NoError(t, err)
		assert.Equal(t, want, v.Reveal())
	}
}

// §10: secret in error, /proc command line.
func TestASourceThatFailsSaysWhyAndNoValue(t *testing.T) {
	dir := t.TempDir()
	for want, from := range map[string]From{
		"no such file or directory":                   {File: filepath.Join(dir, "none")},
		"is no regular file":                          {File: dir},
		"ended with exit status 3":                    {Command: []string{"sh", "-c", "echo hunter2hunter2; echo hunter2hunter2 >&2; exit 3"}},
		"is not there":                                {Command: []string{filepath.Join(dir, "none")}},
		"printed more than 4096 bytes":                {Command: []string{"sh", "-c", "head -c 100000 /dev/zero | tr '\\0' hunter2hunter2"}},
		"did not end within 50ms":                     {Command: []string{"sh", "-c", "echo hunter2hunter2; sleep 60"}, Timeout: 50 * time.Millisecond},
		`the keyring has no entry "s/a"`:              {Keyring: "s/a"},
		"the keyring cannot be read: is it there and": {Keyring: "broken/a"},
	} {
		o := Options{Keyring: func(service, _ string) (string, error) {
			if service == "broken" {
				return "", errors.New("hunter2hunter2")
			}
			return "", keyring.ErrNotFound
		}}
		began := time.Now()
		_, err := Open(t.Context(), []Spec{{Name: "x", From: from, Hosts: []string{"a.example"}}}, o)
		require.Error(t, err, want)
		assert.Contains(t, err.Error(), want)
		assert.NotContains(t, err.Error(), "hunter2", want)
		assert.Less(t, time.Since(began), 20*time.Second, want)
	}
}

func TestAValueIsFetchedAgainAfterItsLifetimeAndOnce(t *testing.T) {
	var now, fetched atomic.Int64
	var fails atomic.Bool
	o := Options{
		Now: func() time.Time { return time.Unix(now.Load(), 0) },
		Keyring: func(string, string) (string, error) {
			if fails.Load() {
				return "", errors.New("locked")
			}
			return fmt.Sprintf("generation-%d-of-the-value", fetched.Add(1)), nil
		},
	}
	now.Store(1000)
	store, err := Open(t.Context(), []Spec{{Name: "x", From: From{Keyring: "s/a", Lifetime: time.Minute}, Hosts: []string{"a.example"}}}, o)
	require.NoError(t, err)
	set, err := store.Session()
	require.NoError(t, err)
	get := func() string {
		v, err := set.value(t.Context(), 0)
		require.NoError(t, err)
		return v
	}
	assert.Equal(t, "generation-1-of-the-value", get())
	open := set.Scrubber()
	begun, err := open.Append(nil, []byte("abc gener"))
	require.NoError(t, err)

	now.Add(60)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if v, err := set.value(t.Context(), 0); err != nil || v != "generation-2-of-the-value" {
				t.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
	assert.EqualValues(t, 2, fetched.Load())

	// Both are scrubbed, also in streams that were there before.
	p := placeholderOf(t, set, "x")
	assert.Equal(t, p+" "+p, set.ScrubText("generation-1-of-the-value generation-2-of-the-value"))
	rest, err := open.Append(begun, []byte("ation-2-of-the-value."))
	require.NoError(t, err)
	rest, err = open.Close(rest)
	require.NoError(t, err)
	assert.Equal(t, "abc "+p+".", string(rest))

	now.Add(60)
	fails.Store(true)
	_, err = set.value(t.Context(), 0)
	require.ErrorContains(t, err, "secret x: the keyring cannot be read", "a stale value is not used")
	fails.Store(false)
	_, err = set.value(t.Context(), 0)
	require.Error(t, err, "the source is left alone for a moment")
	now.Add(2)
	assert.Equal(t, "generation-3-of-the-value", get())
}

func TestHistoryIsBoundedAndKeepsTheLatest(t *testing.T) {
	s := newSet(t)
	for i := range maxHistory + 8 {
		s.store.remember(0, fmt.Sprintf("generation-%04d-of-the-value", i))
		s.store.remember(0, "current-value-of-the-secret")
	}
	assert.Len(t, s.store.current.Load().values[0], maxHistory)
	for i := range 18 {
		s.store.remember(1, fmt.Sprint(i)+strings.Repeat("x", 4000))
	}
	assert.LessOrEqual(t, size(s.store.current.Load().values[1]), maxHistoryBytes/2)
	assert.NotContains(t, s.ScrubText("current-value-of-the-secret"), "current")
	assert.NotContains(t, s.ScrubText(fmt.Sprintf("generation-%04d-of-the-value", maxHistory+7)), "generation")
}

func TestWaitingForAValueEndsWithTheContext(t *testing.T) {
	s := newSet(t)
	<-s.store.entries[0].turn // somebody fetches
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.value(ctx, 0)
	assert.ErrorIs(t, err, context.Canceled)
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
