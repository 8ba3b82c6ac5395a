package main

import (
	"context"
	"errors"
	"syscall"

	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/tools"
)

// reach opens what the configuration offers of a new session to people: addresses that lead to
// its HTTP servers, and SSH. A session without it works; the log says what is missing.
func (b *sandboxes) reach(ctx context.Context, s *session) {
	c := b.config
	for _, l := range c.Ingress.Listen {
		i, err := s.Ingress(ctx, sandbox.IngressOptions{Listen: l.At, Port: uint16(l.Port), Hosts: c.Ingress.Hosts})
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			b.log.Warn("an address of ingress.listen is taken, perhaps by an earlier session: it does not lead to this one", "session", s.ID(), "at", l.At)
		case err != nil:
			b.log.Error("an address of ingress.listen does not lead to the session", "session", s.ID(), "at", l.At, "error", err)
		default:
			b.log.Info("HTTP servers of the session are here", "session", s.ID(), "url", i.URL, "port", l.Port)
			b.tell("port %d of the machine is at %s", l.Port, i.URL)
		}
	}
	if !c.SSH.Enabled {
		return
	}
	way, err := s.SSH(ctx, sandbox.SSHOptions{Forward: c.SSH.Forward})
	if err != nil {
		b.log.Error("there is no SSH into the session", "session", s.ID(), "error", err)
		return
	}
	b.log.Info("SSH leads into the session", "session", s.ID(), "command", way.Command())
	b.tell("the machine is open to %s", way.Command())
}

// Expose is for agents, and so on the loopback only.
func (s *session) Expose(ctx context.Context, port int) (tools.Exposed, bool, error) {
	i, err := s.Session.Expose(ctx, uint16(port), sandbox.IngressOptions{Hosts: s.hosts})
	if err != nil {
		return tools.Exposed{}, false, err
	}
	return tools.Exposed{Port: port, URL: i.URL}, i.Answers(ctx), nil
}

// Exposed are those of ingress.listen too, but for those beyond the loopback: their URLs hold
// tokens that are the operator's to give away.
func (s *session) Exposed() []tools.Exposed {
	var list []tools.Exposed
	for _, i := range s.Session.Exposed() {
		if i.Secret {
			continue
		}
		list = append(list, tools.Exposed{Port: int(i.Port), URL: i.URL})
	}
	return list
}

// Unexpose closes what an agent has exposed, and nothing of the operator's.
func (s *session) Unexpose(port int) (bool, error) {
	for _, i := range s.Session.Exposed() {
		if int(i.Port) == port && i.Own {
			return true, i.Close()
		}
	}
	return false, nil
}
