package configs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/netguard/policy"
	"github.com/gondolin-go/gondolin/netguard/secret"
)

const networkFile = `version: 1
network:
  profiles:
    - {name: git-hosts, hosts: [git.test]}
  rules:
    - name: api
      action: allow
      protocols: [https]
      hosts: [api.test, "*.api.test"]
      ports: [443, 8000-8100]
      methods: [GET]
      paths: [/v1/**]
      when: query.size() < 3
      quota: {bytes: 10MiB, requests: 5}
      rate: {per_second: 0.5, burst: 2}
    - action: ask
      hosts: [git.test]
      ssh: {git: [git-receive-pack], repositories: [team/*]}
  dns: trusted
  maps:
    - {from: "pg.internal:5432", to: "unix:/run/pg"}
  known_hosts: [hosts, ~/.ssh/known_hosts]
  ssh_agent: true
  limits: {idle: 1m}
secrets:
  - name: token
    from: {command: [pass, show, x], lifetime: 1h}
    hosts: [api.test]
    guest_env: [TOKEN]
    in: [query]
    placeholder: {prefix: sk_, length: 40}
  - {name: f, from: {file: ~/token}, hosts: [api.test]}
audit: {keep: never}
`

func TestTheNetworkAndTheSecretsAreReadWhole(t *testing.T) {
	c, err := load(t, networkFile, []string{"HOME=/h"})
	require.NoError(t, err)
	assert.Equal(t, policy.Spec{
		Profiles: []policy.ProfileSpec{{Name: "git-hosts", Hosts: []string{"git.test"}}},
		Rules: []policy.Rule{
			{
				Name: "api", Action: policy.ActionAllow, Protocols: []policy.Protocol{policy.HTTPS}, Hosts: []string{"api.test", "*.api.test"},
				Ports: []string{"443", "8000-8100"}, Methods: []string{"GET"}, Paths: []string{"/v1/**"}, When: "query.size() < 3",
				Quota: &policy.Quota{Bytes: 10 << 20, Requests: 5}, Rate: &policy.Rate{PerSecond: 0.5, Burst: 2},
			},
			{Action: policy.ActionAsk, Hosts: []string{"git.test"}, SSH: &policy.SSHRule{Git: []string{"git-receive-pack"}, Repositories: []string{"team/*"}}},
		},
	}, c.Network.Policy())
	assert.Equal(t, []secret.Spec{
		{
			Name: "token", From: secret.From{Command: []string{"pass", "show", "x"}, Lifetime: time.Hour}, Hosts: []string{"api.test"},
			GuestEnv: []string{"TOKEN"}, In: []secret.Place{secret.InQuery}, Placeholder: secret.Shape{Prefix: "sk_", Length: 40},
		},
		{Name: "f", From: secret.From{File: "/h/token"}, Hosts: []string{"api.test"}},
	}, c.SecretSpecs())
	assert.Equal(t, DNSTrusted, c.Network.DNS)
	assert.Equal(t, []Map{{From: "pg.internal:5432", To: "unix:/run/pg"}}, c.Network.Maps)
	assert.Equal(t, []string{filepath.Join(filepath.Dir(c.File()), "hosts"), "/h/.ssh/known_hosts"}, c.Network.KnownHosts)
	assert.True(t, c.Network.SSHAgent)
	assert.Equal(t, NetworkLimits{Flows: 512, HalfOpen: 128, Names: 4096, Sniff: Duration(15 * time.Second), Idle: Duration(time.Minute)}, c.Network.Limits)
	assert.Equal(t, Never, c.Audit.Keep)
	_, err = policy.Compile(c.Network.Policy())
	require.NoError(t, err)

	for _, origins := range []bool{false, true} {
		text, err := c.YAML(origins)
		require.NoError(t, err)
		again, err := load(t, string(text), nil)
		require.NoError(t, err, "%s", text)
		assert.Equal(t, c.Network, again.Network, "%s", text)
		assert.Equal(t, c.Secrets, again.Secrets)
	}
}

func TestByDefaultNothingIsAllowedAndEverythingIsRecorded(t *testing.T) {
	c, err := Load(Sources{Env: []string{"HOME=/h"}})
	require.NoError(t, err)
	p, err := policy.Compile(c.Network.Policy())
	require.NoError(t, err)
	assert.Empty(t, p.Rules())
	assert.Empty(t, c.SecretSpecs())
	assert.True(t, c.Audit.Enabled)
	assert.True(t, strings.HasSuffix(c.Audit.Dir, "gondolin/audit"), c.Audit.Dir)
}

func TestEveryMistakeInTheNetworkIsNamedWithItsLine(t *testing.T) {
	for _, tt := range []struct {
		name, file string
		want       []string
	}{
		{"no action, no host", "network:\n  rules:\n    - name: x", []string{
			"config.yaml:4: network.rules[0].action: there is no action: write allow, deny or ask",
			"config.yaml:4: network.rules[0].hosts: the rule names no host and matches nothing: write \"*\" if every host is meant",
		}},
		{"each item in its line", "network:\n  rules:\n    - action: allow\n      hosts:\n        - good.test\n        - bad_host!\n      protocols: [htps]", []string{
			"config.yaml:8: network.rules[0].protocols[0]: the protocol \"htps\" is unknown: did you mean https?",
			"config.yaml:7: network.rules[0].hosts[1]: ",
		}},
		{"misspelt key alone", "network:\n  rules:\n    - action: allow\n      host: [a.test]", []string{"config.yaml:5: unknown key network.rules[0].host: did you mean network.rules[0].hosts?"}},
		{"empty list", "network:\n  rules:\n    - {action: allow, hosts: [a.test], methods: []}", []string{"config.yaml:4: network.rules[0].methods: the list is empty: name something, or leave the key out"}},
		{"empty ssh", "network:\n  rules:\n    - {action: allow, hosts: [a.test], ssh: {}}", []string{"config.yaml:4: network.rules[0].ssh: it says nothing: give it keys, or leave it out"}},
		{"empty ssh, as nothing", "network:\n  rules:\n    - action: allow\n      hosts: [a.test]\n      ssh:", []string{"config.yaml:6: network.rules[0].ssh: it says nothing: give it keys, or leave it out"}},
		{"unknown profile", "network:\n  profiles:\n    - {name: git-host, hosts: [a.test]}", []string{"config.yaml:4: network.profiles[0].name: the profile \"git-host\" is unknown: did you mean git-hosts?"}},
		{"when", "network:\n  rules:\n    - {action: allow, hosts: [a.test], when: nope(}", []string{"config.yaml:4: network.rules[0].when: "}},
		{"dns", "network: {dns: synthetik}", []string{"config.yaml:2: network.dns: \"synthetik\" is unknown, use synthetic, trusted, open: did you mean synthetic?"}},
		{"maps", "network:\n  maps:\n    - {from: pg.internal, to: 'x:1'}\n    - {from: 'a.test:53', to: 'unix:x'}\n    - {from: 'a.test:1', to: nowhere}", []string{
			`config.yaml:4: network.maps[0].from: "pg.internal" is no host:port`,
			`config.yaml:5: network.maps[1].from: "a.test:53" is for DNS: choose another port`,
			`config.yaml:5: network.maps[1].to: "unix:x" is no socket`,
			`config.yaml:6: network.maps[2].to: "nowhere" is no host:port and no unix:/path`,
		}},
		{"map twice", "network:\n  maps:\n    - {from: 'a.test:1', to: 'b:1'}\n    - {from: 'A.test:1', to: 'b:2'}", []string{`config.yaml:5: network.maps[1].from: "a.test:1" is mapped already: network.maps[0]`}},
		{"quota", "network:\n  rules:\n    - {action: allow, hosts: [a.test], quota: {bytes: lots}}", []string{`config.yaml:4: network.rules[0].quota.bytes: "lots" is no amount of data`}},
		{"rate", "network:\n  rules:\n    - {action: allow, hosts: [a.test], rate: {per_second: fast}}", []string{`config.yaml:4: network.rules[0].rate.per_second: want a number, got the text "fast"`}},
		{"limits", "network:\n  limits: {flows: 0}", []string{"config.yaml:3: network.limits.flows: 0 is out of range: use 1 to 4096"}},
		{"secret without hosts", "secrets:\n  - {name: a, from: {env: A}}", []string{"config.yaml:3: secrets[0].hosts: the secret is bound to no host: name those that may get it"}},
		{"secret of two sources", "secrets:\n  - name: a\n    from: {env: A, file: /x}\n    hosts: [a.test]", []string{"config.yaml:3: secrets[0].from: there are 2 sources"}},
		{"two at once", "network: {dns: x}\nsecrets:\n  - {name: a, from: {env: A}}", []string{"config.yaml:2: network.dns", "config.yaml:4: secrets[0].hosts"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, "version: 1\n"+tt.file+"\n", nil)
			got := problems(t, err)
			require.Len(t, got, len(tt.want), "%q", got)
			for i, want := range tt.want {
				assert.True(t, strings.HasPrefix(got[i], want), "%q\nwant %q", got[i], want)
			}
		})
	}
}

func TestAValueThatStandsWhereItDoesNotBelongIsNotPrinted(t *testing.T) {
	const value = "hunter2-hunter2"
	for _, block := range []string{
		value, "[" + value + "]", "{name: a, value: " + value + ", hosts: [a.test]}", "{name: a, from: " + value + ", hosts: [a.test]}",
		"{name: a, from: {env: " + value + "}, hosts: [a.test]}", "{name: a, from: {file: " + value + "}, hosts: [a.test]}",
		"{name: a, from: {command: " + value + "}, hosts: [a.test]}", "{name: a, from: {keyring: " + value + "}, hosts: [a.test]}",
		"{name: a, from: {env: [" + value + "]}, hosts: [a.test]}", "{name: a, from: {env: A, lifetime: " + value + "}, hosts: [a.test]}",
		"{name: a, from: {command: [{x: " + value + "}]}, hosts: [a.test]}", "{name: a, plain_http: " + value + ", from: {env: A}, hosts: [a.test]}",
	} {
		_, err := load(t, "version: 1\nsecrets:\n  - "+block+"\n", nil)
		require.Error(t, err, block)
		assert.NotContains(t, err.Error(), value, block)
		assert.Contains(t, err.Error(), ":3: ")
	}
	_, err := load(t, "version: 1\nsecrets: "+value+"\n", nil)
	require.Error(t, err)
	assert.NotContains(t, err.Error(), value)
	_, err = load(t, "", nil, "--secret=A="+value+"@a.test")
	require.Error(t, err)
	assert.NotContains(t, err.Error(), value)
}

func TestNeitherAFileNorTheEnvironmentHoldsAValueThatIsShown(t *testing.T) {
	t.Setenv("TOKEN_FOR_THE_TEST", "hunter2-hunter2")
	path := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(path, []byte("hunter2-hunter2"), 0o600))
	c, err := load(t, "version: 1\nsecrets:\n  - {name: f, from: {file: "+path+"}, hosts: [a.test]}\n", os.Environ(), "--secret=TOKEN_FOR_THE_TEST@a.test")
	require.NoError(t, err)
	text, err := c.YAML(true)
	require.NoError(t, err)
	assert.NotContains(t, string(text), "hunter2")
	assert.Contains(t, string(text), "name: TOKEN_FOR_THE_TEST # flag --secret\n")
	assert.NotContains(t, fmt.Sprint(c.Entries()), "hunter2")
}

func TestFlagsAddToTheNetwork(t *testing.T) {
	c, err := load(t, "version: 1\nnetwork:\n  rules:\n    - {action: deny, hosts: [bad.test]}\n", nil,
		"--allow-host", "a.test", "--allow-host", "*.b.test:8443", "--dns=open", "--tcp-map", "pg.internal:5432=127.0.0.1:5432", "--secret", "TOKEN@a.test,b.test:8443")
	require.NoError(t, err)
	assert.Equal(t, []policy.Rule{
		{Action: policy.ActionDeny, Hosts: []string{"bad.test"}},
		{Name: "--allow-host a.test", Action: policy.ActionAllow, Hosts: []string{"a.test"}},
		{Name: "--allow-host *.b.test:8443", Action: policy.ActionAllow, Hosts: []string{"*.b.test"}, Ports: []string{"8443"}},
		{Name: "--tcp-map pg.internal:5432", Action: policy.ActionAllow, Protocols: []policy.Protocol{policy.TCP}, Hosts: []string{"pg.internal"}, Ports: []string{"5432"}},
	}, c.Network.Rules)
	assert.Equal(t, []Map{{From: "pg.internal:5432", To: "127.0.0.1:5432"}}, c.Network.Maps)
	assert.Equal(t, DNSOpen, c.Network.DNS)
	assert.Equal(t, []secret.Spec{{Name: "TOKEN", From: secret.From{Env: "TOKEN"}, Hosts: []string{"a.test", "b.test:8443"}, GuestEnv: []string{"TOKEN"}}}, c.SecretSpecs())
	assert.Equal(t, "flag --allow-host", c.Origins()["network.rules[1].hosts"].String())

	for _, tt := range []struct{ flag, want string }{
		{"--allow-host=https://a.test/", `flag --allow-host: network.rules: "https://a.test/" is no host: leave out the scheme and the path: write --allow-host HOST[:PORT]`},
		{"--allow-host=a_!", "flag --allow-host: network.rules[0].hosts[0]: "},
		{"--tcp-map=x", `flag --tcp-map: network.rules: "x" has no =: write --tcp-map HOST:PORT=TO`},
		{"--tcp-map=x=y", `flag --tcp-map: network.rules: "x" is no host:port: write --tcp-map HOST:PORT=TO`},
		{"--secret=TOKEN", "flag --secret: secrets: the secret is bound to no host: write --secret NAME@HOST[,HOST]"},
	} {
		_, err := load(t, "", nil, tt.flag)
		got := problems(t, err)
		require.Len(t, got, 1, "%q", got)
		assert.True(t, strings.HasPrefix(got[0], tt.want), got[0])
	}
}

func TestListsOfPathsAreInTheEnvironmentToo(t *testing.T) {
	c, err := load(t, "", []string{"HOME=/h", "GONDOLIN_NETWORK_KNOWN_HOSTS=/a,~/b"})
	require.NoError(t, err)
	assert.Equal(t, []string{"/a", "/h/b"}, c.Network.KnownHosts)
	_, err = load(t, "", []string{"GONDOLIN_NETWORK_SSH_KEYS=x", "GONDOLIN_NETWORK_RULES=x"})
	assert.Equal(t, []string{
		"environment variable GONDOLIN_NETWORK_RULES: it is unknown: network.rules are set in the file, or with --allow-host, --ssh-allow-host and --tcp-map",
		`environment variable GONDOLIN_NETWORK_SSH_KEYS: "x" is a relative path: make it absolute or begin it with ~/`,
	}, problems(t, err))
}

func TestWhatIsProbablyNotMeantIsAWarningWithItsLine(t *testing.T) {
	c, err := load(t, `version: 1
network:
  rules:
    - {action: allow, hosts: ["*"], methods: [GET]}
    - {action: allow, hosts: [a.test], methods: [GET]}
  maps:
    - {from: "pg.internal:5432", to: "127.0.0.1:5432"}
secrets:
  - {name: x, from: {env: X}, hosts: ["b.test:9"]}
`, nil)
	require.NoError(t, err)
	var got []string
	for _, p := range c.Warnings() {
		p.Name = "config.yaml"
		got = append(got, p.String())
	}
	require.Len(t, got, 4, "%q", got)
	assert.Contains(t, got[0], "config.yaml:4: network.rules[0].hosts[0]: every host on the internet is allowed")
	assert.Contains(t, got[1], "config.yaml:5: network.rules[1]: no request reaches the rule")
	assert.Contains(t, got[2], "config.yaml:7: network.maps[0].from: no rule allows tcp to pg.internal:5432")
	assert.Contains(t, got[3], `config.yaml:9: secrets[0].hosts[0]: no rule allows "b.test:9"`)
}

func TestPoolThatDoesNotHoldWhatWasAskedForIsWarnedOf(t *testing.T) {
	c, err := load(t, "version: 1\npool:\n  size: 4\n", nil)
	require.NoError(t, err)
	require.Len(t, c.Warnings(), 1)
	assert.Contains(t, c.Warnings()[0].String(), "pool.memory: 4GiB holds 2 of the 4 sessions of pool.size, which have 2GiB each")
	assert.Contains(t, c.Warnings()[0].String(), "raise it to 8GiB")
	c, err = load(t, "version: 1\npool:\n  size: 4\n  memory: 8GiB\n", nil)
	require.NoError(t, err)
	assert.Empty(t, c.Warnings())
}

// The examples of lists are comments in full.yaml, since by default there is nothing.
func TestTheExamplesOfTheNetworkInTheFullFileLoad(t *testing.T) {
	full, err := Example("full")
	require.NoError(t, err)
	_, text, found := strings.Cut(string(full), "\nnetwork:\n")
	require.True(t, found)
	text, _, found = strings.Cut(text, "\naudit:\n")
	require.True(t, found)
	list := regexp.MustCompile(`(?m)^( *)#   (-? .*)$`).ReplaceAllString(text, "$1  $2")
	for _, empty := range []string{"rules", "profiles", "maps", "secrets", "listen"} {
		list = strings.Replace(list, empty+": []", "", 1)
	}
	// The key stands after its examples: put it before them.
	for key, first := range map[string]string{"  rules:\n": "    - name: api ", "  profiles:\n": "    - {name: package-registries", "  maps:\n": "    - {from: \"pg", "secrets:\n": "  - name: api-token", "  listen:\n": "    - at: 127.0.0.1:8080"} {
		require.Contains(t, list, first)
		list = strings.Replace(list, first, key+first, 1)
	}
	c, err := load(t, "version: 1\nnetwork:\n"+strings.ReplaceAll(list, "hosts: [...]", "hosts: [a.test]"), []string{"HOME=/h"})
	require.NoError(t, err, "%s", list)
	assert.Len(t, c.Network.Rules, 3)
	assert.Len(t, c.Network.Profiles, 2)
	assert.Len(t, c.Network.Maps, 1)
	assert.Len(t, c.Secrets, 1)
	assert.Equal(t, []Listen{{At: "127.0.0.1:8080", Port: 3000}}, c.Ingress.Listen)
}
