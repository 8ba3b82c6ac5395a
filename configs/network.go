package configs

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// What Network.DNS may say; see netguard.DNSMode.
const (
	DNSSynthetic = "synthetic"
	DNSTrusted   = "trusted"
	DNSOpen      = "open"
)

// What Network.Proxy may say.
const (
	ProxyEnvironment = "environment" // HTTPS_PROXY, HTTP_PROXY and NO_PROXY
	ProxyNone        = "none"
)

// Network says what sessions may reach. By default that is nothing.
type Network struct {
	Profiles   []policy.ProfileSpec `koanf:"profiles" yaml:"profiles" json:"profiles"`
	Rules      []policy.Rule        `koanf:"rules" yaml:"rules" json:"rules"`
	DNS        string               `koanf:"dns" yaml:"dns" json:"dns"`
	Maps       []Map                `koanf:"maps" yaml:"maps" json:"maps"`
	KnownHosts []string             `koanf:"known_hosts" yaml:"known_hosts" json:"known_hosts"` // absolute paths, as are the next lists; none: the user's and the system's
	SSHAgent   bool                 `koanf:"ssh_agent" yaml:"ssh_agent" json:"ssh_agent"`
	SSHKeys    []string             `koanf:"ssh_keys" yaml:"ssh_keys" json:"ssh_keys"`
	UpstreamCA []string             `koanf:"upstream_ca" yaml:"upstream_ca" json:"upstream_ca"`
	Proxy      string               `koanf:"proxy" yaml:"proxy" json:"proxy"`
	Limits     NetworkLimits        `koanf:"limits" yaml:"limits" json:"limits"`
}

// NetworkLimits bound what a session's guest can drive; see netguard.Limits, whose defaults
// these are.
type NetworkLimits struct {
	Flows    int      `koanf:"flows" yaml:"flows" json:"flows"`
	HalfOpen int      `koanf:"half_open" yaml:"half_open" json:"half_open"`
	Names    int      `koanf:"names" yaml:"names" json:"names"`
	Sniff    Duration `koanf:"sniff" yaml:"sniff" json:"sniff"`
	Idle     Duration `koanf:"idle" yaml:"idle" json:"idle"`
}

// Map leads what a guest connects to at From to a place of the operator's choice.
type Map struct {
	From string `koanf:"from" yaml:"from" json:"from"` // host:port
	To   string `koanf:"to" yaml:"to" json:"to"`       // host:port or unix:/path
}

// Split takes From apart.
func (m Map) Split() (host string, port uint16, err error) { return splitHostPort(m.From) }

// Policy is the network policy as package policy compiles it, which it does without a
// mistake after Load.
func (n Network) Policy() policy.Spec { return policy.Spec{Profiles: n.Profiles, Rules: n.Rules} }

// Audit says what record is kept.
type Audit struct {
	Enabled  bool     `koanf:"enabled" yaml:"enabled" json:"enabled"`
	Dir      string   `koanf:"dir" yaml:"dir" json:"dir"`
	FileSize Size     `koanf:"file_size" yaml:"file_size" json:"file_size"`
	Files    int      `koanf:"files" yaml:"files" json:"files"` // of one session
	Keep     Duration `koanf:"keep" yaml:"keep" json:"keep"`
}

// profileList and ruleList are the keys of policy.ProfileSpec and policy.Rule. Only their types
// are judged here: package policy does the rest, in checkNetwork.
var profileList = &list{keys: table{
	{path: "name", kind: kindText, need: true, help: "give one of none, package-registries, git-hosts"},
	{path: "hosts", kind: kindWords, optional: true, help: "hosts as in a rule"},
}}

var ruleList = &list{
	keys: table{
		{path: "name", kind: kindText, optional: true, help: "name in answers and records"},
		{path: "action", kind: kindText, optional: true, help: "allow, deny or ask"},
		{path: "protocols", kind: kindWords, optional: true, help: "http, https, ws, wss, ssh, tcp, dns"},
		{path: "hosts", kind: kindWords, optional: true, help: "names, *.names, *, addresses or CIDR ranges"},
		{path: "ports", kind: kindWords, optional: true, help: "443, 8000-8100 or *"},
		{path: "methods", kind: kindWords, optional: true, help: "of HTTP"},
		{path: "paths", kind: kindWords, optional: true, help: "globs of paths"},
		{path: "ssh.git", kind: kindWords, optional: true, help: "git-upload-pack, git-receive-pack, git-upload-archive"},
		{path: "ssh.repositories", kind: kindWords, optional: true, help: "globs of repositories"},
		{path: "ssh.commands", kind: kindWords, optional: true, help: "globs of command lines"},
		{path: "ssh.shell", kind: kindBool, optional: true, help: "whether shells are allowed"},
		{path: "ssh.subsystems", kind: kindWords, optional: true, help: "such as sftp"},
		{path: "ssh.forwards", kind: kindWords, optional: true, help: "globs of host:port"},
		{path: "when", kind: kindText, optional: true, help: "CEL expression over the request", check: notEmpty},
		{path: "allow_addresses", kind: kindWords, optional: true, help: "addresses that are blocked otherwise"},
		{path: "quota.bytes", kind: kindBytes, optional: true, help: "bytes of a session, both ways together"},
		{path: "quota.requests", kind: kindInt, optional: true, help: "requests of a session"},
		{path: "rate.per_second", kind: kindNumber, optional: true, help: "requests a second"},
		{path: "rate.burst", kind: kindInt, optional: true, help: "requests at once"},
	},
	flags: []listFlag{
		{name: "allow-host", form: "HOST[:PORT]", parse: parseAllowHost,
			help: "let the machine speak HTTP and HTTPS to a host (name, *.name or address), may be given several times"},
		{name: "ssh-allow-host", form: "HOST[:PORT]", parse: parseSSHAllowHost,
			help: "let the machine run commands on a host over SSH (no shell, no forwarding), may be given several times"},
		{name: "tcp-map", form: mapForm, parse: parseMapRule},
	},
}

// parseAllowHost makes a rule of HOST[:PORT].
func parseAllowHost(text string) (map[string][]string, error) {
	return hostRule("--allow-host ", text)
}

// parseSSHAllowHost makes a rule of HOST[:PORT] that is about SSH.
func parseSSHAllowHost(text string) (map[string][]string, error) {
	rule, err := hostRule("--ssh-allow-host ", text)
	if err == nil {
		rule["ssh.commands"] = []string{"**"}
	}
	return rule, err
}

func hostRule(flag, text string) (map[string][]string, error) {
	host, port := text, ""
	if h, p, err := net.SplitHostPort(text); err == nil {
		host, port = h, p
	}
	switch {
	case strings.Contains(text, "/"):
		return nil, fmt.Errorf("%s is no host: leave out the scheme and the path", quote(text))
	case host == "":
		return nil, fmt.Errorf("%s names no host", quote(text))
	}
	rule := map[string][]string{"name": {flag + shortened(text)}, "action": {string(policy.ActionAllow)}, "hosts": {strings.Trim(host, "[]")}}
	if port != "" {
		rule["ports"] = []string{port}
	}
	return rule, nil
}

const mapForm kind = "HOST:PORT=TO"

var mapList = &list{
	keys: table{
		{path: "from", kind: kindText, need: true, help: "give host:port as the machine sees it", check: checkMapFrom},
		{path: "to", kind: kindText, need: true, help: "give host:port or unix:/path", check: checkMapTo},
	},
	flags: []listFlag{{name: "tcp-map", form: mapForm, parse: parseMap,
		help: "lead connections of the machine to HOST:PORT on to TO (host:port or unix:/path), and allow them; may be given several times"}},
	whole: func(l *loader, blocks []*block) {
		seen := map[string]*block{}
		for _, b := range blocks {
			from := strings.ToLower(b.text("from"))
			if first := seen[from]; first != nil && from != "" {
				l.report(Problem{Origin: b.origins["from"], Key: b.key("from"), Message: fmt.Sprintf("%s is mapped already: %s (%s)", quote(from), first.name, first.origins["from"])})
			} else {
				seen[from] = b
			}
		}
	},
}

func parseMap(text string) (map[string][]string, error) {
	from, to, ok := strings.Cut(text, "=")
	if !ok {
		return nil, fmt.Errorf("%s has no =", quote(text))
	}
	return map[string][]string{"from": {from}, "to": {to}}, nil
}

// parseMapRule makes the rule that allows what --tcp-map maps.
func parseMapRule(text string) (map[string][]string, error) {
	from, _, ok := strings.Cut(text, "=")
	if !ok {
		return nil, fmt.Errorf("%s has no =", quote(text))
	}
	host, port, err := splitHostPort(from)
	if err != nil {
		return nil, err
	}
	return map[string][]string{
		"name": {"--tcp-map " + shortened(from)}, "action": {string(policy.ActionAllow)}, "protocols": {string(policy.TCP)},
		"hosts": {host}, "ports": {strconv.Itoa(int(port))},
	}, nil
}

func splitHostPort(text string) (host string, port uint16, err error) {
	host, p, err := net.SplitHostPort(text)
	if err != nil || host == "" {
		return "", 0, fmt.Errorf("%s is no host:port", quote(text))
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%s has no port from 1 to 65535", quote(text))
	}
	return host, uint16(n), nil
}

func checkMapFrom(v any, text string) string {
	host, port, err := splitHostPort(v.(string))
	if err != nil {
		return err.Error()
	}
	if _, err := policy.ParseHost(host); err != nil {
		return err.Error()
	}
	if port == 53 {
		return quote(text) + " is for DNS: choose another port"
	}
	return ""
}

func checkMapTo(v any, text string) string {
	if socket, ok := strings.CutPrefix(v.(string), "unix:"); ok {
		if !strings.HasPrefix(socket, "/") {
			return quote(text) + " is no socket: write unix:/ and the rest of an absolute path"
		}
		return ""
	}
	if _, _, err := splitHostPort(v.(string)); err != nil {
		return err.Error() + " and no unix:/path"
	}
	return ""
}
