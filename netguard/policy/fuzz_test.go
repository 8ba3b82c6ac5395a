package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// manyRules and manyRequests stand for a policy of some size.
func manyRules() []Rule {
	rules := []Rule{
		{Action: ActionDeny, Hosts: []string{"*"}, Paths: []string{"/admin/**"}},
		{Action: ActionAsk, Hosts: []string{"*.example"}, Methods: []string{"DELETE"}},
		{Action: ActionAllow, Hosts: []string{"git.example"}, SSH: &SSHRule{Git: []string{GitUploadPack}, Repositories: []string{"o/*"}, Commands: []string{"git log *"}}},
		{Action: ActionAllow, Protocols: []Protocol{TCP}, Hosts: []string{"db.example"}, Ports: []string{"5432"}},
	}
	for i := range 20 {
		rules = append(rules, Rule{Action: ActionAllow, Hosts: []string{fmt.Sprintf("h%d.example", i), fmt.Sprintf("*.d%d.example", i)}, Methods: []string{"GET", "DELETE"}, Paths: []string{"/**"}})
	}
	return append(rules, Rule{Action: ActionAllow, Hosts: []string{"open.example"}}, Rule{Action: ActionDeny, Hosts: []string{"*"}, Ports: []string{"25"}})
}

var manyRequests = []string{
	"https://h19.example/x/y?z", "https://a.b.d7.example/", "DELETE https://h3.example/", "https://h3.example/%61dmin/", "POST https://h3.example/", "https://open.example/", "http://open.example/", "wss://open.example/",
	"ssh git.example git-upload-pack 'o/r'", "ssh git.example git log -1", "ssh git.example rm", "db.example:5432", "db.example:25", "https://nope.test/", "https://127.0.0.1/",
}

func FuzzParseHost(f *testing.F) {
	for _, s := range []string{"a.example", "127.1", "[::1]", "0x7f.1", "xn--bcher-kva", "ß.example", "1..2", "a%b", "::ffff:1.2.3.4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := ParseHost(s)
		if err != nil {
			return
		}
		again, err := ParseHost(h.String())
		require.NoError(t, err)
		require.Equal(t, h, again, "the canonical form is stable")
		if _, err := netip.ParseAddr(h.String()); err == nil {
			require.True(t, h.IsAddr(), "what is an address to others is one here")
		}
		require.NotContains(t, h.String(), "\x00")
	})
}

func FuzzDecide(f *testing.F) {
	f.Add("https", "h1.example", uint16(443), "GET", "/x", "a=b", "", "")
	f.Add("ssh", "git.example", uint16(22), "", "", "", "exec", "git-upload-pack 'o/r'")
	f.Add("https", "h1.example", uint16(443), "GET", "/x/..;/%2561dmin", "", "", "")
	f.Add("dns", "h1.example", uint16(0), "", "", "", "", "")
	p, err := Compile(Spec{Rules: append([]Rule{{Action: ActionDeny, Hosts: []string{"*"}, When: `path.contains("secret") || command.contains("secret")`}}, manyRules()...)})
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, proto, host string, port uint16, method, path, query, kind, command string) {
		r := Request{Protocol: Protocol(proto), Host: host, Port: port, HTTP: HTTPCall{Method: method, Path: path, Query: query}, SSH: SSHCall{Kind: SSHKind(kind), Command: command}}
		d := p.Decide(r)
		require.NotEmpty(t, d.Reason)
		require.Less(t, len(d.Reason), 4000)
		require.NotContains(t, d.Reason+d.Remedy, "\n")
		possible := p.Possible(host, port, r.Protocol)
		if d.Verdict != Deny && r.Protocol != DNS {
			require.NotEqual(t, Deny, possible.Verdict)
		}
		if d.Verdict == Allow && isHTTP(r.Protocol) {
			require.NotContains(t, strings.ToLower(resolve(unescape(path))), "/admin/")
		}
	})
}

func FuzzSSHCommand(f *testing.F) {
	for _, s := range []string{"git-upload-pack 'a/b.git'", `git-receive-pack 'a'\''b'`, "git log x; id", "git upload-archive ~/x"} {
		f.Add(s)
	}
	glob := commandGlob("git log *", false)
	f.Fuzz(func(t *testing.T, s string) {
		if service, repository, ok := ParseGitCommand(s); ok {
			require.Contains(t, gitServices, service)
			require.NotContains(t, "/"+repository+"/", "/../")
			require.NotContains(t, repository, "\n")
		}
		if glob.MatchString(s) {
			require.False(t, strings.ContainsAny(strings.TrimPrefix(s, "git log "), special))
		}
	})
}

func FuzzParseRequest(f *testing.F) {
	for _, s := range manyRequests {
		f.Add("", s)
	}
	p, err := Compile(Spec{Rules: manyRules()})
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, kind, value string) {
		if r, err := ParseRequest(kind, value); err == nil {
			require.NotEmpty(t, p.Decide(r).Reason)
		}
	})
}

func FuzzCompile(f *testing.F) {
	f.Add("allow", "a.example", "443", "GET", "/x/**", `path == "/x"`, "127.0.0.1")
	f.Fuzz(func(t *testing.T, action, host, port, method, path, when, addr string) {
		r := Rule{Action: Action(action), Hosts: []string{host}, Ports: []string{port}, Methods: []string{method}, Paths: []string{path}, When: when, AllowAddresses: []string{addr}}
		Check(Spec{Rules: []Rule{r, {Action: ActionAllow, Hosts: []string{host}}}})
		if p, err := Compile(Spec{Rules: []Rule{r}}); err == nil {
			require.NotEmpty(t, p.Decide(Request{Protocol: HTTPS, Host: "a.example", Port: 443, HTTP: HTTPCall{Method: "GET", Path: "/x/%41"}}).Reason)
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	p, err := Compile(Spec{Rules: manyRules()})
	require.NoError(b, err)
	when, err := Compile(Spec{Rules: []Rule{{Action: ActionAllow, Hosts: []string{"a.example"}, When: `method == "GET" && path.startsWith("/x")`}}})
	require.NoError(b, err)
	for name, c := range map[string]struct {
		p     *Policy
		value string
	}{
		"allow": {p, "https://h19.example/x/y?z"}, "refuse": {p, "POST https://nope.test/"}, "escaped": {p, "https://h19.example/x%20y/../z"}, "when": {when, "https://a.example/x"},
	} {
		r, err := ParseRequest("", c.value)
		require.NoError(b, err)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.p.Decide(r)
			}
		})
	}
}
