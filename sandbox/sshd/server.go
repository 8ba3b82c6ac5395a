package sshd

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/net/netutil"
)

// Bounds of a server.
const (
	maxConns    = 32
	maxChannels = 64 // of one connection
	loginTime   = 20 * time.Second
	acceptPause = time.Second // after a connection that could not be taken
)

// Machine is where commands run.
type Machine interface {
	// Start starts a command; its end is also that of ctx.
	Start(ctx context.Context, c Command) (Process, error)
	// Dial connects to a port of the machine's loopback.
	Dial(ctx context.Context, port uint16) (net.Conn, error)
}

// Options of a server. Host, Key and Machine are required.
type Options struct {
	Host    ssh.Signer    // the server's key
	Key     ssh.PublicKey // the client's
	Machine Machine
	Forward bool         // let clients connect to ports of the machine's loopback
	Logger  *slog.Logger // default: discard
}

// Server serves SSH on one listener.
type Server struct {
	opts   Options
	ln     net.Listener
	config *ssh.ServerConfig
	life   context.Context
	end    context.CancelFunc

	mu     sync.Mutex
	closed bool
	conns  sync.WaitGroup
}

// New makes a server for a listener, which it owns from then on.
func New(ctx context.Context, ln net.Listener, o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{opts: o, ln: netutil.LimitListener(ln, maxConns)}
	s.life, s.end = context.WithCancel(ctx)
	want := o.Key.Marshal()
	s.config = &ssh.ServerConfig{
		MaxAuthTries: 6, ServerVersion: "SSH-2.0-gondolin",
		PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if subtle.ConstantTimeCompare(key.Marshal(), want) != 1 {
				return nil, errors.New("this key belongs to no session")
			}
			return &ssh.Permissions{}, nil
		},
	}
	s.config.AddHostKey(o.Host)
	return s
}

// Serve serves the listener until Close.
func (s *Server) Serve() error {
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			// Such as too many open files: that passes.
			s.opts.Logger.Warn("a connection for SSH could not be taken", "err", err)
			select {
			case <-time.After(acceptPause):
				continue
			case <-s.life.Done():
				return err
			}
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			conn.Close()
			return nil
		}
		s.conns.Go(func() { s.serve(conn) })
		s.mu.Unlock()
	}
}

// Close ends the listener, the connections and their commands, and waits for them.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	err := s.ln.Close()
	s.end()
	s.conns.Wait()
	return err
}

// serve serves one connection.
func (s *Server) serve(raw net.Conn) {
	defer raw.Close()
	defer context.AfterFunc(s.life, func() { raw.Close() })()
	_ = raw.SetDeadline(time.Now().Add(loginTime))
	conn, channels, requests, err := ssh.NewServerConn(raw, s.config)
	if err != nil {
		s.opts.Logger.Debug("a login over SSH failed", "err", err)
		return
	}
	_ = raw.SetDeadline(time.Time{})
	ctx, cancel := context.WithCancel(s.life)
	var open sync.WaitGroup
	defer open.Wait()
	defer cancel()
	defer conn.Close()
	// Among them tcpip-forward: nothing here listens for the machine.
	open.Go(func() { ssh.DiscardRequests(requests) })
	places := make(chan struct{}, maxChannels)
	for c := range channels {
		select {
		case places <- struct{}{}:
			open.Go(func() {
				defer func() { <-places }()
				s.channel(ctx, conn.User(), c)
			})
		default:
			_ = c.Reject(ssh.ResourceShortage, fmt.Sprintf("%d channels of this connection are open, the most that there may be", maxChannels))
		}
	}
}

// channel serves one channel.
func (s *Server) channel(ctx context.Context, user string, c ssh.NewChannel) {
	switch c.ChannelType() {
	case "session":
		ch, requests, err := c.Accept()
		if err != nil {
			return
		}
		newSession(s, user, ch).serve(ctx, requests)
	case "direct-tcpip":
		s.forward(ctx, c)
	default:
		_ = c.Reject(ssh.UnknownChannelType, "only sessions are offered")
	}
}

// directTCPIP is the payload of a direct-tcpip channel; RFC 4254, 7.2.
type directTCPIP struct {
	Host       string
	Port       uint32
	Origin     string
	OriginPort uint32
}

// forward connects a channel to a port of the machine's loopback.
func (s *Server) forward(ctx context.Context, c ssh.NewChannel) {
	var to directTCPIP
	switch err := ssh.Unmarshal(c.ExtraData(), &to); {
	case err != nil || to.Port == 0 || to.Port > 65535:
		_ = c.Reject(ssh.ConnectionFailed, "no such port")
		return
	case !s.opts.Forward:
		_ = c.Reject(ssh.Prohibited, "forwarding is off; the operator turns it on with ssh.forward")
		return
	case !slices.Contains([]string{"localhost", "127.0.0.1", "::1"}, strings.ToLower(to.Host)):
		_ = c.Reject(ssh.Prohibited, "only the loopback of the sandbox is offered: use localhost")
		return
	}
	conn, err := s.opts.Machine.Dial(ctx, uint16(to.Port))
	if err != nil {
		_ = c.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	defer conn.Close()
	ch, requests, err := c.Accept()
	if err != nil {
		return
	}
	defer ch.Close()
	join(ctx, ch, requests, conn)
}
