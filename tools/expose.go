package tools

import (
	"context"
	"fmt"
	"strings"

	"github.com/mark3labs/mcp-go/mcp"

	"github.com/gondolin-go/gondolin/sandbox"
)

// Exposed is a server of a session that the user can open.
type Exposed struct {
	Port int    `json:"port" jsonschema:"of the machine; 0: several, as /etc/gondolin/listeners says"`
	URL  string `json:"url" jsonschema:"what to open on the user's computer"`
}

type exposeArgs struct {
	Action  string `json:"action" enum:"open,list,close" default:"open" doc:"open gives a URL for a port, list shows all, close ends one."`
	Port    int    `json:"port" min:"0" max:"65535" doc:"Port of the machine where an HTTP server listens (127.0.0.1, ::1 or all addresses). Without it, or 0: the routes that /etc/gondolin/listeners declares, a line each: PREFIX :PORT [strip]."`
	Path    string `json:"path" max:"2048" of:"open" doc:"path of the page, with query if any, such as /docs/?page=2."`
	Session string `json:"session" max:"128" doc:"Id of the session. Default: this connection's own."`
}

// ExposeResult is the structured result of expose.
type ExposeResult struct {
	Action    string    `json:"action" jsonschema:"what was asked"`
	SessionID string    `json:"session,omitempty" jsonschema:"the session"`
	URL       string    `json:"url,omitempty" jsonschema:"open: what to open on the user's computer"`
	Answers   bool      `json:"answers,omitempty" jsonschema:"open: whether something listens on the port now"`
	Exposed   []Exposed `json:"exposed" jsonschema:"what is open after the action"`
	Noted
}

func (s *Server) addExpose() {
	add(s, tool[exposeArgs]{
		name: "expose", title: "Show a server of the sandbox",
		doc: `Give the user a URL, on their own computer, for an HTTP server that runs in the machine: a page to look at, an API to try. HTTP, HTTP/2, WebSockets and event streams work; other protocols do not.
Start the server first (exec with background=true). The URL stays until it is closed or the session ends. Nothing outside of the user's computer can open it.`,
		hints:  hints{idempotent: true},
		output: mcp.WithOutputSchema[ExposeResult](),
		long:   func(a *exposeArgs) bool { return a.Action == "open" },
		run:    s.expose,
	})
}

func (s *Server) expose(ctx context.Context, c *call, a *exposeArgs) (*reply, error) {
	if a.Action == "list" && a.Session == "" && s.sessions.id() == "" {
		return exposeReply(&ExposeResult{Action: a.Action}, ""), nil // and no machine for that
	}
	sess, err := s.session(ctx, c, a.Session)
	if err != nil {
		return nil, err
	}
	out := &ExposeResult{Action: a.Action, SessionID: sess.ID()}
	text := ""
	switch a.Action {
	case "open":
		if text, err = open(ctx, sess, a, out); err != nil {
			return nil, err
		}
	case "close":
		found, err := sess.Unexpose(a.Port)
		if err != nil {
			return nil, fmt.Errorf("closing it: %w", err)
		}
		if text = "It was not open."; found {
			text = "Closed."
		}
	}
	out.Exposed = sess.Exposed()
	return exposeReply(out, text), nil
}

// open exposes a port and says what became of it.
func open(ctx context.Context, sess Session, a *exposeArgs, out *ExposeResult) (string, error) {
	if a.Path != "" && !strings.HasPrefix(a.Path, "/") || strings.ContainsFunc(a.Path, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return "", toolErrorf("nothing was done: `path` begins with a slash and has neither spaces nor control characters; write %%20 for a space")
	}
	e, answers, err := sess.Expose(ctx, a.Port)
	if err != nil {
		return "", err
	}
	out.URL, out.Answers = strings.TrimSuffix(e.URL, "/")+"/"+strings.TrimPrefix(a.Path, "/"), answers
	text := out.URL
	switch {
	case a.Port == 0:
		text += "\nIt leads where " + sandbox.ListenersFile + " says when a page is loaded."
	case !answers:
		text += fmt.Sprintf("\nNothing listens on port %d yet: start the server; the URL works as soon as it does.", a.Port)
	}
	return text, nil
}

func exposeReply(out *ExposeResult, text string) *reply {
	if out.Exposed == nil {
		out.Exposed = []Exposed{}
	}
	var b strings.Builder
	if text != "" {
		b.WriteString(text + "\n")
	}
	for _, e := range out.Exposed {
		if e.Port == 0 {
			fmt.Fprintf(&b, "routes     %s\n", e.URL)
			continue
		}
		fmt.Fprintf(&b, "port %-5d %s\n", e.Port, e.URL)
	}
	fmt.Fprintf(&b, "[%s open]", counted(len(out.Exposed), "URL"))
	return &reply{data: out, text: b.String()}
}
