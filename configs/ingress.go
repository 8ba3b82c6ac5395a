package configs

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// Ingress says how HTTP servers of sessions are reached.
type Ingress struct {
	Expose bool     `koanf:"expose" yaml:"expose" json:"expose"` // agents may do it, on the loopback
	Listen []Listen `koanf:"listen" yaml:"listen" json:"listen"`
	Hosts  []string `koanf:"hosts" yaml:"hosts" json:"hosts"`
}

// Listen leads an address of this computer to a port of the first session that finds it free.
type Listen struct {
	At   string `koanf:"at" yaml:"at" json:"at"`       // address:port
	Port int    `koanf:"port" yaml:"port" json:"port"` // of the machine; 0: sandbox.ListenersFile says
}

// SSH says whether sessions are reached over SSH.
type SSH struct {
	Enabled bool `koanf:"enabled" yaml:"enabled" json:"enabled"`
	Forward bool `koanf:"forward" yaml:"forward" json:"forward"`
}

var listenList = &list{
	keys: table{
		{path: "at", kind: kindText, need: true, help: "give address:port, such as 127.0.0.1:8080", check: checkListenAt},
		{path: "port", kind: kindInt, low: 0, high: 65535, def: 0},
	},
	flags: []listFlag{{name: "listen", form: "[ADDR:]PORT[=GUESTPORT]", parse: parseListen,
		help: "lead a port of this computer to an HTTP server of the machine, or where /etc/gondolin/listeners in it says; may be given several times"}},
	whole: func(l *loader, blocks []*block) {
		seen := map[string]*block{}
		for _, b := range blocks {
			at := b.text("at")
			if first := seen[at]; first != nil && at != "" {
				l.report(Problem{Origin: b.origins["at"], Key: b.key("at"), Message: fmt.Sprintf("%s is taken already: %s (%s)", quote(at), first.name, first.origins["at"])})
			} else {
				seen[at] = b
			}
		}
	},
}

// parseListen reads [ADDR:]PORT[=GUESTPORT].
func parseListen(text string) (map[string][]string, error) {
	at, port, leads := strings.Cut(text, "=")
	if leads && port == "" {
		return nil, fmt.Errorf("%s names no port of the machine", quote(text))
	}
	if _, err := strconv.ParseUint(at, 10, 16); err == nil {
		at = net.JoinHostPort("127.0.0.1", at)
	}
	block := map[string][]string{"at": {at}}
	if leads {
		block["port"] = []string{port}
	}
	return block, nil
}

func checkListenAt(_ any, text string) string {
	host, port, err := net.SplitHostPort(text)
	if err == nil {
		_, err = netip.ParseAddr(host)
	}
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 {
		return quote(text) + " is no address with a port from 1 to 65535: write 127.0.0.1:8080 or [::1]:8080"
	}
	return ""
}

var ingressHostForm = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,251}[a-zA-Z0-9])?$`)

func checkIngressHost(v any, text string) string {
	if !ingressHostForm.MatchString(v.(string)) {
		return quote(text) + " is no host name: leave out scheme, port and path"
	}
	return ""
}
