package tools

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"
)

// Question is something in a session that a human has to allow.
type Question struct {
	Session string // its id
	Rule    string // the rule that wants to know
	What    string // a sentence without a full stop that says what is to be allowed
}

const (
	// askWait is how long Ask waits for a human.
	askWait = 2 * time.Minute
	// noFor is how long the same question gets the same no, so that a program that tries again and
	// again wears nobody down.
	noFor = 5 * time.Minute
	// onceFor is how long a yes for once that came too late still stands.
	onceFor = 5 * time.Minute
	// maxQuestions bounds those that are open.
	maxQuestions = 8
	// maxAnswers bounds those that are remembered.
	maxAnswers = 1000
)

// What a human can choose.
const (
	choiceOnce    = "once"    // this one time
	choiceSession = "session" // the same again in this session
	choiceRule    = "rule"    // all that the rule asks about in this session
	choiceNo      = "no"
)

// questions are put to the human through the client, by elicitation.
//
// A client of the initialize era is asked at any time, also while a call is under way, and
// Ask waits. A client of the stateless era can only be asked by a call's result: Ask says no
// at once, the next call of a tool begins with the question, and what was refused has to
// be tried again. A client that cannot ask is a no. Answers are for one session and forgotten
// with the connection.
type questions struct {
	mu      sync.Mutex
	client  server.ClientSession // of the initialize era, if it can ask
	modern  bool                 // the latest call was of the stateless era and its client can ask
	count   int
	open    map[Question]*question
	answers map[Question]answer // one without What is for the whole rule
}

// question is one that the human has not answered.
type question struct {
	Question
	id      string        // of the input request
	put     time.Time     // when it was put to a client of the stateless era
	waiting int           // calls of Ask
	done    chan struct{} // closed when it is answered or has failed
	yes     bool          // set before done is closed, as is the next
	err     error         // why there is no answer
}

type answer struct {
	yes   bool
	once  bool
	until time.Time // zero: for ever
}

var errCannotAsk = errors.New("this client cannot ask its user")

// Ask puts a question to the human who uses the client and waits for the answer, at most two
// minutes. An error is that there is none, which is to be taken for a no.
func (s *Server) Ask(ctx context.Context, q Question) (bool, error) {
	q.What, q.Rule = short(printable(q.What), 600), short(printable(q.Rule), 100)
	a := &s.questions
	a.mu.Lock()
	if yes, known := a.recall(q); known {
		a.mu.Unlock()
		return yes, nil
	}
	p := a.open[q]
	if p == nil {
		var err error
		if p, err = s.pose(q); err != nil {
			a.mu.Unlock()
			return false, err
		}
	}
	if a.modern {
		a.mu.Unlock()
		return false, errors.New("the user is asked at the next call of a tool; try again after that")
	}
	p.waiting++
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		p.waiting--
	}()

	timer := time.NewTimer(s.askWait)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-ctx.Done():
		return false, fmt.Errorf("waiting for the user's answer: %w", ctx.Err())
	case <-timer.C:
		return false, fmt.Errorf("the user did not answer within %s", span(s.askWait))
	}
	return p.yes, p.err
}

// recall finds an answer that was given. The lock is held.
func (a *questions) recall(q Question) (yes, known bool) {
	for _, key := range []Question{{Session: q.Session, Rule: q.Rule}, q} {
		got, ok := a.answers[key]
		switch {
		case !ok:
		case !got.until.IsZero() && time.Now().After(got.until):
			delete(a.answers, key)
		default:
			if got.once {
				delete(a.answers, key)
			}
			return got.yes, true
		}
	}
	return false, false
}

// pose opens a question. The lock is held.
func (s *Server) pose(q Question) (*question, error) {
	a := &s.questions
	switch {
	case !a.modern && a.client == nil:
		return nil, errCannotAsk
	case len(a.open) >= maxQuestions:
		return nil, fmt.Errorf("%d questions to the user are open, which is the most", maxQuestions)
	}
	a.count++
	p := &question{Question: q, id: fmt.Sprintf("ask-%d", a.count), done: make(chan struct{})}
	if !a.modern {
		client := a.client
		// No deadline: see askRoots. An answer that comes late still counts.
		err := s.begin(func(life context.Context) {
			got, err := s.mcp.RequestElicitation(s.mcp.WithContext(life, client), mcp.ElicitationRequest{Params: p.form()})
			if err != nil {
				err = fmt.Errorf("the client did not ask its user: %w", err)
			}
			a.settle(p, got, err)
		})
		if err != nil {
			return nil, err
		}
	}
	a.open[q] = p
	return p, nil
}

// form is the question as the human sees it.
func (p *question) form() mcp.ElicitationParams {
	return mcp.ElicitationParams{
		Message: fmt.Sprintf("The sandbox %s asks: %s. Allow it?", p.Session, p.What),
		RequestedSchema: map[string]any{
			"type": "object", "required": []string{"decision"},
			"properties": map[string]any{"decision": map[string]any{
				"type": "string", "title": "Decision",
				"description": "Whether this may happen. Everything but a choice from the list is a no.",
				"enum":        []string{choiceNo, choiceOnce, choiceSession, choiceRule},
				"enumNames": []string{"No", "Yes, this one time", "Yes, and the same again in this session",
					fmt.Sprintf("Yes, and all that the rule %q asks about in this session", p.Rule)},
			}},
		},
	}
}

// settle takes the answer of a question.
func (a *questions) settle(p *question, got *mcp.ElicitationResult, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open[p.Question] != p {
		return // it has been answered
	}
	delete(a.open, p.Question)
	p.err = err
	if err == nil {
		if len(a.answers) >= maxAnswers {
			clear(a.answers) // the human is asked again
		}
		a.keep(p, choice(got))
	}
	close(p.done)
}

// keep remembers an answer. The lock is held.
func (a *questions) keep(p *question, choice string) {
	q := p.Question
	p.yes = choice == choiceRule || choice == choiceSession || choice == choiceOnce
	switch choice {
	case choiceRule:
		a.answers[Question{Session: q.Session, Rule: q.Rule}] = answer{yes: true}
	case choiceSession:
		a.answers[q] = answer{yes: true}
	case choiceOnce:
		if p.waiting == 0 { // else this was the one time
			a.answers[q] = answer{yes: true, once: true, until: time.Now().Add(onceFor)}
		}
	default:
		a.answers[q] = answer{until: time.Now().Add(noFor)}
	}
}

// choice is what a human chose.
func choice(got *mcp.ElicitationResult) string {
	if got == nil || got.Action != mcp.ElicitationResponseActionAccept {
		return choiceNo
	}
	content, _ := got.Content.(map[string]any)
	decision, _ := content["decision"].(string)
	return decision
}

// hear notes whether the client of a call can ask its user.
func (a *questions) hear(ctx context.Context) {
	info := server.RequestProtocolInfoFromContext(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	if info != nil && info.Modern {
		a.client = nil
		a.modern = info.ClientCapabilities != nil && asksByForm(info.ClientCapabilities.Elicitation)
		return
	}
	a.modern = false
	session := server.ClientSessionFromContext(ctx)
	if informed, ok := session.(server.SessionWithClientInfo); ok && asksByForm(informed.GetClientCapabilities().Elicitation) {
		a.client = session
	}
}

// asksByForm says whether a client has the kind of elicitation that is needed. One
// that names no kind has it.
func asksByForm(c *mcp.ElicitationCapability) bool {
	return c != nil && (c.Form != nil || c.URL == nil)
}

// question takes the answers that a call brings, and is the result that asks a client of the
// stateless era what is open, or nil. A question is put once.
func (a *questions) question(ctx context.Context, r mcp.CallToolRequest) *mcp.CallToolResult {
	a.hear(ctx)
	a.mu.Lock()
	var answered, toPut []*question
	for _, p := range a.open {
		_, here := r.Params.InputResponses[p.id]
		switch {
		case here && !p.put.IsZero():
			answered = append(answered, p)
		case a.modern && p.put.IsZero():
			p.put = time.Now()
			toPut = append(toPut, p)
		case a.modern && time.Since(p.put) > askWait: // the client ignored it
			delete(a.open, p.Question)
		}
	}
	a.mu.Unlock()
	for _, p := range answered {
		a.settle(p, server.ElicitationResponse(r.Params.InputResponses, p.id), nil)
	}
	if len(toPut) == 0 {
		return nil
	}
	b := server.NewInputRequestBuilder("ask")
	for _, p := range toPut {
		b.Elicit(p.id, p.form())
	}
	return b.ToolResult()
}

// reset forgets everything, at the end of a connection.
func (a *questions) reset() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.open {
		p.err = errNotServing
		close(p.done)
	}
	a.client, a.modern = nil, false
	a.open, a.answers = map[Question]*question{}, map[Question]answer{}
}
