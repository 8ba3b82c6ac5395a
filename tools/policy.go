package tools

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/mark3labs/mcp-go/mcp"
)

// Policy tells what sessions may reach. Nothing can be changed through it, and it has no value
// of a secret.
type Policy interface {
	// Explain judges one thing. The kind is one of those of the tool, or empty to be guessed;
	// session may be empty. An error is that the value means nothing.
	Explain(session, kind, value string) (Ruling, error)
	// Overview says what is allowed at all.
	Overview() Overview
}

// Ruling is what would become of one request.
type Ruling struct {
	Kind    string // as it was understood
	Verdict string // allow, deny or ask
	Rule    string
	Reason  string
	Nearest string // the rule that comes closest to allowing it
	Remedy  string
}

// Overview is what is allowed at all.
type Overview struct {
	Rules   []Rule
	Secrets []Secret
	DNS     string // a sentence about lookups
}

// Rule is one rule in words.
type Rule struct {
	Name   string `json:"name" jsonschema:"its name"`
	Action string `json:"action" jsonschema:"allow, deny or ask; ask means that the user is asked each time"`
	What   string `json:"what" jsonschema:"what it is about"`
}

// Secret is what may be told about one.
type Secret struct {
	Name  string   `json:"name" jsonschema:"its name"`
	Hosts []string `json:"hosts" jsonschema:"hosts to which requests get its value in the place of the placeholder"`
	Env   []string `json:"env,omitempty" jsonschema:"environment variables of the machine that hold the placeholder"`
	In    []string `json:"in" jsonschema:"parts of a request in which the placeholder is replaced"`
}

// noPolicy is that of a machine without a network.
type noPolicy struct{}

func (noPolicy) Explain(_, kind, value string) (Ruling, error) {
	return Ruling{Kind: kind, Verdict: "deny", Reason: "the machine has no network", Remedy: "the user has to configure it in gondolin-mcp"}, nil
}

func (noPolicy) Overview() Overview { return Overview{} }

type policyArgs struct {
	Kind    string `json:"kind" enum:"http,ssh,tcp,dns,path,secret" doc:"What value is. Default: guessed from it."`
	Value   string `json:"value" max:"4096" doc:"What to judge: http: [METHOD] URL; ssh: [USER@]HOST[:PORT] COMMAND; tcp: HOST:PORT; dns: a name; path: a path of the machine; secret: NAME, or NAME@HOST. Without it: an overview."`
	Session string `json:"session" max:"128" doc:"Id of the session whose mounts a path is judged by. Default: this connection's own."`
}

// PolicyResult is the structured result of policy.
type PolicyResult struct {
	Kind    string   `json:"kind" jsonschema:"what was judged: http, ssh, tcp, dns, path, secret, or overview"`
	Allowed bool     `json:"allowed" jsonschema:"whether it is allowed without asking anybody; in an overview: whether anything is"`
	Verdict string   `json:"verdict" jsonschema:"allow, deny, or ask: the user is asked when it is tried"`
	Rule    string   `json:"rule,omitempty" jsonschema:"the rule that decides"`
	Reason  string   `json:"reason" jsonschema:"why"`
	Nearest string   `json:"nearest,omitempty" jsonschema:"the rule that comes closest to allowing it"`
	Remedy  string   `json:"remedy,omitempty" jsonschema:"what would help"`
	Rules   []Rule   `json:"rules,omitempty" jsonschema:"overview: the rules in order; the first that matches decides, and nothing else is allowed"`
	Secrets []Secret `json:"secrets,omitempty" jsonschema:"overview: the secrets that can be used, without their values"`
	Noted
}

func (s *Server) addPolicy() {
	add(s, tool[policyArgs]{
		name: "policy", title: "Ask what is allowed",
		doc: `Find out what the machine may reach, before trying or after a refusal: whether a request would be allowed, by which rule, and if not what the nearest allowed thing is.
Without arguments: all rules, and the secrets by name with the variables that hold their placeholders. Only the user can change any of it.`,
		hints:  hints{readOnly: true, idempotent: true},
		output: mcp.WithOutputSchema[PolicyResult](),
		run:    s.policy,
	})
}

func (s *Server) policy(_ context.Context, _ *call, a *policyArgs) (*reply, error) {
	value := strings.TrimSpace(a.Value)
	if value == "" {
		if a.Kind != "" {
			return nil, toolErrorf("give `value` with `kind` %s, or neither for an overview", a.Kind)
		}
		return s.overview(), nil
	}
	session := a.Session
	if session == "" {
		session = s.sessions.id()
	}
	r, err := s.opts.Policy.Explain(session, a.Kind, value)
	if err != nil {
		return nil, toolErrorf("that cannot be judged: %s", short(printable(err.Error()), 500))
	}
	out := &PolicyResult{
		Kind: r.Kind, Allowed: r.Verdict == "allow", Verdict: r.Verdict, Rule: short(printable(r.Rule), 100), Reason: short(printable(r.Reason), 1000),
		Nearest: short(printable(r.Nearest), 100), Remedy: short(printable(r.Remedy), 1000),
	}
	text := map[string]string{"allow": "Allowed", "ask": "The user is asked when it is tried"}[r.Verdict]
	if text == "" {
		text = "Refused"
	}
	text += ": " + out.Reason + "."
	if out.Remedy != "" {
		text += "\nWhat would help: " + out.Remedy + "."
	}
	return &reply{data: out, text: text}, nil
}

func (s *Server) overview() *reply {
	o := s.opts.Policy.Overview()
	allows := slices.ContainsFunc(o.Rules, func(r Rule) bool { return r.Action == "allow" })
	return fit(len(o.Rules)+len(o.Secrets), func(n int) *reply {
		out := &PolicyResult{Kind: "overview", Allowed: allows, Verdict: "deny", Reason: "what no rule allows is refused"}
		if allows {
			out.Verdict = "allow"
		}
		var b strings.Builder
		if len(o.Rules) == 0 {
			b.WriteString("Nothing is allowed: there is no rule, so no host can be reached.\n")
		} else {
			b.WriteString("The first rule that matches decides, and what none allows is refused:\n")
		}
		for _, r := range o.Rules[:min(n, len(o.Rules))] {
			r.Name, r.What = short(printable(r.Name), 100), short(printable(r.What), 400)
			out.Rules = append(out.Rules, r)
			fmt.Fprintf(&b, "  %-5s  %s  (%s)\n", r.Action, r.What, r.Name)
		}
		for _, secret := range o.Secrets[:max(0, min(n-len(o.Rules), len(o.Secrets)))] {
			out.Secrets = append(out.Secrets, secret)
			b.WriteString(secret.line() + "\n")
		}
		if left := len(o.Rules) + len(o.Secrets) - n; left > 0 {
			fmt.Fprintf(&b, "[%d more]\n", left)
		}
		if o.DNS != "" {
			b.WriteString(o.DNS + "\n")
		}
		return &reply{data: out, text: strings.TrimSuffix(b.String(), "\n")}
	})
}

func (s Secret) line() string {
	text := fmt.Sprintf("Secret %s: for %s", s.Name, strings.Join(s.Hosts, ", "))
	if len(s.Env) > 0 {
		text += "; its placeholder is in $" + strings.Join(s.Env, " and $")
	}
	return text + "; it is replaced in " + strings.Join(s.In, ", ")
}

const (
	noNetwork = "It has no network: downloads, package installation from the internet and git over the network fail."
	// rulesTold is how many rules stand in the instructions.
	rulesTold = 8
)

// network tells a model what the machine may reach.
func network(o Overview) []string {
	var allowed []string
	for _, r := range o.Rules {
		switch r.Action {
		case "allow":
			allowed = append(allowed, short(printable(r.What), 200))
		case "ask":
			allowed = append(allowed, short(printable(r.What), 200)+" (the user is asked)")
		}
	}
	if len(allowed) == 0 {
		return []string{noNetwork}
	}
	more := ""
	if n := len(allowed) - rulesTold; n > 0 {
		allowed, more = allowed[:rulesTold], fmt.Sprintf("; and %d more", n)
	}
	lines := []string{
		"Its network reaches only what the user allows: " + strings.Join(allowed, "; ") + more + ". Everything else is refused at once.",
		"The tool policy tells whether and why something is allowed, and what is nearest. TLS is ended outside of the machine, whose trust store knows that.",
	}
	if len(o.Secrets) > 0 {
		var names []string
		for _, s := range o.Secrets {
			names = append(names, s.Name)
			names = append(names, envs(s)...)
		}
		lines = append(lines, "It can use secrets that it does not have ("+short(printable(strings.Join(names, ", ")), 300)+"): the variables hold placeholders; send them as they are to the hosts that the tool policy names.")
	}
	return lines
}

func envs(s Secret) (list []string) {
	for _, v := range s.Env {
		list = append(list, "$"+v)
	}
	return list
}
