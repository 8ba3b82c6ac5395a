package main

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/netguard/policy"
	"github.com/gondolin-go/gondolin/netguard/secret"
	"github.com/gondolin-go/gondolin/tools"
	"github.com/gondolin-go/gondolin/vfs"
)

// policyView tells what sessions may reach, for the tool and the command line.
type policyView struct{ *sandboxes }

var _ tools.Policy = policyView{}

// Explain implements tools.Policy.
func (v policyView) Explain(session, kind, value string) (tools.Ruling, error) {
	if kind == "" && strings.HasPrefix(value, "/") {
		kind = "path"
	}
	switch kind {
	case "path":
		return v.explainPath(session, value)
	case "secret":
		return v.explainSecret(value)
	}
	r, err := policy.ParseRequest(kind, value)
	if err != nil {
		return tools.Ruling{}, err
	}
	d := v.policies.current().Decide(r)
	ruling := tools.Ruling{Kind: kindOf(r.Protocol), Verdict: d.Verdict.String(), Rule: d.Rule, Reason: d.Reason, Nearest: d.Nearest, Remedy: d.Remedy}
	if r.Protocol == policy.TCP && d.Verdict != policy.Deny && !v.maps(r) {
		ruling.Verdict = policy.Deny.String()
		ruling.Reason += ", but no map leads anywhere from there"
		ruling.Remedy = "the operator can add one to network.maps"
	}
	return ruling, nil
}

func kindOf(p policy.Protocol) string {
	switch p {
	case policy.SSH, policy.TCP, policy.DNS:
		return string(p)
	}
	return "http"
}

// maps says whether a TCP connection is mapped.
func (v policyView) maps(r policy.Request) bool {
	asked, err := policy.ParseHost(r.Host)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(v.config.Network.Maps, func(m configs.Map) bool {
		host, port, err := m.Split()
		if err != nil || port != r.Port {
			return false
		}
		mapped, err := policy.ParseHost(host)
		return err == nil && mapped.String() == asked.String()
	})
}

// explainSecret judges NAME or NAME@HOST.
func (v policyView) explainSecret(value string) (tools.Ruling, error) {
	name, host, _ := strings.Cut(value, "@")
	r := tools.Ruling{Kind: "secret", Verdict: policy.Deny.String()}
	var names []string
	for _, s := range v.config.SecretSpecs() {
		if names = append(names, s.Name); s.Name != name {
			continue
		}
		told := describeSecret(s)
		r.Reason = fmt.Sprintf("requests to %s get the value of the secret %s", strings.Join(s.Hosts, ", "), name)
		if len(told.Env) > 0 {
			r.Reason += " in the place of what is in $" + strings.Join(told.Env, ", $")
		}
		if host == "" || slices.ContainsFunc(s.Hosts, func(h string) bool { return boundTo(h, host) }) {
			r.Verdict = policy.Allow.String()
			return r, nil
		}
		r.Reason += fmt.Sprintf(", and %s is none of them", shortened(host, 100))
		r.Remedy = "send the placeholder to those hosts only; the operator can add others to hosts of the secret"
		return r, nil
	}
	r.Reason = "there is no secret of that name"
	r.Remedy = "the operator can add one to secrets"
	if len(names) > 0 {
		r.Reason += "; there are " + strings.Join(names, ", ")
	}
	return r, nil
}

// boundTo says whether a binding of a secret (a name, *.name, perhaps with a port) is about
// a host. It is for explanations; package secret decides.
func boundTo(binding, host string) bool {
	parsed, err := policy.ParseHost(strings.ToLower(host))
	if err != nil {
		return false
	}
	if i := strings.LastIndexByte(binding, ':'); i > 0 && strings.Count(binding, ":") == 1 {
		binding = binding[:i]
	}
	if suffix, wild := strings.CutPrefix(binding, "*"); wild {
		return strings.HasSuffix(parsed.String(), strings.ToLower(suffix))
	}
	bound, err := policy.ParseHost(binding)
	return err == nil && bound.String() == parsed.String()
}

// explainPath judges a path of the machine by the mount that it lies in.
func (v policyView) explainPath(session, name string) (tools.Ruling, error) {
	if !strings.HasPrefix(name, "/") {
		return tools.Ruling{}, fmt.Errorf("%q is not absolute", shortened(name, 100))
	}
	name = path.Clean(name)
	r := tools.Ruling{Kind: "path", Verdict: policy.Allow.String(), Reason: "it is the machine's own: everything is allowed, and it is gone with the machine"}
	m, found := v.mountOf(session, name)
	if !found {
		return r, nil
	}
	rest := strings.TrimPrefix(strings.TrimPrefix(name, m.Path), "/")
	match := func(rules []vfs.Rule) (string, bool) {
		compiled, err := vfs.NewRules(rules...)
		if err != nil {
			return "", false
		}
		rule, ok := compiled.Match(rest)
		return firstOf(rule.Name, rule.Pattern), ok
	}
	if rule, hidden := match(m.HideRules()); hidden {
		r.Verdict, r.Rule, r.Reason = policy.Deny.String(), rule, fmt.Sprintf("in the mount %s it is hidden", m.Path)
		r.Remedy = "ask the user for what is needed of it, or to change hide of this mount"
		return r, nil
	}
	if m.Mode == configs.ModeReadOnly {
		r.Verdict, r.Reason = policy.Deny.String(), fmt.Sprintf("the mount %s can be read and not written", m.Path)
		r.Remedy = "write somewhere else; the user can mount it with mode rw"
		return r, nil
	}
	if rule, protected := match(append(v.ownRules(m.Source), m.ProtectRules()...)); protected && m.Provider != configs.ProviderMemory {
		r.Verdict, r.Rule, r.Reason = policy.Deny.String(), rule, fmt.Sprintf("in the mount %s it can be read and not changed", m.Path)
		r.Remedy = "show the user what should be in it, or ask them to change protect of this mount"
		return r, nil
	}
	r.Reason = fmt.Sprintf("in the mount %s it can be read and written", m.Path)
	return r, nil
}

// mountOf is the innermost mount of a session that a path lies in. Without a session, the
// client's roots are not known.
func (v policyView) mountOf(session, name string) (best planned, found bool) {
	list := v.plan(nil)
	v.mu.Lock()
	if s := v.open[session]; s != nil {
		list = s.plan
	}
	v.mu.Unlock()
	for _, m := range list {
		if within(name, m.Path) && len(m.Path) > len(best.Path) {
			best, found = m, true
		}
	}
	return best, found
}

// Overview implements tools.Policy.
func (v policyView) Overview() tools.Overview {
	o := tools.Overview{DNS: map[string]string{
		configs.DNSSynthetic: "Names that are allowed resolve to addresses that mean something in this machine only.",
		configs.DNSTrusted:   "Names that are allowed resolve to their real addresses.",
		configs.DNSOpen:      "Names that are allowed resolve to their real addresses, and their other records can be looked up.",
	}[v.config.Network.DNS]}
	for _, r := range v.policies.current().Rules() {
		o.Rules = append(o.Rules, tools.Rule{Name: r.Name, Action: string(r.Action), What: describeRule(r)})
	}
	for _, s := range v.config.SecretSpecs() {
		o.Secrets = append(o.Secrets, describeSecret(s))
	}
	return o
}

func describeSecret(s secret.Spec) tools.Secret {
	in := []string{string(secret.InHeader)}
	for _, p := range s.In {
		if p != secret.InHeader {
			in = append(in, string(p))
		}
	}
	return tools.Secret{Name: s.Name, Hosts: s.Hosts, Env: s.GuestEnv, In: in}
}

// describeRule is what a rule is about.
func describeRule(r policy.Rule) string {
	text := joined(r.Protocols) + " to " + joined(r.Hosts)
	if len(r.Ports) > 0 {
		text += " port " + joined(r.Ports)
	}
	for _, part := range []struct {
		name  string
		words []string
	}{{"methods", r.Methods}, {"paths", r.Paths}} {
		if len(part.words) > 0 {
			text += "; " + part.name + " " + joined(part.words)
		}
	}
	if s := r.SSH; s != nil {
		if len(s.Git) > 0 {
			text += "; " + joined(s.Git) + " on " + joined(s.Repositories)
		}
		if len(s.Commands) > 0 {
			text += "; commands " + joined(s.Commands)
		}
		if s.Shell {
			text += "; shells"
		}
		if len(s.Subsystems) > 0 {
			text += "; " + joined(s.Subsystems)
		}
		if len(s.Forwards) > 0 {
			text += "; forwards to " + joined(s.Forwards)
		}
	}
	if r.When != "" {
		text += "; when " + r.When
	}
	if q := r.Quota; q != nil && q.Bytes > 0 {
		text += fmt.Sprintf("; at most %s a session", q.Bytes)
	}
	if q := r.Quota; q != nil && q.Requests > 0 {
		text += fmt.Sprintf("; at most %d requests a session", q.Requests)
	}
	if r.Rate != nil {
		text += fmt.Sprintf("; %g requests a second", r.Rate.PerSecond)
	}
	return text
}

// joined is a list, or its beginning.
func joined[T ~string](list []T) string {
	const most = 8
	var words []string
	for i, w := range list {
		if i == most {
			words = append(words, fmt.Sprintf("and %d more", len(list)-most))
			break
		}
		words = append(words, string(w))
	}
	return strings.Join(words, ", ")
}
