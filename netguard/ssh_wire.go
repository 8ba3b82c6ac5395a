package netguard

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

const (
	maxSSHEnv      = 32   // variables of a channel
	maxSSHEnvValue = 1024 // bytes
	maxSSHPty      = 4096 // bytes of a request for a terminal
	maxSSHEarly    = 16   // signals before the server has begun
)

// Messages of RFC 4254 and RFC 4251's string, as x/crypto/ssh marshals them.
type (
	sshText struct{ Value string }          // exec (6.5), subsystem (6.5), signal (6.9)
	sshEnv  struct{ Name, Value string }    // env (6.4)
	sshExit struct{ Status uint32 }         // exit-status (6.10)
	sshSize struct{ W, H, PxW, PxH uint32 } // window-change (6.7)

	sshKilled struct { // exit-signal (6.10)
		Signal            string
		Core              bool
		Message, Language string
	}

	sshDirect struct { // direct-tcpip (7.2)
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}
)

// parseSSHStart reads a request that starts something on a session channel.
func parseSSHStart(kind string, payload []byte) (policy.SSHCall, error) {
	if kind == "shell" {
		if len(payload) != 0 {
			return policy.SSHCall{}, fmt.Errorf("the request for a shell is malformed")
		}
		return policy.SSHCall{Kind: policy.SSHShell}, nil
	}
	var text sshText
	if err := ssh.Unmarshal(payload, &text); err != nil {
		return policy.SSHCall{}, fmt.Errorf("the SSH request %s is malformed", kind)
	}
	return policy.SSHCall{Kind: policy.SSHKind(kind), Command: text.Value}, nil
}

// parseSSHEnv reads a variable, if it is one that is passed on: the guest's language, and
// the version of git's protocol. Others can change what a command does.
func parseSSHEnv(payload []byte) (sshEnv, bool) {
	var v sshEnv
	if ssh.Unmarshal(payload, &v) != nil || len(v.Value) > maxSSHEnvValue || !plainText(v.Name+v.Value) || len(v.Name) > 64 {
		return sshEnv{}, false
	}
	return v, v.Name == "LANG" || v.Name == "GIT_PROTOCOL" || strings.HasPrefix(v.Name, "LC_")
}

// parseSSHSignal reads the name of a signal: letters, or a local name with @.
func parseSSHSignal(payload []byte) bool {
	var s sshText
	return ssh.Unmarshal(payload, &s) == nil && s.Value != "" && len(s.Value) <= 64 && plainText(s.Value)
}

// parseSSHDirect reads where a direct-tcpip channel leads, and returns the payload to send
// on: without the guest's own address.
func parseSSHDirect(payload []byte) (policy.SSHCall, []byte, error) {
	var d sshDirect
	if err := ssh.Unmarshal(payload, &d); err != nil || d.Host == "" || len(d.Host) > 255 || !plainText(d.Host) || d.Port == 0 || d.Port > 65535 {
		return policy.SSHCall{}, nil, fmt.Errorf("the SSH request to forward a connection is malformed")
	}
	call := policy.SSHCall{Kind: policy.SSHForward, Command: net.JoinHostPort(d.Host, strconv.Itoa(int(d.Port)))}
	d.OriginHost, d.OriginPort = "127.0.0.1", 0
	return call, ssh.Marshal(d), nil
}

// plainText says whether s is printable ASCII.
func plainText(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// oneLine makes a foreign text fit to stand in a message: short, and without what could
// steer a terminal.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	if len(s) > 300 {
		s = s[:300] + "..."
	}
	return s
}
