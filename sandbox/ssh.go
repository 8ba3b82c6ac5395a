package sandbox

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/gondolin-go/gondolin/guest/wire"
	"github.com/gondolin-go/gondolin/sandbox/sshd"
)

// maxSSH bounds the SSH servers of a session.
const maxSSH = 8

// SSHName is what a session is called in SSH's ConfigFile.
const SSHName = "gondolin"

// SSHOptions say how a session is reached over SSH.
type SSHOptions struct {
	Listen  string // host:port of a loopback address; default: a free port of 127.0.0.1
	Forward bool   // let clients connect to ports of the guest's loopback, as editors do
}

// SSH is a server for a session's shells, commands and files; see package sshd. Its files lie in the
// session's directory and go with it: a key that opens this session and nothing else, the server's key,
// and a configuration that uses both and nothing of the user's own.
type SSH struct {
	Addr       string
	ConfigFile string // for ssh -F

	shut    func() error
	closing sync.Once
	closed  error
}

// Argv is the command line of an OpenSSH program ("ssh", "sftp", "scp") that knows the session
// as SSHName.
func (c *SSH) Argv(program string) []string { return []string{program, "-F", c.ConfigFile} }

// Command is a command line to paste into a shell.
func (c *SSH) Command() string { return "ssh -F " + quoted(c.ConfigFile) + " " + SSHName }

// quoted is a word for a shell.
func quoted(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// Close ends the server, its connections and their commands. The session's end does that too.
func (c *SSH) Close() error {
	c.closing.Do(func() { c.closed = c.shut() })
	return c.closed
}

// SSH opens an SSH server for the session, in the process that holds it. It is closed with the connection to that.
// Of the options Forward counts.
func (a *Attached) SSH(ctx context.Context, o SSHOptions) (*SSH, error) {
	if o.Listen != "" {
		return nil, fmt.Errorf("SSH into the session of another process listens where that one chooses: %w", ErrInvalid)
	}
	var server wire.SSHServer
	st, err := a.outlive(ctx, wire.OpSSH, wire.OpenSSH{Forward: o.Forward}, &server, func() {})
	if err != nil {
		return nil, err
	}
	return &SSH{Addr: server.Addr, ConfigFile: server.ConfigFile, shut: st.Close}, nil
}

// shells counts a session's SSH servers.
type shells struct {
	mu   sync.Mutex
	open int
}

func (s *shells) add(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > 0 && s.open >= maxSSH {
		return false
	}
	s.open += n
	return true
}

// SSH opens an SSH server for the session. It is closed with the session.
func (s *Session) SSH(ctx context.Context, o SSHOptions) (*SSH, error) {
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if !s.shells.add(1) {
		return nil, fmt.Errorf("the session has %d SSH servers, the most that it may have: %w", maxSSH, ErrLimit)
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", o.Listen)
	if err != nil {
		s.shells.add(-1)
		return nil, fmt.Errorf("listening for SSH: %w", err)
	}
	c, server, err := s.newSSH(ln, o)
	if err != nil {
		ln.Close()
		s.shells.add(-1)
		return nil, err
	}
	serving := s.work(func() {
		if err := server.Serve(); err != nil {
			s.log.Warn("serving SSH", "err", err)
		}
	}) && s.work(func() {
		<-s.life.Done()
		c.Close()
	})
	if !serving {
		c.Close()
		return nil, s.closedError()
	}
	s.log.Info("the session is reachable over SSH", "address", c.Addr, "forward", o.Forward)
	return c, nil
}

func (s *Session) newSSH(ln net.Listener, o SSHOptions) (_ *SSH, _ *sshd.Server, err error) {
	if !isLoopback(ln.Addr()) {
		return nil, nil, fmt.Errorf("listening for SSH at %s: use a loopback address: %w", ln.Addr(), ErrInvalid)
	}
	dir, err := os.MkdirTemp(s.dir.path, "ssh-")
	if err != nil {
		return nil, nil, fmt.Errorf("making the directory of SSH's files: %w", err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	host, _, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	client, private, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	ip, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	user, _, _ := strings.Cut(s.opts.User, ":")
	for name, content := range map[string][]byte{
		"id_ed25519":  private,
		"known_hosts": append([]byte(SSHName+" "), ssh.MarshalAuthorizedKey(host.PublicKey())...),
		"config":      []byte(sshConfig(dir, ip, port, user)),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return nil, nil, fmt.Errorf("writing SSH's files: %w", err)
		}
	}
	server := sshd.New(s.life, ln, sshd.Options{
		Host: host, Key: client.PublicKey(), Machine: sshMachine{s}, Forward: o.Forward, Logger: s.log,
	})
	shut := func() error {
		defer s.shells.add(-1)
		err := server.Close()
		return cmp.Or(err, os.RemoveAll(dir))
	}
	return &SSH{Addr: ln.Addr().String(), ConfigFile: filepath.Join(dir, "config"), shut: shut}, server, nil
}

// sshConfig is the configuration for OpenSSH's programs.
func sshConfig(dir, host, port, user string) string {
	file := func(name string) string {
		return `"` + strings.ReplaceAll(filepath.Join(dir, name), "%", "%%") + `"`
	}
	return strings.Join([]string{
		"Host " + SSHName,
		"  HostName " + host,
		"  Port " + port,
		"  User " + user,
		"  HostKeyAlias " + SSHName,
		"  IdentityFile " + file("id_ed25519"),
		"  IdentitiesOnly yes",
		"  IdentityAgent none",
		"  UserKnownHostsFile " + file("known_hosts"),
		"  GlobalKnownHostsFile none",
		"  StrictHostKeyChecking yes",
		"  PreferredAuthentications publickey",
		"  ForwardAgent no",
		"  ForwardX11 no",
		"  ControlPath none",
		"",
	}, "\n")
}

// newKey makes a key pair; private is as OpenSSH writes it.
func newKey() (signer ssh.Signer, private []byte, err error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(key, "gondolin session")
	if err != nil {
		return nil, nil, fmt.Errorf("encoding a key: %w", err)
	}
	if signer, err = ssh.NewSignerFromKey(key); err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	return signer, pem.EncodeToMemory(block), nil
}

// sshMachine runs what SSH clients ask for.
type sshMachine struct{ s *Session }

func (m sshMachine) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	return m.s.dialGuest(ctx, port)
}

func (m sshMachine) Start(ctx context.Context, c sshd.Command) (sshd.Process, error) {
	cmd := Command{
		Shell: c.Line, User: c.User, Env: c.Env, Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr,
	}
	switch {
	case c.SFTP:
		cmd.part = wire.PartSFTP
	case c.Line == "":
		// $0 is the shell that runs this; as a login shell it reads the user's profile.
		cmd.Shell = `exec "$0" -l`
	}
	if c.TTY != nil {
		cmd.TTY = &TTYSize{Rows: c.TTY.Rows, Cols: c.TTY.Cols}
	}
	told := cmd
	if c.SFTP {
		told.Argv = []string{"sftp"}
	}
	ended, err := m.s.visited(told)
	if err != nil {
		return nil, err
	}
	p, err := m.s.Start(ctx, cmd)
	if err != nil {
		ended(Exit{}, err)
		return nil, err
	}
	return sshProcess{p, ended}, nil
}

type sshProcess struct {
	*Process
	ended func(Exit, error)
}

func (p sshProcess) Wait() (sshd.Exit, error) {
	exit, err := p.Process.Wait()
	p.ended(exit, err)
	return sshd.Exit{Code: exit.Code, Signal: strings.TrimPrefix(exit.Signal, "SIG")}, err
}

func (p sshProcess) Resize(ctx context.Context, size sshd.Size) error {
	return p.Process.Resize(ctx, TTYSize{Rows: size.Rows, Cols: size.Cols})
}
