package tools

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/mcp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

var push = Question{Session: "vm-1", Rule: "push", What: "POST https://git.test/x"}

// dialAsking is a raw client of the initialize era whose user can be asked. It has made a call.
func dialAsking(t *testing.T, change ...func(*Server)) *connection {
	t.Helper()
	c := dialRaw(t, Options{}, change...)
	c.send(`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"elicitation":{}},"clientInfo":{"name":"raw","version":"1"}}}`)
	c.answer("1")
	c.send(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	c.call("session", `{"action":"list"}`)
	return c
}

type answered struct {
	yes bool
	err error
}

func (c *connection) ask(q Question) <-chan answered {
	ch := make(chan answered, 1)
	go func() {
		yes, err := c.s.Ask(c.t.Context(), q)
		ch <- answered{yes, err}
	}()
	return ch
}

// decide answers the next question.
func (c *connection) decide(decision string) {
	c.t.Helper()
	m := c.next()
	require.Equal(c.t, "elicitation/create", m.Method)
	assert.Contains(c.t, string(m.Params), "The sandbox vm-1 asks: ")
	if decision == "decline" {
		c.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":{"action":"decline"}}`, m.ID))
		return
	}
	c.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":{"action":"accept","content":{"decision":%q}}}`, m.ID, decision))
}

func TestTheUsersAnswerHoldsAsLongAsTheUserSaid(t *testing.T) {
	c := dialAsking(t)
	other, elsewhere, sameRule := push, push, push
	other.Rule, elsewhere.Session, sameRule.What = "other", "vm-2", "POST https://git.test/y"
	for range 2 { // once is once
		got := c.ask(push)
		c.decide("once")
		assert.Equal(t, answered{true, nil}, wait(t, got, "the answer"))
	}
	got := c.ask(push)
	c.decide("session")
	assert.Equal(t, answered{true, nil}, wait(t, got, "the answer"))
	assert.Equal(t, answered{true, nil}, wait(t, c.ask(push), "the answer"), "without asking again")

	got = c.ask(sameRule)
	c.decide("rule")
	assert.Equal(t, answered{true, nil}, wait(t, got, "the answer"))
	sameRule.What = "POST https://git.test/z"
	assert.Equal(t, answered{true, nil}, wait(t, c.ask(sameRule), "the answer"))

	got = c.ask(other)
	c.decide("no")
	assert.Equal(t, answered{false, nil}, wait(t, got, "the answer"))
	assert.Equal(t, answered{false, nil}, wait(t, c.ask(other), "the answer"), "a no is not worn down")

	c.begin(5, "session", `{"action":"list"}`)
	c.end(5)
	assert.Empty(t, c.later, "nothing else was asked")
}

func TestEverythingButAChoiceIsANo(t *testing.T) {
	for _, decision := range []string{"decline", "", "yes", "ONCE"} {
		t.Run(decision, func(t *testing.T) {
			c := dialAsking(t)
			got := c.ask(push)
			c.decide(decision)
			assert.Equal(t, answered{false, nil}, wait(t, got, "the answer"))
		})
	}
}

func TestTheSameQuestionIsPutOnceForAllWhoWait(t *testing.T) {
	c := dialAsking(t)
	all := make([]<-chan answered, 5)
	for i := range all {
		all[i] = c.ask(push)
	}
	require.Eventually(t, func() bool {
		c.s.questions.mu.Lock()
		defer c.s.questions.mu.Unlock()
		p := c.s.questions.open[push]
		return p != nil && p.waiting == len(all)
	}, soon, time.Millisecond)
	c.decide("once")
	for _, got := range all {
		assert.Equal(t, answered{true, nil}, wait(t, got, "the answer"))
	}
}

func TestAClientThatCannotAskIsARefusalAtOnce(t *testing.T) {
	c := dial(t, Options{})
	c.call("session", `{"action":"list"}`)
	yes, err := c.s.Ask(t.Context(), push)
	assert.False(t, yes)
	assert.ErrorContains(t, err, "this client cannot ask its user")
}

func TestWaitingForTheUserIsBoundedAndALateYesStillCounts(t *testing.T) {
	c := dialAsking(t, func(s *Server) { s.askWait = 20 * time.Millisecond })
	got := wait(t, c.ask(push), "the end of the wait")
	assert.False(t, got.yes)
	assert.ErrorContains(t, got.err, "the user did not answer within 20ms")
	c.decide("once")
	require.Eventually(t, func() bool {
		c.s.questions.mu.Lock()
		defer c.s.questions.mu.Unlock()
		return len(c.s.questions.open) == 0
	}, soon, time.Millisecond)
	assert.Equal(t, answered{true, nil}, wait(t, c.ask(push), "the answer"))

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.s.Ask(ctx, push)
	assert.ErrorIs(t, err, context.Canceled)
}

func TestQuestionsThatAreOpenAreBounded(t *testing.T) {
	c := dialAsking(t, func(s *Server) { s.askWait = time.Millisecond })
	for i := range maxQuestions {
		q := push
		q.What = fmt.Sprint(i)
		assert.ErrorContains(t, wait(t, c.ask(q), "the end of the wait").err, "did not answer")
	}
	assert.ErrorContains(t, wait(t, c.ask(push), "a refusal").err, "questions to the user are open")
}

func TestTheEndOfTheConnectionEndsTheWait(t *testing.T) {
	c := dialAsking(t)
	got := c.ask(push)
	assert.Equal(t, "elicitation/create", c.next().Method)
	require.NoError(t, c.in.Close())
	assert.Error(t, wait(t, got, "the end of the wait").err)
}

// person answers what a library's client asks.
type person struct{ heard chan string }

func (p person) Elicit(_ context.Context, r mcp.ElicitationRequest) (*mcp.ElicitationResult, error) {
	p.heard <- r.Params.Message
	return &mcp.ElicitationResult{ElicitationResponse: mcp.ElicitationResponse{
		Action: mcp.ElicitationResponseActionAccept, Content: map[string]any{"decision": "session"},
	}}, nil
}

func TestAClientOfTheStatelessEraIsAskedAtItsNextCall(t *testing.T) {
	var s *Server
	boxes := newFakeBoxes()
	asked := make(chan answered, 10)
	boxes.run = func(ctx context.Context, _ sandbox.Command) (sandbox.Exit, error) {
		yes, err := s.Ask(ctx, push)
		asked <- answered{yes, err}
		return sandbox.Exit{}, nil
	}
	p := person{heard: make(chan string, 10)}
	for _, version := range []string{mcp.ProtocolVersion20251125, mcp.ProtocolVersion20260728} {
		t.Run(version, func(t *testing.T) {
			cl := libraryWith(t, Options{Sandboxes: boxes}, version, func(made *Server) { s = made }, client.WithElicitationHandler(p))
			callLibrary(t, cl, "exec", map[string]any{"command": "push"})
			got := wait(t, asked, "the command")
			if version == mcp.ProtocolVersion20251125 {
				assert.Equal(t, answered{true, nil}, got)
				assert.Contains(t, wait(t, p.heard, "the question"), push.What)
				return
			}
			assert.ErrorContains(t, got.err, "asked at the next call")
			callLibrary(t, cl, "exec", map[string]any{"command": "push"})
			assert.Contains(t, wait(t, p.heard, "the question"), push.What)
			assert.Equal(t, answered{true, nil}, wait(t, asked, "the command"))
			assert.Empty(t, asked, "the call ran once")
		})
	}
}
