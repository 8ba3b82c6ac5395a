package sshd

import (
	"context"
	"errors"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
)

// Bounds of one session.
const (
	maxEnv      = 64
	maxEnvBytes = 32 << 10
	maxCommand  = 128 << 10
)

// Command is what a client wants to run: Line with the user's shell, a login shell when that
// is empty, or an SFTP server.
type Command struct {
	User           string
	Line           string
	SFTP           bool
	Env            map[string]string
	TTY            *Size // nil: none
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Size is that of a terminal, in characters.
type Size struct{ Rows, Cols uint16 }

// Exit tells how a command ended.
type Exit struct {
	Code   int
	Signal string // without SIG; empty: it ended by itself
}

// Process is a command that runs.
type Process interface {
	Wait() (Exit, error)
	Signal(ctx context.Context, name string) error // without SIG
	Resize(ctx context.Context, size Size) error
}

// session is one channel of that type.
type session struct {
	server *Server
	ch     ssh.Channel
	cmd    Command
	bytes  int // of cmd.Env

	process  Process // once started
	followed bool
	waiting  sync.WaitGroup
}

func newSession(s *Server, user string, ch ssh.Channel) *session {
	return &session{server: s, ch: ch, cmd: Command{User: user, Env: map[string]string{}}}
}

// serve answers the channel's requests until it closes.
func (s *session) serve(ctx context.Context, requests <-chan *ssh.Request) {
	ctx, cancel := context.WithCancel(ctx)
	defer s.waiting.Wait()
	defer cancel() // the client has gone: so does its command
	defer s.ch.Close()
	for r := range requests {
		ok := s.request(ctx, r)
		if r.WantReply {
			_ = r.Reply(ok, nil)
		}
		if s.process != nil && !s.followed {
			s.followed = true
			s.follow()
		}
	}
}

var (
	envName    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
	signalName = regexp.MustCompile(`^[A-Z0-9]{1,16}$`)
)

// request does what one request asks for; RFC 4254, 6.
func (s *session) request(ctx context.Context, r *ssh.Request) bool {
	switch r.Type {
	case "env":
		var m struct{ Name, Value string }
		return ssh.Unmarshal(r.Payload, &m) == nil && s.setenv(m.Name, m.Value)
	case "pty-req":
		var m struct {
			Term                      string
			Cols, Rows, Width, Height uint32
			Modes                     string
		}
		if s.process != nil || ssh.Unmarshal(r.Payload, &m) != nil {
			return false
		}
		s.cmd.TTY = sizeOf(m.Cols, m.Rows)
		if m.Term != "" && len(m.Term) <= 64 {
			s.setenv("TERM", m.Term)
		}
		return true
	case "window-change":
		var m struct{ Cols, Rows, Width, Height uint32 }
		return ssh.Unmarshal(r.Payload, &m) == nil && s.process != nil && s.cmd.TTY != nil &&
			s.process.Resize(ctx, *sizeOf(m.Cols, m.Rows)) == nil
	case "signal":
		var m struct{ Name string }
		return ssh.Unmarshal(r.Payload, &m) == nil && s.process != nil && signalName.MatchString(m.Name) &&
			s.process.Signal(ctx, m.Name) == nil
	case "shell":
		return s.start(ctx)
	case "exec":
		var m struct{ Line string }
		if ssh.Unmarshal(r.Payload, &m) != nil || m.Line == "" || len(m.Line) > maxCommand {
			return false
		}
		s.cmd.Line = m.Line
		return s.start(ctx)
	case "subsystem":
		var m struct{ Name string }
		if ssh.Unmarshal(r.Payload, &m) != nil || m.Name != "sftp" {
			return false
		}
		s.cmd.SFTP = true
		return s.start(ctx)
	}
	return false // among them agents and X11
}

func (s *session) setenv(name, value string) bool {
	if s.process != nil || !envName.MatchString(name) || strings.ContainsRune(value, 0) ||
		len(s.cmd.Env) == maxEnv || s.bytes+len(name)+len(value) > maxEnvBytes {
		return false
	}
	s.bytes += len(name) + len(value)
	s.cmd.Env[name] = value
	return true
}

func sizeOf(cols, rows uint32) *Size {
	const most = 1<<16 - 1
	return &Size{Rows: uint16(min(rows, most)), Cols: uint16(min(cols, most))}
}

// start starts the command. What keeps it from starting is for the client's user to read.
func (s *session) start(ctx context.Context) bool {
	if s.process != nil {
		return false
	}
	cmd := s.cmd
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.ch, s.ch, s.ch.Stderr()
	p, err := s.server.opts.Machine.Start(ctx, cmd)
	if err != nil {
		p = notStarted{err}
	}
	s.process = p
	return true
}

// notStarted is a command that could not be started.
type notStarted struct{ err error }

func (n notStarted) Wait() (Exit, error)                  { return Exit{Code: 126}, n.err }
func (n notStarted) Signal(context.Context, string) error { return n.err }
func (n notStarted) Resize(context.Context, Size) error   { return n.err }

// follow waits for the command and tells the client how it ended. It is called once, after
// the reply to the request that started it.
func (s *session) follow() {
	s.waiting.Go(func() {
		defer s.ch.Close()
		exit, err := s.process.Wait()
		if err != nil {
			if exit.Code == 0 {
				exit.Code = 255
			}
			end := "\n"
			if s.cmd.TTY != nil {
				end = "\r\n"
			}
			_, _ = io.WriteString(s.ch.Stderr(), "gondolin: "+err.Error()+end)
		}
		_ = s.ch.CloseWrite()
		if exit.Signal != "" {
			_, _ = s.ch.SendRequest("exit-signal", false, ssh.Marshal(struct {
				Name         string
				Core         bool
				Message, Tag string
			}{Name: exit.Signal}))
			return
		}
		_, _ = s.ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{uint32(exit.Code)}))
	})
}

// join moves bytes between a forwarded channel and its connection until both directions have ended.
func join(ctx context.Context, ch ssh.Channel, requests <-chan *ssh.Request, conn net.Conn) {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { ssh.DiscardRequests(requests) })
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	up := make(chan struct{})
	all.Go(func() {
		defer close(up)
		_, err := io.Copy(conn, ch)
		if half, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
			err = half.CloseWrite()
		}
		if err != nil && !errors.Is(err, io.EOF) {
			conn.Close()
		}
	})
	if _, err := io.Copy(ch, conn); err == nil {
		_ = ch.CloseWrite()
		<-up
	}
	ch.Close()
	conn.Close()
}
