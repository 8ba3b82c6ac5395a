package tools

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fakePolicy allows what is about good.test.
type fakePolicy struct {
	overview Overview
	asked    *[]string
}

func (p fakePolicy) Explain(session, kind, value string) (Ruling, error) {
	if p.asked != nil {
		*p.asked = append(*p.asked, session+"|"+kind+"|"+value)
	}
	switch {
	case strings.Contains(value, "good.test"):
		return Ruling{Kind: "http", Verdict: "allow", Rule: "good", Reason: "the rule \"good\" allows it"}, nil
	case strings.Contains(value, "ask.test"):
		return Ruling{Kind: "http", Verdict: "ask", Rule: "careful", Reason: "a human decides"}, nil
	case strings.Contains(value, " "):
		return Ruling{}, errors.New("no URL")
	}
	return Ruling{Kind: "http", Verdict: "deny", Nearest: "good", Reason: "no rule allows it", Remedy: "use good.test"}, nil
}

func (p fakePolicy) Overview() Overview { return p.overview }

var somePolicy = Overview{
	Rules:   []Rule{{Name: "good", Action: "allow", What: "https to good.test"}, {Name: "careful", Action: "ask", What: "https to ask.test"}},
	Secrets: []Secret{{Name: "token", Hosts: []string{"good.test"}, Env: []string{"TOKEN"}, In: []string{"header"}}},
	DNS:     "Lookups stay here.",
}

func TestThePolicyToolSaysWhetherWhyAndWhatIsNearest(t *testing.T) {
	var asked []string
	c := dial(t, Options{Policy: fakePolicy{asked: &asked}})
	r := c.call("policy", `{"value":" https://good.test/x ","kind":"http"}`)
	assert.False(t, r.IsError)
	assert.Equal(t, PolicyResult{Kind: "http", Allowed: true, Verdict: "allow", Rule: "good", Reason: `the rule "good" allows it`}, decodeAs[PolicyResult](t, r))
	assert.Equal(t, `Allowed: the rule "good" allows it.`, r.text())

	r = c.call("policy", `{"value":"https://bad.test"}`)
	assert.False(t, r.IsError, "a refusal is the answer")
	got := decodeAs[PolicyResult](t, r)
	assert.False(t, got.Allowed)
	assert.Equal(t, "good", got.Nearest)
	assert.Equal(t, "Refused: no rule allows it.\nWhat would help: use good.test.", r.text())

	got = decodeAs[PolicyResult](t, c.call("policy", `{"value":"https://ask.test"}`))
	assert.False(t, got.Allowed, "not without asking")
	assert.Equal(t, "ask", got.Verdict)
	assert.Equal(t, []string{"|http|https://good.test/x", "||https://bad.test", "||https://ask.test"}, asked)

	assert.Contains(t, c.call("policy", `{"value":"a b"}`).text(), "that cannot be judged: no URL")
	assert.Contains(t, c.call("policy", `{"kind":"ssh"}`).text(), "give `value` with `kind` ssh")
	assert.Empty(t, c.boxes.made, "no machine is made to answer")

	c.call("exec", `{"command":"echo x"}`)
	c.call("policy", `{"value":"/workspace/.env","kind":"path"}`)
	assert.Equal(t, "vm-1|path|/workspace/.env", asked[len(asked)-1], "a path is judged in the default session, once there is one")
}

func TestThePolicyToolGivesAnOverviewWithoutValues(t *testing.T) {
	c := dial(t, Options{Policy: fakePolicy{overview: somePolicy}})
	r := c.call("policy", `{}`)
	got := decodeAs[PolicyResult](t, r)
	assert.True(t, got.Allowed)
	assert.Equal(t, somePolicy.Rules, got.Rules)
	assert.Equal(t, somePolicy.Secrets, got.Secrets)
	for _, want := range []string{"allow  https to good.test  (good)", "ask    https to ask.test", "Secret token: for good.test; its placeholder is in $TOKEN; it is replaced in header", "Lookups stay here."} {
		assert.Contains(t, r.text(), want)
	}
}

func TestWithoutAPolicyNothingIsAllowed(t *testing.T) {
	c := dial(t, Options{})
	r := c.call("policy", `{}`)
	assert.Contains(t, r.text(), "Nothing is allowed")
	assert.False(t, decodeAs[PolicyResult](t, r).Allowed)
	r = c.call("policy", `{"value":"https://good.test"}`)
	assert.Contains(t, r.text(), "Refused: the machine has no network.")
}

func TestAnOverviewOfManyRulesIsBounded(t *testing.T) {
	var o Overview
	for i := range 2000 {
		o.Rules = append(o.Rules, Rule{Name: fmt.Sprintf("rule %d", i), Action: "allow", What: strings.Repeat("host.test ", 50)})
	}
	c := dial(t, Options{Policy: fakePolicy{overview: o}})
	r := c.call("policy", `{}`)
	require.False(t, r.IsError)
	assert.Less(t, len(r.text())+len(r.Structured), 50000)
	assert.Contains(t, r.text(), "more]")
	assert.Less(t, len(instructions(Options{Policy: fakePolicy{overview: o}}.withDefaults())), 5000)
}

func TestTheInstructionsSayWhatTheNetworkAllows(t *testing.T) {
	text := instructions(Options{}.withDefaults())
	assert.Contains(t, text, noNetwork)
	text = instructions(Options{Policy: fakePolicy{overview: somePolicy}}.withDefaults())
	assert.NotContains(t, text, noNetwork)
	assert.Contains(t, text, "Its network reaches only what the user allows: https to good.test; https to ask.test (the user is asked).")
	assert.Contains(t, text, "secrets that it does not have (token, $TOKEN)")
	assert.LessOrEqual(t, strings.Count(text, "\n"), 13)
}
