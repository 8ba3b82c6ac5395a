package tools

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
)

// hints are the four annotations of a tool. mcp-go takes a missing one for the
// worst case, so all are always set.
type hints struct {
	readOnly, destructive, idempotent, openWorld bool
}

// tool is one tool whose arguments are an A.
type tool[A any] struct {
	name, title, doc string
	hints            hints
	output           mcp.ToolOption     // the schema of its structured result
	adjust           func(properties)   // puts configured bounds into the schema
	long             func(args *A) bool // whether the call may take its time; nil: no
	run              func(ctx context.Context, c *call, args *A) (*reply, error)
}

// call is one call of a tool.
type call struct {
	request  mcp.CallToolRequest
	given    map[string]any // the arguments as they came, without defaults
	progress *progress
	began    time.Time
	sess     Session // once the tool has asked for it
	notes    []string
	takeNote func() // called when the notes reach the client
}

// toolError is an error whose text is meant for the model as it stands.
type toolError string

func (e toolError) Error() string { return string(e) }

func toolErrorf(format string, args ...any) error { return toolError(fmt.Sprintf(format, args...)) }

// add registers a tool.
func add[A any](s *Server, t tool[A]) {
	ps := propertiesOf[A]()
	if t.adjust != nil {
		t.adjust(ps)
	}
	def := mcp.NewTool(t.name,
		mcp.WithDescription(t.doc),
		mcp.WithToolTitle(t.title),
		mcp.WithToolAnnotation(mcp.ToolAnnotation{
			Title:           t.title,
			ReadOnlyHint:    &t.hints.readOnly,
			DestructiveHint: &t.hints.destructive,
			IdempotentHint:  &t.hints.idempotent,
			OpenWorldHint:   &t.hints.openWorld,
		}),
		mcp.WithRawInputSchema(ps.schema()),
		t.output,
	)
	def.InputSchema.Type = ""
	withoutUnions(def.OutputSchema.Properties)
	s.mcp.AddTool(def, func(ctx context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return serve(ctx, s, &t, ps, r), nil
	})
}

// serve answers one call: every way out of it is a result.
func serve[A any](ctx context.Context, s *Server, t *tool[A], ps properties, r mcp.CallToolRequest) *mcp.CallToolResult {
	ctx, cancel := s.requests.attach(ctx, r.Header.Get(requestHeader))
	defer cancel()
	if ctx.Err() != nil {
		return failure("cancelled before it began").result(nil)
	}
	raw := r.Params.RawArguments
	if raw == nil && r.Params.Arguments != nil {
		raw, _ = json.Marshal(r.Params.Arguments)
	}
	args := new(A)
	given, problems := ps.decode(raw, args)
	if len(problems) > 0 {
		return failure(fmt.Sprintf("%s was not run, its arguments are wrong:\n- %s", t.name, strings.Join(problems, "\n- "))).result(nil)
	}
	leave, err := s.enter(t.long != nil && t.long(args))
	if err != nil {
		return failure(err.Error()).result(nil)
	}
	defer leave()

	if s.opts.Roots {
		if ask := s.roots.question(ctx, r); ask != nil {
			return ask
		}
	}
	if ask := s.questions.question(ctx, r); ask != nil {
		return ask
	}
	c := &call{request: r, given: given, began: time.Now(), progress: s.startProgress(ctx, r.Params.Meta)}
	out := s.guarded(t.name, func() (*reply, error) { return t.run(ctx, c, args) }, func(err error) string {
		return s.explain(ctx, c, t.name, err)
	})
	c.progress.stop()
	if out.raw == nil && out.size() > resultChars-notesChars {
		// No tool should get here; a model is better off with this than with a flood.
		s.log.Error("result too large", "tool", t.name, "size", out.size())
		out = failure("the result was too large to be shown; ask for less")
	}
	if c.takeNote != nil && ctx.Err() == nil {
		c.takeNote()
	}
	return out.result(c.notes)
}

// guarded runs a tool and turns errors and panics into replies.
func (s *Server) guarded(name string, run func() (*reply, error), explain func(error) string) (out *reply) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic in a tool", "tool", name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			out = failure(name + " failed by a mistake in this server, which is in its log; other calls are not affected")
		}
	}()
	out, err := run()
	if err != nil {
		return failure(explain(err))
	}
	return out
}

// enter takes a place for a call or says that there is none. It never waits.
func (s *Server) enter(long bool) (leave func(), err error) {
	places, kind := s.quick, "short calls"
	if long {
		places, kind = s.long, "long calls (commands, waits, new sessions)"
	}
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	default:
		return nil, toolErrorf("too many calls under way: %d %s run already, which is the most. "+
			"Wait for some to end, or start commands with background=true and follow them with job_output.", cap(places), kind)
	}
}

// addTools registers all tools.
func (s *Server) addTools() {
	s.addExec()
	s.addJobs()
	s.addReadFile()
	s.addWriteFile()
	s.addEditFile()
	s.addSearch()
	s.addSession()
	s.addPolicy()
	if s.opts.Expose {
		s.addExpose()
	}
}

// withoutUnions turns "null or T" into T throughout a schema: lists are never
// null here, and some clients stumble over a type that is a list.
func withoutUnions(v any) {
	switch v := v.(type) {
	case map[string]any:
		if types, ok := v["type"].([]any); ok {
			for _, t := range types {
				if t != "null" {
					v["type"] = t
				}
			}
		}
		for _, item := range v {
			withoutUnions(item)
		}
	case []any:
		for _, item := range v {
			withoutUnions(item)
		}
	}
}

// asTool makes errors.As shorter.
func asTool(err error) (toolError, bool) {
	var t toolError
	ok := errors.As(err, &t)
	return t, ok
}
