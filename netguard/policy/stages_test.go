package policy

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAConnectionIsUndecidedWhileTheRequestCouldBeAllowed(t *testing.T) {
	p := compiled(t,
		Rule{Name: "no admin", Action: ActionDeny, Hosts: []string{"api.example"}, Paths: []string{"/admin/**"}},
		Rule{Name: "api", Action: ActionAllow, Hosts: []string{"api.example"}},
		Rule{Name: "reads", Action: ActionAllow, Hosts: []string{"reads.example"}, Methods: []string{"GET"}},
		Rule{Name: "whole", Action: ActionAllow, Hosts: []string{"whole.example"}},
		Rule{Name: "ask", Action: ActionAsk, Hosts: []string{"ask.example"}},
		Rule{Name: "git", Action: ActionAllow, Hosts: []string{"git.example"}, SSH: &SSHRule{Git: []string{GitUploadPack}, Repositories: []string{"**"}}},
		Rule{Name: "db", Action: ActionAllow, Protocols: []Protocol{TCP}, Hosts: []string{"db.example"}, Ports: []string{"5432"}},
		Rule{Name: "denied", Action: ActionDeny, Hosts: []string{"denied.example"}},
	)
	for _, c := range []struct {
		host  string
		port  uint16
		proto []Protocol
		want  string
	}{
		{"api.example", 443, nil, "undecided https wss"}, {"api.example", 80, nil, "undecided http ws"}, {"api.example", 443, []Protocol{HTTPS}, "undecided https"},
		{"api.example", 8443, nil, "deny"}, {"reads.example", 443, []Protocol{HTTPS, WSS}, "undecided https"}, {"whole.example", 443, []Protocol{HTTPS, WSS}, "allow https wss"},
		{"whole.example", 443, nil, "undecided https wss"}, {"whole.example", 443, []Protocol{HTTP}, "deny"}, {"ask.example", 443, []Protocol{HTTPS}, "ask https"},
		{"git.example", 22, nil, "undecided ssh"}, {"git.example", 443, nil, "deny"}, {"db.example", 5432, nil, "undecided tcp"}, {"db.example", 5432, []Protocol{TCP}, "allow tcp"},
		{"denied.example", 443, nil, "deny"}, {"other.example", 443, nil, "deny"}, {"bad host", 443, nil, "deny"}, {"127.0.0.1", 443, nil, "deny"}, {"api.example", 0, nil, "deny"},
	} {
		d := p.Possible(c.host, c.port, c.proto...)
		got := d.Verdict.String()
		for _, p := range d.Protocols {
			got += " " + string(p)
		}
		assert.Equal(t, c.want, got, "%s:%d %v", c.host, c.port, c.proto)
		assert.NotEmpty(t, d.Reason)
	}
	assert.Equal(t, "denied", p.Possible("denied.example", 443).Rule)
}

func TestABlockedAddressIsRefusedBeforeAnythingIsSent(t *testing.T) {
	p := compiled(t,
		Rule{Action: ActionAllow, Hosts: []string{"127.0.0.1"}, Paths: []string{"/x"}},
		Rule{Action: ActionAllow, Hosts: []string{"127.0.0.2"}, AllowAddresses: []string{"127.0.0.2"}},
	)
	d := p.Possible("127.0.0.1", 80, HTTP)
	assert.Equal(t, Deny, d.Verdict)
	assert.Contains(t, d.Reason, "loopback")
	assert.Equal(t, Allow, p.Possible("127.0.0.2", 80, HTTP).Verdict)
}

// Possible must never refuse what Decide would allow, nor promise more.
func TestPossibleAgreesWithDecide(t *testing.T) {
	p := compiled(t, manyRules()...)
	for _, value := range manyRequests {
		r := request(t, value)
		possible, decided := p.Possible(r.Host, r.Port, r.Protocol), p.Decide(r)
		if possible.Verdict != Undecided {
			assert.Equal(t, possible.Verdict, decided.Verdict, value)
		}
		if decided.Verdict != Deny {
			assert.NotEqual(t, Deny, p.Decide(Request{Protocol: DNS, Host: r.Host}).Verdict, value)
		}
	}
}

// §10: DNS exfiltration under deny-all; a denied name still reaches the resolver.
func TestANameIsLookedUpOnlyIfARequestToItCouldBeAllowed(t *testing.T) {
	none := compiled(t)
	for _, name := range []string{"example.com", "c2VjcmV0.evil.example"} {
		assert.Equal(t, Deny, none.Decide(Request{Protocol: DNS, Host: name}).Verdict)
	}
	p := compiled(t,
		Rule{Action: ActionDeny, Hosts: []string{"x.a.example"}},
		Rule{Action: ActionDeny, Hosts: []string{"post.a.example"}, Methods: []string{"POST"}},
		Rule{Action: ActionDeny, Protocols: []Protocol{HTTP, HTTPS, WS, WSS}, Hosts: []string{"noweb.a.example"}},
		Rule{Action: ActionDeny, Protocols: []Protocol{DNS}, Hosts: []string{"nodns.a.example"}},
		Rule{Action: ActionDeny, Hosts: []string{"*"}, When: `headers["x"] == "y"`},
		Rule{Action: ActionAllow, Hosts: []string{"*.a.example"}, Paths: []string{"/x"}},
		Rule{Action: ActionAsk, Hosts: []string{"ask.example"}},
		Rule{Action: ActionAllow, Protocols: []Protocol{DNS}, Hosts: []string{"only-dns.example"}},
		Rule{Action: ActionDeny, Hosts: []string{"*"}},
		Rule{Action: ActionAllow, Hosts: []string{"late.example"}},
	)
	for name, want := range map[string]Verdict{
		"b.a.example": Allow, "x.a.example": Deny, "post.a.example": Allow, "noweb.a.example": Deny, "nodns.a.example": Deny, "a.example": Deny, "ask.example": Ask, "only-dns.example": Allow,
		"late.example": Deny, "evil.example": Deny, "127.1": Deny, "": Deny, "a\x00.a.example": Deny,
	} {
		d := p.Decide(Request{Protocol: DNS, Host: name})
		assert.Equal(t, want, d.Verdict, "%s: %s", name, d.Reason)
	}
}

func TestARefusalNamesTheNearestRuleAndARemedy(t *testing.T) {
	p := compiled(t,
		Rule{Name: "api", Action: ActionAllow, Protocols: []Protocol{HTTPS}, Hosts: []string{"api.example.com"}, Methods: []string{"GET", "HEAD"}},
		Rule{Name: "pages", Action: ActionAllow, Hosts: []string{"pages.other.org"}, Paths: []string{"/a/**"}},
		Rule{Name: "git", Action: ActionAllow, Hosts: []string{"git.example.net"}, SSH: &SSHRule{Git: []string{GitUploadPack}, Repositories: []string{"o/*"}}},
		Rule{Name: "cond", Action: ActionAllow, Hosts: []string{"cond.net"}, When: `path == "/x"`},
		Rule{Name: "inner", Action: ActionAllow, Protocols: []Protocol{HTTP}, Hosts: []string{"127.0.0.1"}, Ports: []string{"8080"}},
	)
	for value, want := range map[string][3]string{
		"POST https://api.example.com/":              {"api", "it is for GET or HEAD, not POST", "use GET or HEAD, or have the operator"},
		"http://api.example.com/":                    {"api", "it is for https, not http", "use https"},
		"https://api.example.com:8443/":              {"api", "it is for port 443, not 8443", "use port 443"},
		"https://www.example.com/":                   {"api", "it is for api.example.com, not www.example.com", "use api.example.com"},
		"https://pages.other.org/b":                  {"pages", "not for this path", "use a path that matches /a/**"},
		"ssh git.example.net git-receive-pack 'o/r'": {"git", "not for this", "run git-upload-pack on o/*"},
		"https://cond.net/":                          {"cond", "its condition does not hold", `meet the condition "path == \"/x\""`},
		"https://nowhere.test/":                      {"", "no rule allows GET https://nowhere.test:443/", `{action: allow, protocols: [https], hosts: ["nowhere.test"]}`},
		"ssh new.test git-upload-pack 'o/r'":         {"", "no rule allows", `hosts: ["new.test"], ssh: {git: [git-upload-pack], repositories: ["o/r"]}}`},
		"new.test:5432":                              {"", "no rule allows tcp to new.test:5432", `{action: allow, protocols: [tcp], hosts: ["new.test"], ports: [5432]}`},
		"new.test":                                   {"", "looking up new.test", "the operator can add"},
		"http://127.0.0.1:8080/":                     {"", "127.0.0.1 is at the address 127.0.0.1 (loopback)", `add 127.0.0.1 to allow_addresses of the rule "inner"`},
		"https://apl.example.com/":                   {"api", "not apl.example.com", "use api.example.com"},
		"ssh git.example.net sftp":                   {"git", "not for this", "run git-upload-pack"},
		"POST https://api.example.com:1/%41//":       {"api", "port 443", "use GET or HEAD"},
	} {
		d := p.Decide(request(t, value))
		assert.Equal(t, Deny, d.Verdict, value)
		assert.Equal(t, want[0], d.Nearest, value)
		assert.Contains(t, d.Reason, want[1], value)
		assert.Contains(t, d.Remedy, want[2], value)
	}
	assert.Contains(t, compiled(t).Decide(request(t, "https://a.test/")).Reason, "nothing is allowed")
}

func TestRequestsAreReadAsPeopleWriteThem(t *testing.T) {
	for _, c := range []struct {
		kind, value string
		want        Request
	}{
		{"", "https://a.example", Request{Protocol: HTTPS, Host: "a.example", Port: 443, HTTP: HTTPCall{Method: "GET", Path: "/"}}},
		{"http", "POST http://a.example:81/x%20y?q=1", Request{Protocol: HTTP, Host: "a.example", Port: 81, HTTP: HTTPCall{Method: "POST", Path: "/x%20y", Query: "q=1"}}},
		{"", "wss://[2001:db8::1]/x", Request{Protocol: WSS, Host: "2001:db8::1", Port: 443, HTTP: HTTPCall{Method: "GET", Path: "/x"}}},
		{"", "db.example:5432", Request{Protocol: TCP, Host: "db.example", Port: 5432}},
		{"tcp", "[::1]:5", Request{Protocol: TCP, Host: "::1", Port: 5}},
		{"", "git@h.example git-upload-pack 'a/b'", Request{Protocol: SSH, Host: "h.example", Port: 22, SSH: SSHCall{Kind: SSHExec, Command: "git-upload-pack 'a/b'", User: "git"}}},
		{"ssh", "h.example:2222", Request{Protocol: SSH, Host: "h.example", Port: 2222, SSH: SSHCall{Kind: SSHShell}}},
		{"", "ssh://u@h.example:2222 ls -l", Request{Protocol: SSH, Host: "h.example", Port: 2222, SSH: SSHCall{Kind: SSHExec, Command: "ls -l", User: "u"}}},
		{"", "name.example", Request{Protocol: DNS, Host: "name.example"}},
	} {
		if c.kind == "" && strings.HasPrefix(c.value, "db") {
			c.kind = guess(c.value)
		}
		got, err := ParseRequest(c.kind, c.value)
		require.NoError(t, err, c.value)
		assert.Equal(t, c.want, got, c.value)
	}
	for _, c := range [][2]string{{"http", "ftp://a"}, {"http", "a.example"}, {"tcp", "a.example"}, {"tcp", "a:0"}, {"tcp", "a:99999"}, {"ssh", "a:x ls"}, {"mail", "x"}, {"http", "http://a:0/"}, {"http", "http://%zz/"}} {
		_, err := ParseRequest(c[0], c[1])
		assert.Error(t, err, c[1])
	}
}
