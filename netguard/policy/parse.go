package policy

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// ParseRequest reads what a person or an agent asks about, for `policy explain`
// and the policy tool. kind is:
//
//	http  [METHOD] URL, with the scheme http, https, ws or wss; GET if not said
//	tcp   HOST:PORT
//	ssh   [ssh ][USER@]HOST[:PORT] [COMMAND]; without a command a shell is meant
//	dns   NAME
//
// An empty kind is guessed from the value. The result still has to be judged.
func ParseRequest(kind, value string) (Request, error) {
	value = strings.TrimSpace(value)
	if kind == "" {
		kind = guess(value)
	}
	switch kind {
	case "http":
		return parseHTTP(value)
	case "tcp":
		host, port, err := splitPort(value, 0)
		return Request{Protocol: TCP, Host: host, Port: port}, err
	case "ssh":
		return parseSSH(value)
	case "dns":
		return Request{Protocol: DNS, Host: value}, nil
	}
	return Request{}, fmt.Errorf("%s is no kind of request: use http, tcp, ssh or dns", quote(kind))
}

func guess(value string) string {
	first, rest, words := strings.Cut(value, " ")
	switch {
	case strings.HasPrefix(value, "ssh://"), strings.HasPrefix(value, "ssh "):
		return "ssh"
	case strings.Contains(value, "://"):
		return "http"
	case words && rest != "", strings.Contains(first, "@"):
		return "ssh"
	case strings.Contains(value, ":"):
		return "tcp"
	}
	return "dns"
}

func parseHTTP(value string) (Request, error) {
	method, address, ok := strings.Cut(value, " ")
	if !ok {
		method, address = "GET", value
	}
	u, err := url.Parse(strings.TrimSpace(address))
	if err != nil {
		return Request{}, fmt.Errorf("%s is no URL", quote(address))
	}
	proto := Protocol(strings.ToLower(u.Scheme))
	if !isHTTP(proto) {
		return Request{}, fmt.Errorf("the URL %s does not begin with http://, https://, ws:// or wss://", quote(u.Redacted()))
	}
	port := standardPort(proto)
	if u.Port() != "" {
		if port, err = parsePort(u.Port()); err != nil {
			return Request{}, err
		}
	}
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	return Request{Protocol: proto, Host: u.Hostname(), Port: port, HTTP: HTTPCall{Method: method, Path: path, Query: u.RawQuery}}, nil
}

func parseSSH(value string) (Request, error) {
	value = strings.TrimPrefix(strings.TrimSpace(strings.TrimPrefix(value, "ssh ")), "ssh://")
	target, command, _ := strings.Cut(value, " ")
	user, host, ok := strings.Cut(target, "@")
	if !ok {
		user, host = "", target
	}
	call := SSHCall{Kind: SSHExec, Command: strings.TrimSpace(command), User: user}
	if call.Command == "" {
		call.Kind = SSHShell
	}
	host, port, err := splitPort(host, standardPort(SSH))
	return Request{Protocol: SSH, Host: host, Port: port, SSH: call}, err
}

// splitPort takes a port off a host; without a default it must be there.
func splitPort(s string, standard uint16) (string, uint16, error) {
	host, port, err := net.SplitHostPort(s)
	switch {
	case err == nil:
		n, err := parsePort(port)
		return host, n, err
	case standard == 0:
		return "", 0, fmt.Errorf("%s is no HOST:PORT", quote(s))
	}
	return s, standard, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, errors.New(quote(s) + " is no port: use 1 to 65535")
	}
	return uint16(n), nil
}
