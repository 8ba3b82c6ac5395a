package netguard

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

const (
	// maxSSHKeys are offered to a server, most of which end the connection after six.
	maxSSHKeys = 16
	// maxSSHKeyFile is larger than any private key, in bytes.
	maxSSHKeyFile = 256 << 10
)

// sshLogin has the host's credentials for one login. It is used by one goroutine.
type sshLogin struct {
	s       *sshServer
	agent   net.Conn
	offered int
	notes   []string // what could not be used, for the guest: without paths
}

func (s *sshServer) newLogin() *sshLogin { return &sshLogin{s: s} }

// close ends the connection to the agent.
func (l *sshLogin) close() {
	if l.agent != nil {
		l.agent.Close()
	}
}

func (l *sshLogin) methods() []ssh.AuthMethod {
	return []ssh.AuthMethod{ssh.PublicKeysCallback(func() ([]ssh.Signer, error) { return l.signers(), nil })}
}

// signers are the key files' in their order, then the agent's others.
func (l *sshLogin) signers() []ssh.Signer {
	held := l.agentSigners()
	var out []ssh.Signer
	add := func(s ssh.Signer) {
		for _, o := range out {
			if sameKey(o.PublicKey(), s.PublicKey()) {
				return
			}
		}
		if len(out) < maxSSHKeys {
			out = append(out, s)
		}
	}
	for i, file := range l.s.g.o.SSH.KeyFiles {
		signer, err := readKey(file)
		var locked *ssh.PassphraseMissingError
		switch {
		case err == nil:
			add(signer)
			continue
		case errors.As(err, &locked) && locked.PublicKey != nil:
			found := false
			for _, s := range held {
				if sameKey(s.PublicKey(), locked.PublicKey) {
					add(s)
					found = true
				}
			}
			if found {
				continue
			}
			l.notes = append(l.notes, fmt.Sprintf("key file %d has a passphrase, and the agent does not hold it", i+1))
		default:
			l.notes = append(l.notes, fmt.Sprintf("key file %d cannot be used", i+1))
		}
		l.s.g.o.Log.Warn("an SSH key file cannot be used", "file", file, "error", err)
	}
	for _, s := range held {
		add(s)
	}
	l.offered = len(out)
	return out
}

func sameKey(a, b ssh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) }

// agentSigners asks the host's agent, and leaves it open for signing.
func (l *sshLogin) agentSigners() []ssh.Signer {
	path := l.s.g.o.SSH.Agent
	if path == "" {
		return nil
	}
	fail := func(err error) []ssh.Signer {
		l.notes = append(l.notes, "the agent does not answer")
		l.s.g.o.Log.Warn("the ssh-agent cannot be used", "socket", path, "error", err)
		return nil
	}
	conn, err := net.DialTimeout("unix", path, sshHandshake)
	if err != nil {
		return fail(err)
	}
	l.agent = conn
	if err := conn.SetDeadline(time.Now().Add(sshHandshake)); err != nil {
		return fail(err)
	}
	signers, err := agent.NewClient(conn).Signers()
	if err != nil {
		return fail(err)
	}
	return signers
}

// readKey reads a private key.
func readKey(file string) (ssh.Signer, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSSHKeyFile {
		return nil, errors.New("it is no regular file of a key's size")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return ssh.ParsePrivateKey(text)
}

// describe says what was tried.
func (l *sshLogin) describe() string {
	text := fmt.Sprintf("any of the host's %d keys", l.offered)
	switch l.offered {
	case 0:
		text = "no key, and the host has none for it"
	case 1:
		text = "the host's key"
	}
	if len(l.notes) > 0 {
		text += " (" + strings.Join(l.notes, "; ") + ")"
	}
	return text
}
