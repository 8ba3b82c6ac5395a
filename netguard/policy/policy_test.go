package policy

import (
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func compiled(t testing.TB, rules ...Rule) *Policy {
	t.Helper()
	p, err := Compile(Spec{Rules: rules})
	require.NoError(t, err)
	return p
}

// request reads one as `policy explain` does.
func request(t testing.TB, value string) Request {
	t.Helper()
	r, err := ParseRequest("", value)
	require.NoError(t, err)
	return r
}

func verdict(t testing.TB, p *Policy, value string) Verdict {
	t.Helper()
	return p.Decide(request(t, value)).Verdict
}

func TestTheFirstRuleThatMatchesDecides(t *testing.T) {
	p := compiled(t,
		Rule{Name: "secret area", Action: ActionDeny, Hosts: []string{"api.example"}, Paths: []string{"/admin/**"}},
		Rule{Name: "careful", Action: ActionAsk, Hosts: []string{"api.example"}, Methods: []string{"DELETE"}},
		Rule{Name: "api", Action: ActionAllow, Hosts: []string{"api.example", "*.cdn.example"}},
	)
	for value, want := range map[string]string{
		"https://api.example/":              "allow api",
		"GET http://api.example/x":          "allow api",
		"wss://api.example/socket":          "allow api",
		"https://api.example/admin/x":       "deny secret area",
		"DELETE https://api.example/x":      "ask careful",
		"DELETE https://api.example/admin/": "deny secret area",
		"https://a.b.cdn.example/":          "allow api",
		"https://cdn.example/":              "deny ",
		"https://xcdn.example/":             "deny ",
		"https://api.example.evil.example/": "deny ",
		"https://api.example:8443/":         "deny ",
		"http://api.example:443/":           "deny ",
		"ssh api.example ls":                "deny ",
		"api.example:443":                   "deny ",
	} {
		d := p.Decide(request(t, value))
		assert.Equal(t, want, d.Verdict.String()+" "+d.Rule, value)
		assert.NotEmpty(t, d.Reason, value)
		assert.Equal(t, d.Verdict == Deny, d.Remedy != "", value)
	}
}

// §10: empty allowlist meaning allow all.
func TestAnEmptyPolicyAndAnEmptyHostListAllowNothing(t *testing.T) {
	for _, p := range []*Policy{compiled(t), {}} {
		for _, value := range []string{"https://example.com/", "ssh example.com", "example.com:1", "example.com", "http://127.0.0.1/"} {
			assert.Equal(t, Deny, verdict(t, p, value), value)
		}
		assert.Equal(t, Deny, p.Possible("example.com", 443).Verdict)
	}
	_, err := Compile(Spec{Rules: []Rule{{Action: ActionAllow}}})
	assert.ErrorContains(t, err, "network.rules[0].hosts: the rule names no host and matches nothing")
	assert.Equal(t, Deny, Decision{}.Verdict)
}

// §10: deny rule bypassed by connecting to the address.
func TestADeniedNameIsNotReachedByItsAddress(t *testing.T) {
	p := compiled(t,
		Rule{Action: ActionDeny, Hosts: []string{"evil.example"}},
		Rule{Action: ActionDeny, Hosts: []string{"198.41.0.0/24"}},
		Rule{Action: ActionAllow, Hosts: []string{"*"}},
	)
	assert.Equal(t, Allow, verdict(t, p, "https://good.example/"))
	assert.Equal(t, Deny, verdict(t, p, "https://evil.example/"))
	for _, host := range []string{"8.8.8.8", "[2001:4860:4860::8888]", "134744072", "0x8.8.8.8"} {
		assert.Equal(t, Deny, verdict(t, p, "https://"+host+"/"), host)
		assert.Equal(t, Deny, p.Possible(host, 443).Verdict, host)
	}
	r := request(t, "https://good.example/")
	r.Addr = netip.MustParseAddr("198.41.0.4")
	assert.Equal(t, Deny, p.Decide(r).Verdict, "a denied range holds for names that lead there")
	r.Addr = netip.MustParseAddr("::ffff:198.41.0.4")
	assert.Equal(t, Deny, p.Decide(r).Verdict)
	r.Addr = netip.MustParseAddr("8.8.8.8")
	assert.Equal(t, Allow, p.Decide(r).Verdict)
	named := compiled(t, Rule{Action: ActionAllow, Hosts: []string{"8.8.8.8", "2001:4860::/32"}})
	assert.Equal(t, Allow, verdict(t, named, "https://134744072/"))
	assert.Equal(t, Allow, verdict(t, named, "https://[2001:4860:4860::8888]/"))
}

// §10: one allowed name opening a shared address.
func TestAnAllowedNameDoesNotOpenItsAddressForOtherNames(t *testing.T) {
	p := compiled(t, Rule{Action: ActionAllow, Hosts: []string{"good.example"}, AllowAddresses: []string{"127.0.0.1"}})
	addr := netip.MustParseAddr("127.0.0.1")
	for host, want := range map[string]Verdict{"good.example": Allow, "other.example": Deny, "127.0.0.1": Deny, "localhost": Deny} {
		r := request(t, "https://"+host+"/")
		r.Addr = addr
		assert.Equal(t, want, p.Decide(r).Verdict, host)
	}
	r := request(t, "https://8.8.8.8/")
	r.Addr = netip.MustParseAddr("8.8.4.4")
	assert.Equal(t, Deny, compiled(t, Rule{Action: ActionAllow, Hosts: []string{"8.8.8.8"}}).Decide(r).Verdict, "host and connection differ")
}

// §10: trailing dot and upper case and IDNA in host names.
func TestHostsAreComparedInOneForm(t *testing.T) {
	p := compiled(t, Rule{Action: ActionDeny, Hosts: []string{"BÜCHER.example"}}, Rule{Action: ActionAllow, Hosts: []string{"*.Example", "*"}})
	for _, host := range []string{"bücher.example", "BÜCHER.EXAMPLE.", "xn--bcher-kva.example", "XN--BCHER-KVA.example", "bücher。example", "ｂücher.example", "bu\u0308cher.example"} {
		d := p.Decide(Request{Protocol: HTTPS, Host: host, Port: 443, HTTP: HTTPCall{Method: "GET", Path: "/"}})
		assert.Equal(t, "rule 1", d.Rule, host)
	}
	for _, host := range []string{"A.example", "a.EXAMPLE."} {
		d := p.Decide(Request{Protocol: HTTPS, Host: host, Port: 443, HTTP: HTTPCall{Method: "GET", Path: "/"}})
		assert.Equal(t, Allow, d.Verdict, host)
	}
}

// §10: NUL in names.
func TestMalformedRequestsAreDeniedWhateverTheRulesSay(t *testing.T) {
	p := compiled(t, Rule{Action: ActionAllow, Hosts: []string{"*", "0.0.0.0/0", "::/0"}, Ports: []string{"*"}, AllowAddresses: []string{"0.0.0.0/0", "::/0"}},
		Rule{Action: ActionAllow, Protocols: []Protocol{SSH}, Hosts: []string{"*"}, SSH: &SSHRule{Commands: []string{"**"}, Shell: true}})
	ok := Request{Protocol: HTTPS, Host: "a.example", Port: 443, HTTP: HTTPCall{Method: "GET", Path: "/"}}
	require.Equal(t, Allow, p.Decide(ok).Verdict)
	for name, change := range map[string]func(*Request){
		"NUL in host":         func(r *Request) { r.Host = "a.example\x00.evil.example" },
		"space in host":       func(r *Request) { r.Host = "a.example " },
		"percent in host":     func(r *Request) { r.Host = "%61.example" },
		"at sign in host":     func(r *Request) { r.Host = "user@a.example" },
		"empty host":          func(r *Request) { r.Host = "" },
		"empty label":         func(r *Request) { r.Host = "a..example" },
		"zone":                func(r *Request) { r.Host = "fe80::1%eth0" },
		"port in host":        func(r *Request) { r.Host = "a.example:443" },
		"port 0":              func(r *Request) { r.Port = 0 },
		"unknown protocol":    func(r *Request) { r.Protocol = "gopher" },
		"CONNECT":             func(r *Request) { r.HTTP.Method = "CONNECT" },
		"connect":             func(r *Request) { r.HTTP.Method = "connect" },
		"method with a break": func(r *Request) { r.HTTP.Method = "GET\r\nX: y" },
		"no method":           func(r *Request) { r.HTTP.Method = "" },
		"no path":             func(r *Request) { r.HTTP.Path = "" },
		"absolute path":       func(r *Request) { r.HTTP.Path = "http://b.example/" },
		"break in path":       func(r *Request) { r.HTTP.Path = "/\r\nHost: b" },
		"escaped NUL in path": func(r *Request) { r.HTTP.Path = "/a%00b" },
		"break in query":      func(r *Request) { r.HTTP.Query = "a\nb" },
		"shell with command":  func(r *Request) { r.Protocol, r.SSH = SSH, SSHCall{Kind: SSHShell, Command: "x"} },
		"exec of nothing":     func(r *Request) { r.Protocol, r.SSH = SSH, SSHCall{Kind: SSHExec, Command: " "} },
		"unknown SSH request": func(r *Request) { r.Protocol, r.SSH = SSH, SSHCall{Kind: "x11", Command: "x"} },
		"NUL in command":      func(r *Request) { r.Protocol, r.SSH = SSH, SSHCall{Kind: SSHExec, Command: "a\x00b"} },
	} {
		r := ok
		change(&r)
		d := p.Decide(r)
		assert.Equal(t, Deny, d.Verdict, name)
		assert.NotEmpty(t, d.Reason, name)
	}
}

func TestAnAllowingRuleMustMatchEveryReadingOfAPath(t *testing.T) {
	p := compiled(t, Rule{Action: ActionAllow, Hosts: []string{"a.example"}, Paths: []string{"/public/**", "/@scope/*"}})
	for path, want := range map[string]Verdict{
		"/public/x": Allow, "/public/": Allow, "/public/a%20b": Allow, "/public//x": Allow, "/public/x;v=1": Allow, "/@scope%2fname": Allow, "/@scope/name": Allow,
		"/private": Deny, "/public/../private": Deny, "/public/%2e%2e/private": Deny, "/public/%252e%252e/private": Deny, "/public/..%2fprivate": Deny,
		`/public/..\private`: Deny, "/public/..%5cprivate": Deny, "/public/..;/private": Deny, "/publicx": Deny, "/PUBLIC/x": Deny, "/x/../public/x": Deny, "//private": Deny,
	} {
		d := p.Decide(Request{Protocol: HTTPS, Host: "a.example", Port: 443, HTTP: HTTPCall{Method: "GET", Path: path}})
		assert.Equal(t, want, d.Verdict, path)
	}
}

func TestADenyingRuleMatchesAnyReadingOfAPath(t *testing.T) {
	for _, action := range []Action{ActionDeny, ActionAsk} {
		p := compiled(t,
			Rule{Action: action, Hosts: []string{"a.example"}, Paths: []string{"/admin/**"}},
			Rule{Action: ActionAllow, Hosts: []string{"a.example"}},
		)
		for _, path := range []string{
			"/admin", "/admin/", "/admin/x", "/%61dmin/x", "/%2561dmin/x", "//admin/x", "/./admin/x", "/x/../admin/x", "/ADMIN/x", `\admin`, `/\admin/x`,
			"/x;a/../admin/x", "/admin;x/y", "/x%2f..%2fadmin/x", "/admin%2fx",
		} {
			d := p.Decide(Request{Protocol: HTTPS, Host: "a.example", Port: 443, HTTP: HTTPCall{Method: "GET", Path: path}})
			assert.NotEqual(t, Allow, d.Verdict, "%s %s", action, path)
		}
		assert.Equal(t, Allow, verdict(t, p, "https://a.example/administration"))
	}
}

func TestARuleForReadingOpensNoWebSocket(t *testing.T) {
	p := compiled(t, Rule{Action: ActionAllow, Hosts: []string{"a.example"}, Methods: []string{"GET"}})
	assert.Equal(t, Allow, verdict(t, p, "https://a.example/"))
	assert.Equal(t, Deny, verdict(t, p, "wss://a.example/"))
	p = compiled(t, Rule{Action: ActionAllow, Hosts: []string{"a.example"}, Protocols: []Protocol{WSS}})
	assert.Equal(t, Allow, verdict(t, p, "wss://a.example/"))
	assert.Equal(t, Deny, verdict(t, p, "https://a.example/"))
}

func TestADenyRuleStopsAMethodInAnyCase(t *testing.T) {
	p := compiled(t, Rule{Action: ActionDeny, Hosts: []string{"*"}, Methods: []string{"POST"}}, Rule{Action: ActionAllow, Hosts: []string{"*"}})
	assert.Equal(t, Deny, verdict(t, p, "post https://a.example/"))
	p = compiled(t, Rule{Action: ActionAllow, Hosts: []string{"*"}, Methods: []string{"GET"}})
	assert.Equal(t, Deny, verdict(t, p, "get https://a.example/"))
}

func TestPortsAreExactRangesOrAll(t *testing.T) {
	p := compiled(t, Rule{Action: ActionAllow, Protocols: []Protocol{TCP}, Hosts: []string{"db.example"}, Ports: []string{"5432", "8000-8100"}})
	for port, want := range map[string]Verdict{"5432": Allow, "5433": Deny, "7999": Deny, "8000": Allow, "8100": Allow, "8101": Deny} {
		assert.Equal(t, want, verdict(t, p, "db.example:"+port), port)
	}
	p = compiled(t, Rule{Action: ActionAllow, Protocols: []Protocol{HTTPS}, Hosts: []string{"db.example"}, Ports: []string{"*"}})
	assert.Equal(t, Allow, verdict(t, p, "https://db.example:65535/"))
}

func TestAConditionThatFailsDenies(t *testing.T) {
	p := compiled(t,
		Rule{Name: "cond", Action: ActionDeny, Hosts: []string{"a.example"}, When: `headers["x-team"] == "red"`},
		Rule{Action: ActionAllow, Hosts: []string{"a.example"}},
	)
	r := request(t, "https://a.example/")
	d := p.Decide(r)
	assert.Equal(t, Deny, d.Verdict, "the header is missing, so the condition cannot be evaluated")
	assert.Contains(t, d.Reason, `the condition of the rule "cond" cannot be evaluated`)
	r.HTTP.Header = http.Header{"X-Team": {"blue"}}
	assert.Equal(t, Allow, p.Decide(r).Verdict)
	r.HTTP.Header = http.Header{"X-Team": {"red"}}
	assert.Equal(t, Deny, p.Decide(r).Verdict)
}

func TestConditionsSeeTheRequest(t *testing.T) {
	for expression, want := range map[string]Verdict{
		`protocol == "https" && host == "a.example" && port == 443 && method == "POST"`: Allow,
		`path.startsWith("/repos/") && query["q"] == ["1", "2"] && address == ""`:       Allow,
		`"q" in query && size(headers) == 0 && kind == "" && user == ""`:                Allow,
		`path.matches("^/repos/[a-z]+$")`:                                               Allow,
		`method in ["GET", "HEAD"]`:                                                     Deny,
	} {
		p := compiled(t, Rule{Action: ActionAllow, Hosts: []string{"a.example"}, When: expression})
		assert.Equal(t, want, verdict(t, p, "POST https://a.example/repos/x?q=1&q=2"), expression)
	}
	p := compiled(t, Rule{Action: ActionAllow, Hosts: []string{"a.example"}, When: `path.startsWith("/public/")`})
	assert.Equal(t, Allow, verdict(t, p, "https://a.example/public/x"))
	assert.Equal(t, Deny, verdict(t, p, "https://a.example/public/%2e%2e/x"), "every reading has to meet it")
	p = compiled(t, Rule{Action: ActionAllow, Protocols: []Protocol{SSH}, Hosts: []string{"a.example"}, SSH: &SSHRule{Commands: []string{"**"}}, When: `service == "git-upload-pack" && repository == "o/r" && user == "git"`})
	assert.Equal(t, Allow, verdict(t, p, "ssh://git@a.example git-upload-pack 'o/r.git'"))
	assert.Equal(t, Deny, verdict(t, p, "ssh://root@a.example git-upload-pack 'o/r.git'"))
}

func TestAConditionCannotRunForLong(t *testing.T) {
	p := compiled(t, Rule{Action: ActionAllow, Hosts: []string{"a.example"}, When: `[1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, [1,2,3,4,5,6,7,8,9,10].all(d, [1,2,3,4,5,6,7,8,9,10].all(e, a + b + c + d + e + port > 0)))))`})
	d := p.Decide(request(t, "https://a.example/"))
	assert.Equal(t, Deny, d.Verdict)
	assert.Contains(t, d.Reason, "cost limit exceeded")
}

func TestAPolicyIsSafeForConcurrentUse(t *testing.T) {
	p := compiled(t, Rule{Action: ActionAllow, Hosts: []string{"*.example"}, Paths: []string{"/**"}, When: `query["a"][0] == "b"`})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				r, err := ParseRequest("", "https://x.example/%61?a=b")
				if err != nil || p.Decide(r).Verdict != Allow || p.Possible("x.example", 443).Verdict != Undecided {
					t.Error("a decision changed")
				}
			}
		})
	}
	wg.Wait()
}

func TestDescriptionsQuoteWhatTheGuestWrote(t *testing.T) {
	d := compiled(t).Decide(Request{Protocol: HTTPS, Host: "a.example", Port: 443, HTTP: HTTPCall{Method: "GET", Path: "/\u202e\x1b" + strings.Repeat("a", 5000)}})
	assert.Less(t, len(d.Reason), 1000)
	for _, text := range []string{d.Reason, d.Remedy} {
		assert.NotContains(t, text, "\x1b")
		assert.NotContains(t, text, "\u202e")
	}
}
