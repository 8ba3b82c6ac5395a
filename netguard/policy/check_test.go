package policy

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestEveryMistakeIsNamedWithItsKey(t *testing.T) {
	ok := Rule{Action: ActionAllow, Hosts: []string{"a.example"}}
	for want, change := range map[string]func(*Rule){
		"network.rules[1].action: there is no action: write allow, deny or ask":                             func(r *Rule) { r.Action = "" },
		`network.rules[1].action: the action "alow" is unknown: did you mean allow?`:                        func(r *Rule) { r.Action = "alow" },
		`network.rules[1].protocols[0]: the protocol "htps" is unknown: did you mean https?`:                func(r *Rule) { r.Protocols = []Protocol{"htps"} },
		"network.rules[1].hosts: the rule names no host":                                                    func(r *Rule) { r.Hosts = nil },
		`network.rules[1].hosts[1]: "a.*" has a wildcard in a place`:                                        func(r *Rule) { r.Hosts = []string{"a", "a.*"} },
		`network.rules[1].hosts[0]: "https://a" is a URL`:                                                   func(r *Rule) { r.Hosts = []string{"https://a"} },
		`network.rules[1].hosts[0]: "10.0.0.1/8" has bits after its prefix: write 10.0.0.0/8`:               func(r *Rule) { r.Hosts = []string{"10.0.0.1/8"} },
		`network.rules[1].hosts[0]: "*.1.2.3.4" is no wildcard`:                                             func(r *Rule) { r.Hosts = []string{"*.1.2.3.4"} },
		`network.rules[1].hosts[0]: the host "a:443" is no IPv6 address (a port does not belong here)`:      func(r *Rule) { r.Hosts = []string{"a:443"} },
		`network.rules[1].ports[0]: "0" is no port`:                                                         func(r *Rule) { r.Ports = []string{"0"} },
		`network.rules[1].ports[0]: "90-80" is no port`:                                                     func(r *Rule) { r.Ports = []string{"90-80"} },
		`network.rules[1].methods[0]: methods are written in upper case: write GET`:                         func(r *Rule) { r.Methods = []string{"get"} },
		"network.rules[1].methods[0]: CONNECT is always refused":                                            func(r *Rule) { r.Methods = []string{"CONNECT"} },
		`network.rules[1].paths[0]: "x" does not begin with a slash: write "/x"`:                            func(r *Rule) { r.Paths = []string{"x"} },
		`network.rules[1].paths[0]: "/[" is no glob`:                                                        func(r *Rule) { r.Paths = []string{"/["} },
		`network.rules[1].paths[0]: "/a%20b" is percent-encoded`:                                            func(r *Rule) { r.Paths = []string{"/a%20b"} },
		`network.rules[1].paths[0]: "/a?b" has a query`:                                                     func(r *Rule) { r.Paths = []string{"/a?b"} },
		"network.rules[1].protocols: methods and paths say nothing about tcp":                               func(r *Rule) { r.Protocols, r.Methods, r.Ports = []Protocol{TCP}, []string{"GET"}, []string{"1"} },
		"network.rules[1].ports: the rule is about TCP and names no port":                                   func(r *Rule) { r.Protocols = []Protocol{TCP} },
		"network.rules[1].ssh: the rule is about SSH and does not say what may run":                         func(r *Rule) { r.Protocols = []Protocol{SSH} },
		"network.rules[1].ssh: the section allows nothing to run":                                           func(r *Rule) { r.SSH = &SSHRule{} },
		`network.rules[1].ssh.git[0]: "git-upload-pak" is no service of git: did you mean git-upload-pack?`: func(r *Rule) { r.SSH = &SSHRule{Git: []string{"git-upload-pak"}, Repositories: []string{"**"}} },
		`network.rules[1].ssh.repositories: no repository is named: write "**"`:                             func(r *Rule) { r.SSH = &SSHRule{Git: []string{GitUploadPack}} },
		`network.rules[1].ssh.repositories[0]: "/o/r.git" is not how`:                                       func(r *Rule) { r.SSH = &SSHRule{Git: []string{GitUploadPack}, Repositories: []string{"/o/r.git"}} },
		"network.rules[1].ssh.forwards[0]":                                                                  func(r *Rule) { r.SSH = &SSHRule{Forwards: []string{"x"}} },
		"network.rules[1].when: the expression is of type string":                                           func(r *Rule) { r.When = "host" },
		"network.rules[1].when: <input>:1:1: undeclared reference to 'hots'":                                func(r *Rule) { r.When = `hots == "a"` },
		"network.rules[1].when: ":                                                                           func(r *Rule) { r.When = strings.Repeat("(", 5000) },
		`network.rules[1].allow_addresses[0]: "localhost" is neither an address nor a range`:                func(r *Rule) { r.AllowAddresses = []string{"localhost"} },
		"network.rules[1].quota: the quota bounds nothing":                                                  func(r *Rule) { r.Quota = &Quota{} },
		"network.rules[1].rate: the rate is out of range":                                                   func(r *Rule) { r.Rate = &Rate{} },
		`network.rules[1].name: the name "first" is taken: network.rules[0] has it already`:                 func(r *Rule) { r.Name = "first" },
		`network.rules[1].name: the name "a\nb" is no name`:                                                 func(r *Rule) { r.Name = "a\nb" },
		"network.rules[1]: a rule that denies has nothing to bound":                                         func(r *Rule) { r.Action, r.Rate = ActionDeny, &Rate{PerSecond: 1} },
		"network.rules[1].allow_addresses: a rule that denies opens no address":                             func(r *Rule) { r.Action, r.AllowAddresses = ActionDeny, []string{"127.0.0.1"} },
	} {
		r := ok
		change(&r)
		_, err := Compile(Spec{Rules: []Rule{{Name: "first", Action: ActionAllow, Hosts: []string{"b"}}, r}})
		require.Error(t, err, want)
		assert.Contains(t, err.Error(), want)
	}
	for want, profile := range map[string]ProfileSpec{
		`network.profiles[0].name: the profile "git-host" is unknown: did you mean git-hosts?`: {Name: "git-host"},
		"network.profiles[0].hosts: the profile git-hosts needs hosts":                         {Name: ProfileGitHosts},
		"network.profiles[0].hosts: the profile none allows nothing":                           {Name: ProfileNone, Hosts: []string{"a"}},
	} {
		_, err := Compile(Spec{Profiles: []ProfileSpec{profile}})
		assert.ErrorContains(t, err, want)
	}
	_, err := Compile(Spec{Rules: []Rule{{}, {}}})
	assert.ErrorContains(t, err, "the network policy has 4 mistakes:\n")
	_, err = Compile(Spec{Rules: make([]Rule, 5000)})
	var e *Error
	require.ErrorAs(t, err, &e)
	assert.LessOrEqual(t, len(e.Problems), maxProblems)
}

func TestWhatIsProbablyNotMeantIsAWarning(t *testing.T) {
	for want, rules := range map[string][]Rule{
		`warning: network.rules[0].hosts[0]: every host on the internet is allowed`:                        {{Action: ActionAllow, Hosts: []string{"*"}}},
		"warning: network.rules[0].hosts[0]: anybody can register a name under co.uk":                      {{Action: ActionAllow, Hosts: []string{"*.co.uk"}}},
		"warning: network.rules[0].allow_addresses[0]: 169.254.169.254 is in this range and stays blocked": {{Action: ActionAllow, Hosts: []string{"a"}, AllowAddresses: []string{"169.254.0.0/16"}}},
		"warning: network.rules[0].allow_addresses[0]: 8.8.8.8 is not blocked in the first place":          {{Action: ActionAllow, Hosts: []string{"a"}, AllowAddresses: []string{"8.8.8.8"}}},
		"warning: network.rules[0].allow_addresses: whoever controls a name that the wildcard covers":      {{Action: ActionAllow, Hosts: []string{"*.a.example"}, AllowAddresses: []string{"127.0.0.1"}}},
		`warning: network.rules[1]: no request reaches the rule "rule 2": the rule "rule 1" before it`:     {{Action: ActionDeny, Hosts: []string{"*"}}, {Action: ActionAllow, Hosts: []string{"a.example"}}},
		`warning: network.rules[2]: no request reaches the rule "rule 3": the rule "rule 1"`:               {{Action: ActionAllow, Hosts: []string{"*.example"}}, {Action: ActionDeny, Hosts: []string{"b"}}, {Action: ActionAllow, Protocols: []Protocol{HTTPS}, Hosts: []string{"a.example"}, Ports: []string{"443"}, Methods: []string{"GET"}}},
	} {
		problems := Check(Spec{Rules: rules})
		var all []string
		for _, p := range problems {
			assert.True(t, p.Warning)
			all = append(all, p.String())
		}
		assert.Contains(t, strings.Join(all, "\n"), want)
		_, err := Compile(Spec{Rules: rules})
		assert.NoError(t, err, "a warning is no mistake")
	}
}

func TestRulesThatAreReachedAreNotCalledUnreachable(t *testing.T) {
	for name, rules := range map[string][2]Rule{
		"another port":     {{Action: ActionAllow, Hosts: []string{"a.example"}}, {Action: ActionAllow, Hosts: []string{"a.example"}, Ports: []string{"8443"}}},
		"deny on any port": {{Action: ActionAllow, Hosts: []string{"a.example"}}, {Action: ActionDeny, Hosts: []string{"a.example"}}},
		"methods":          {{Action: ActionAllow, Hosts: []string{"a.example"}, Methods: []string{"GET"}}, {Action: ActionAsk, Hosts: []string{"a.example"}}},
		"paths":            {{Action: ActionDeny, Hosts: []string{"a.example"}, Paths: []string{"/x"}}, {Action: ActionAllow, Hosts: []string{"a.example"}, Paths: []string{"/y"}}},
		"condition":        {{Action: ActionDeny, Hosts: []string{"a.example"}, When: `method == "GET"`}, {Action: ActionAllow, Hosts: []string{"a.example"}}},
		"wildcard":         {{Action: ActionDeny, Hosts: []string{"*.a.example"}}, {Action: ActionAllow, Hosts: []string{"a.example"}}},
		"address":          {{Action: ActionAllow, Hosts: []string{"*.example"}}, {Action: ActionAllow, Hosts: []string{"192.0.2.1"}}},
		"protocol":         {{Action: ActionDeny, Protocols: []Protocol{HTTP}, Hosts: []string{"*"}}, {Action: ActionAllow, Hosts: []string{"a.example"}}},
		"ssh":              {{Action: ActionDeny, Hosts: []string{"*"}, SSH: &SSHRule{Shell: true}}, {Action: ActionAllow, Hosts: []string{"a.example"}, SSH: &SSHRule{Commands: []string{"ls"}}}},
	} {
		assert.Empty(t, Check(Spec{Rules: rules[:]}), name)
	}
}

func TestProfilesComeAfterTheRulesAndNameNoServer(t *testing.T) {
	p, err := Compile(Spec{
		Profiles: []ProfileSpec{{Name: ProfilePackageRegistries, Hosts: []string{"packages.example"}}, {Name: ProfileGitHosts, Hosts: []string{"git.example"}}, {Name: ProfileNone}},
		Rules:    []Rule{{Action: ActionDeny, Hosts: []string{"packages.example"}, Paths: []string{"/bad/**"}}},
	})
	require.NoError(t, err)
	for value, want := range map[string]Verdict{
		"https://packages.example/simple/x": Allow, "HEAD https://packages.example/x": Allow, "POST https://packages.example/x": Deny, "https://packages.example/bad/x": Deny, "http://packages.example/x": Deny,
		"https://git.example/o/r.git/info/refs?service=git-upload-pack": Allow, "POST https://git.example/o/r.git/git-upload-pack": Allow, "POST https://git.example/o/r.git/git-receive-pack": Deny,
		"https://git.example/o/r": Deny, "ssh git@git.example git-upload-pack 'o/r.git'": Allow, "ssh git@git.example git-receive-pack 'o/r.git'": Deny, "ssh git@git.example": Deny,
	} {
		assert.Equal(t, want, verdict(t, p, value), value)
	}
	assert.Len(t, p.Rules(), 5)
	assert.Equal(t, []Protocol{HTTPS}, p.Rules()[1].Protocols)
}

func TestAmountsOfDataAreReadAsPeopleWriteThem(t *testing.T) {
	for text, want := range map[string]Bytes{"0": 0, "17": 17, "17B": 17, "500KiB": 500 << 10, "10 MiB": 10 << 20, "2GiB": 2 << 30, "1TiB": 1 << 40} {
		var b Bytes
		require.NoError(t, b.UnmarshalText([]byte(text)), text)
		assert.Equal(t, want, b, text)
		var again Bytes
		require.NoError(t, again.UnmarshalText([]byte(b.String())))
		assert.Equal(t, b, again)
	}
	for _, text := range []string{"", "x", "-1", "1MB", "1.5GiB", "99999999999TiB", "9223372036854775808", "MiB"} {
		var b Bytes
		assert.Error(t, b.UnmarshalText([]byte(text)), text)
	}
	out, err := json.Marshal(Decision{Verdict: Ask, Reason: "x"})
	require.NoError(t, err)
	assert.JSONEq(t, `{"verdict":"ask","reason":"x"}`, string(out))
}

func TestQuotasAndRatesAreCountedByRule(t *testing.T) {
	now := time.Unix(1000, 0)
	l := NewLimiter(func() time.Time { return now })
	p := compiled(t,
		Rule{Name: "few", Action: ActionAllow, Hosts: []string{"few.example"}, Quota: &Quota{Requests: 2}},
		Rule{Name: "slow", Action: ActionAllow, Hosts: []string{"slow.example"}, Rate: &Rate{PerSecond: 0.5, Burst: 2}},
		Rule{Name: "small", Action: ActionAllow, Hosts: []string{"small.example"}, Quota: &Quota{Bytes: 100}},
		Rule{Name: "free", Action: ActionAllow, Hosts: []string{"free.example"}},
	)
	few, slow, small, free := p.Decide(request(t, "https://few.example")), p.Decide(request(t, "https://slow.example")), p.Decide(request(t, "https://small.example")), p.Decide(request(t, "https://free.example"))
	require.NoError(t, l.Request(few))
	require.NoError(t, l.Request(few))
	err := l.Request(few)
	var e *LimitError
	require.ErrorAs(t, err, &e)
	assert.Equal(t, "requests", e.What)
	assert.EqualError(t, err, `the rule "few" allows 2 requests in a session, and they are used up`)

	require.NoError(t, l.Request(slow))
	require.NoError(t, l.Request(slow))
	require.ErrorAs(t, l.Request(slow), &e)
	assert.Equal(t, "rate", e.What)
	assert.Equal(t, 2*time.Second, e.Retry)
	require.ErrorAs(t, l.Request(slow), &e, "being refused uses up nothing")
	assert.Equal(t, 2*time.Second, e.Retry)
	now = now.Add(2 * time.Second)
	require.NoError(t, l.Request(slow))
	require.Error(t, l.Request(slow))

	require.NoError(t, l.Request(small))
	require.NoError(t, l.Bytes(small, 60))
	require.NoError(t, l.Bytes(small, 40))
	require.ErrorAs(t, l.Bytes(small, 1), &e)
	assert.Equal(t, "bytes", e.What)
	require.ErrorAs(t, l.Request(small), &e)
	assert.Equal(t, Quota{Bytes: 101, Requests: 1}, l.Used("small"))
	for range 1000 {
		require.NoError(t, l.Request(free))
		require.NoError(t, l.Bytes(free, 1<<30))
	}
	assert.Equal(t, Quota{}, l.Used("free"))
}
