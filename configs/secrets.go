package configs

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gondolin-go/gondolin/netguard/policy"
	"github.com/gondolin-go/gondolin/netguard/secret"
)

// Secret is a secret.Spec as a configuration writes it. It has no value: it says
// where that comes from.
type Secret struct {
	Name        string         `koanf:"name" yaml:"name" json:"name"`
	From        SecretSource   `koanf:"from" yaml:"from" json:"from"`
	Hosts       []string       `koanf:"hosts" yaml:"hosts,flow" json:"hosts"`
	GuestEnv    []string       `koanf:"guest_env" yaml:"guest_env,flow,omitempty" json:"guest_env,omitempty"`
	In          []secret.Place `koanf:"in" yaml:"in,flow,omitempty" json:"in,omitempty"`
	PlainHTTP   bool           `koanf:"plain_http" yaml:"plain_http" json:"plain_http"`
	Placeholder *SecretShape   `koanf:"placeholder" yaml:"placeholder,omitempty" json:"placeholder,omitempty"`
}

// SecretSource is secret.From.
type SecretSource struct {
	Env      string   `koanf:"env" yaml:"env,omitempty" json:"env,omitempty"`
	File     string   `koanf:"file" yaml:"file,omitempty" json:"file,omitempty"` // absolute
	Command  []string `koanf:"command" yaml:"command,flow,omitempty" json:"command,omitempty"`
	Keyring  string   `koanf:"keyring" yaml:"keyring,omitempty" json:"keyring,omitempty"`
	Lifetime Duration `koanf:"lifetime" yaml:"lifetime,omitempty" json:"lifetime,omitempty"`
	Timeout  Duration `koanf:"timeout" yaml:"timeout,omitempty" json:"timeout,omitempty"`
}

// SecretShape is secret.Shape.
type SecretShape struct {
	Prefix string `koanf:"prefix" yaml:"prefix,omitempty" json:"prefix,omitempty"`
	Length int    `koanf:"length" yaml:"length,omitempty" json:"length,omitempty"`
}

// SecretSpecs are the secrets in the terms of package secret.
func (c *Config) SecretSpecs() []secret.Spec { return secretSpecs(c.Secrets) }

func secretSpecs(list []Secret) []secret.Spec {
	var specs []secret.Spec
	for _, s := range list {
		spec := secret.Spec{
			Name: s.Name, Hosts: s.Hosts, GuestEnv: s.GuestEnv, In: s.In, PlainHTTP: s.PlainHTTP,
			From: secret.From{
				Env: s.From.Env, File: s.From.File, Command: s.From.Command, Keyring: s.From.Keyring,
				Lifetime: time.Duration(s.From.Lifetime), Timeout: time.Duration(s.From.Timeout),
			},
		}
		if s.Placeholder != nil {
			spec.Placeholder = secret.Shape(*s.Placeholder)
		}
		specs = append(specs, spec)
	}
	return specs
}

// secretList are the keys of one secret. Somebody may write a value where a name belongs, so
// what stands in these blocks is in no message of ours.
var secretList = &list{
	quiet: true,
	keys: table{
		{path: "name", kind: kindText, need: true, quiet: true, help: "give the secret a name"},
		{path: "from.env", kind: kindText, optional: true, quiet: true, help: "a variable of this computer's environment"},
		{path: "from.file", kind: kindPath, optional: true, quiet: true, help: "a file of this computer"},
		{path: "from.command", kind: kindWords, optional: true, quiet: true, help: "a command of this computer, as a list"},
		{path: "from.keyring", kind: kindText, optional: true, quiet: true, help: "service/account in the keyring"},
		{path: "from.lifetime", kind: kindDuration, low: 1, high: year, optional: true, quiet: true, help: "time after which it is fetched again"},
		{path: "from.timeout", kind: kindDuration, low: 1, high: 600, optional: true, quiet: true, help: "time that the command has"},
		{path: "hosts", kind: kindWords, optional: true, quiet: true, help: "hosts that may get it"},
		{path: "guest_env", kind: kindWords, optional: true, quiet: true, help: "variables of the machine that hold the placeholder"},
		{path: "in", kind: kindWords, optional: true, quiet: true, help: "header, query, path, body"},
		{path: "plain_http", kind: kindBool, def: false, quiet: true, help: "whether it may go out unencrypted"},
		{path: "placeholder.prefix", kind: kindText, optional: true, quiet: true, help: "what the placeholder begins with"},
		{path: "placeholder.length", kind: kindInt, optional: true, quiet: true, help: "length of the placeholder"},
	},
	flags: []listFlag{{name: "secret", form: "NAME@HOST[,HOST]", parse: parseSecret,
		help: "give the machine a placeholder for the environment variable NAME and send its value to these hosts only, may be given several times"}},
}

// parseSecret reads NAME@HOST[,HOST].
func parseSecret(text string) (map[string][]string, error) {
	name, hosts, ok := strings.Cut(text, "@")
	switch {
	case strings.Contains(name, "="):
		return nil, errors.New("a secret's value does not belong on the command line, where others can read it: set it in the environment")
	case !ok || hosts == "":
		return nil, errors.New("the secret is bound to no host")
	}
	return map[string][]string{
		"name": {name}, "from.env": {name}, "guest_env": {name}, "hosts": strings.Split(hosts, ","),
	}, nil
}

// checkNetwork has the packages whose terms these are judge the policy and the secrets. What
// they find in a block that has a mistake already is left out: it may only follow from that.
func (l *loader) checkNetwork() {
	var c Config
	if err := l.ko.Unmarshal("", &c); err != nil {
		l.report(Problem{Message: err.Error()}) // cannot happen: the types were checked
		return
	}
	for _, p := range policy.Check(c.Network.Policy()) {
		if !p.Warning && !l.hasMistake(p.Key) {
			l.report(Problem{Origin: originOf(l.origins, p.Key), Key: p.Key, Message: p.Message, Hint: p.Hint})
		}
	}
	for _, p := range secret.Check(secretSpecs(c.Secrets)) {
		if l.hasMistake(p.Key) {
			continue
		}
		if strings.HasSuffix(p.Key, ".from.keyring") {
			p.Message = "this is no entry of a keyring"
		}
		l.report(Problem{Origin: originOf(l.origins, p.Key), Key: p.Key, Message: p.Message, Hint: p.Hint})
	}
}

// hasMistake says whether the block that a key lies in has one.
func (l *loader) hasMistake(key string) bool {
	for _, blocks := range l.blocks {
		for _, b := range blocks {
			if b.wrong && (key == b.name || strings.HasPrefix(key, b.name+".")) {
				return true
			}
		}
	}
	return false
}

// originOf finds where a key is written, or what it lies in.
func originOf(origins map[string]Origin, key string) Origin {
	for key != "" {
		if o, ok := origins[key]; ok {
			return o
		}
		key = key[:max(0, strings.LastIndexAny(key, ".["))]
	}
	return Origin{Kind: KindDefault}
}

// Warnings are what is no mistake and probably not meant.
func (c *Config) Warnings() []Problem {
	var list []Problem
	for _, p := range policy.Check(c.Network.Policy()) {
		if p.Warning {
			list = append(list, Problem{Origin: originOf(c.origins, p.Key), Key: p.Key, Message: p.Message, Hint: p.Hint})
		}
	}
	if held := int(c.Pool.Memory / c.Limits.Memory); held < c.Pool.Size {
		list = append(list, Problem{
			Origin: originOf(c.origins, "pool.memory"), Key: "pool.memory",
			Message: fmt.Sprintf("%s holds %d of the %d sessions of pool.size, which have %s each", c.Pool.Memory, held, c.Pool.Size, c.Limits.Memory),
			Hint:    fmt.Sprintf("raise it to %s", c.Limits.Memory*Size(c.Pool.Size)),
		})
	}
	p, err := policy.Compile(c.Network.Policy())
	if err != nil {
		return list // cannot happen after Load
	}
	warn := func(key, hint, format string, args ...any) {
		list = append(list, Problem{Origin: originOf(c.origins, key), Key: key, Message: fmt.Sprintf(format, args...), Hint: hint})
	}
	for i, m := range c.Network.Maps {
		host, port, err := m.Split()
		if err == nil && p.Decide(policy.Request{Protocol: policy.TCP, Host: host, Port: port}).Verdict == policy.Deny {
			warn(fmt.Sprintf("network.maps[%d].from", i), fmt.Sprintf("add {action: allow, protocols: [tcp], hosts: [%q], ports: [%d]} to network.rules", host, port),
				"no rule allows tcp to %s, so that nobody gets there", m.From)
		}
	}
	for i, s := range c.Secrets {
		for j, h := range s.Hosts {
			if name := strings.TrimPrefix(h, "*."); name == h && !reachable(p, name) {
				warn(fmt.Sprintf("secrets[%d].hosts[%d]", i, j), "binding a secret to a host does not open it: add a rule", "no rule allows %s", quote(h))
			}
		}
	}
	return list
}

// reachable says whether some request to a host might be allowed.
func reachable(p *policy.Policy, text string) bool {
	host, port, err := splitHostPort(text)
	if err != nil {
		host, port = text, 443
	}
	return p.Possible(host, port, policy.HTTP, policy.HTTPS, policy.WS, policy.WSS).Verdict != policy.Deny
}
