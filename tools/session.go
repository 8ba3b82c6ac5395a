package tools

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"github.com/gondolin-go/gondolin/sandbox"
)

type sessionArgs struct {
	Action      string `json:"action" need:"yes" enum:"create,list,close,reset,fork,snapshot,restore" doc:"create makes another machine, list shows all, close ends one for good, reset replaces one by a new, empty one, fork makes copies of one that runs, snapshot keeps one under a name, restore makes a session of a snapshot."`
	Session     string `json:"session" max:"128" of:"close,reset,fork,snapshot" doc:"id of the session. Default: this connection's own."`
	Label       string `json:"label" max:"200" of:"create,reset,restore" doc:"a name for people."`
	Count       int    `json:"count" min:"1" max:"16" default:"1" of:"fork" doc:"how many copies."`
	Name        string `json:"name" max:"64" of:"snapshot,restore" doc:"the snapshot's name: letters, digits, dots, hyphens and underscores."`
	DiskOnly    bool   `json:"disk_only" of:"snapshot" doc:"keep files and no processes. A session restored from it boots."`
	CPUs        int    `json:"cpus" min:"1" max:"64" of:"create,reset" doc:"virtual CPUs. Default: as configured."`
	MemoryMiB   int    `json:"memory_mib" min:"128" max:"1048576" of:"create,reset" doc:"memory in MiB. Default: as configured."`
	DiskMiB     int    `json:"disk_mib" min:"64" max:"16777216" of:"create,reset" doc:"room for changes on disk in MiB. Default: as configured."`
	WallSeconds int    `json:"wall_seconds" min:"1" max:"31536000" of:"create,reset,restore" doc:"age at which the session ends. Default: as configured."`
	IdleSeconds int    `json:"idle_seconds" min:"1" max:"31536000" of:"create,reset,restore" doc:"time without a call after which the session ends. Default: as configured."`
}

// SessionInfo is one session in the result of session.
type SessionInfo struct {
	ID          string `json:"id" jsonschema:"for the argument session of all tools"`
	Default     bool   `json:"default" jsonschema:"whether calls without session work in it"`
	Label       string `json:"label,omitempty" jsonschema:"its name for people"`
	State       string `json:"state" jsonschema:"starting, running or closed"`
	Reason      string `json:"reason,omitempty" jsonschema:"why it closed"`
	Image       string `json:"image,omitempty" jsonschema:"what it runs"`
	Accelerator string `json:"accelerator,omitempty" jsonschema:"kvm, hvf or tcg; tcg is slow"`
	CPUs        int    `json:"cpus" jsonschema:"virtual CPUs"`
	MemoryMiB   int    `json:"memory_mib" jsonschema:"memory"`
	DiskMiB     int    `json:"disk_mib" jsonschema:"room for changes on disk"`
	Commands    int    `json:"commands" jsonschema:"commands that run now"`
	AgeSeconds  int64  `json:"age_seconds" jsonschema:"since it was made"`

	Mounts     []MountInfo `json:"mounts,omitempty" jsonschema:"its directories that outlive it or come from outside"`
	NotMounted []string    `json:"not_mounted,omitempty" jsonschema:"why directories of the client's workspace are not among them"`
}

// SessionResult is the structured result of session.
type SessionResult struct {
	Action    string        `json:"action" jsonschema:"what was asked"`
	SessionID string        `json:"session,omitempty" jsonschema:"the session made or closed"`
	Forks     []string      `json:"forks,omitempty" jsonschema:"the copies that fork made"`
	Snapshot  string        `json:"snapshot,omitempty" jsonschema:"the snapshot made or restored"`
	PauseMS   int64         `json:"pause_ms,omitempty" jsonschema:"how long fork or snapshot made the session stand still"`
	Sessions  []SessionInfo `json:"sessions" jsonschema:"the sessions after the action"`
	Noted
}

// sessionsShown bounds the list.
const sessionsShown = 100

func (s *Server) addSession() {
	add(s, tool[sessionArgs]{
		name: "session", title: "Manage sandbox sessions",
		doc: `Create, list, close, reset, fork, snapshot or restore sessions. A session is a machine with its own files and processes.
One is made by itself at the first call; ask for more only to keep things apart, and give their id as the argument session of other tools.`,
		hints:  hints{destructive: true},
		output: mcp.WithOutputSchema[SessionResult](),
		adjust: func(ps properties) {
			l := s.opts.Limits
			ps.atMost("cpus", int64(l.CPUs))
			ps.atMost("memory_mib", int64(l.MemoryMiB))
			ps.atMost("disk_mib", int64(l.DiskMiB))
			ps.atMost("wall_seconds", int64(l.Wall.Seconds()))
			ps.atMost("idle_seconds", int64(l.Idle.Seconds()))
		},
		long: func(a *sessionArgs) bool { return a.Action != "list" },
		run:  s.manage,
	})
}

func (s *Server) manage(ctx context.Context, c *call, a *sessionArgs) (*reply, error) {
	switch a.Action {
	case "create":
		c.progress.say(func() string { return "starting the sandbox" })
		sess, err := s.opts.Sandboxes.Create(ctx, s.optionsOf(ctx, a))
		if err != nil {
			return nil, fmt.Errorf("the session was not made: %w", err)
		}
		return s.sessionsReply(a.Action, sess.ID(), fmt.Sprintf("Created session %s. Give it as `session` to work in it.", sess.ID())), nil
	case "fork", "snapshot", "restore":
		return s.copySession(ctx, c, a)
	case "close":
		return s.closeSession(ctx, c, a)
	case "reset":
		return s.resetSession(ctx, c, a)
	}
	return s.sessionsReply(a.Action, "", ""), nil
}

// optionsOf is what a call asks of a new session, with the client's roots.
func (s *Server) optionsOf(ctx context.Context, a *sessionArgs) SessionOptions {
	s.expectRoots(ctx)
	return SessionOptions{Label: a.Label, Roots: s.roots.await(ctx, s.rootsWait), Limits: a.limits()}
}

func (a *sessionArgs) limits() sandbox.Limits {
	return sandbox.Limits{
		CPUs: a.CPUs, MemoryMiB: a.MemoryMiB, DiskMiB: a.DiskMiB,
		Wall: time.Duration(a.WallSeconds) * time.Second,
		Idle: time.Duration(a.IdleSeconds) * time.Second,
	}
}

// closeSession ends a session. Closing the default one when there is none is
// no mistake.
func (s *Server) closeSession(ctx context.Context, c *call, a *sessionArgs) (*reply, error) {
	id := firstOf(a.Session, s.sessions.id())
	if id == "" {
		return s.sessionsReply(a.Action, "", "There is no session to close."), nil
	}
	if err := s.end(ctx, c, id, "closed by the agent"); err != nil {
		return nil, err
	}
	return s.sessionsReply(a.Action, id, fmt.Sprintf("Closed session %s. %s.", id, lostWith(c.sess))), nil
}

func (s *Server) end(ctx context.Context, c *call, id, reason string) error {
	sess, err := s.opts.Sandboxes.Get(id)
	if err != nil {
		return s.noSession(id, err)
	}
	c.sess = sess
	// Forgotten first: a call that comes meanwhile should not run into its end.
	s.sessions.forget(id)
	if sess.Info().State == sandbox.StateClosed {
		return nil
	}
	if err := s.opts.Sandboxes.Close(ctx, id, reason); err != nil {
		return fmt.Errorf("closing session %s: %w", id, err)
	}
	return nil
}

// resetSession replaces a session. A default session stays the default.
func (s *Server) resetSession(ctx context.Context, c *call, a *sessionArgs) (*reply, error) {
	old := s.sessions.id()
	if a.Session == "" || a.Session == old {
		if old != "" {
			if err := s.end(ctx, c, old, "reset by the agent"); err != nil {
				return nil, err
			}
		}
		if a.Label != "" || a.limits() != (sandbox.Limits{}) {
			return s.replaceDefault(ctx, a)
		}
		sess, err := s.session(ctx, c, "")
		if err != nil {
			return nil, err
		}
		return s.sessionsReply(a.Action, sess.ID(), fmt.Sprintf("The default session is now %s, which is new.", sess.ID())), nil
	}
	if err := s.end(ctx, c, a.Session, "reset by the agent"); err != nil {
		return nil, err
	}
	sess, err := s.opts.Sandboxes.Create(ctx, s.optionsOf(ctx, a))
	if err != nil {
		return nil, fmt.Errorf("session %s was closed, but the new one was not made: %w", a.Session, err)
	}
	return s.sessionsReply(a.Action, sess.ID(), fmt.Sprintf("Session %s is gone; %s takes its place.", a.Session, sess.ID())), nil
}

// replaceDefault makes a default session with other limits than usual.
func (s *Server) replaceDefault(ctx context.Context, a *sessionArgs) (*reply, error) {
	o := s.optionsOf(ctx, a)
	sess, err := s.opts.Sandboxes.Create(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("the default session was closed, but the new one was not made: %w", err)
	}
	text := fmt.Sprintf("The default session is now %s, which is new.", sess.ID())
	if !s.sessions.adopt(sess, o.Roots) {
		text = fmt.Sprintf("Created session %s; another call made a default session meanwhile, which stays the default.", sess.ID())
	}
	return s.sessionsReply(a.Action, sess.ID(), text), nil
}

// sessionsReply lists the sessions.
func (s *Server) sessionsReply(action, id, text string) *reply {
	all := s.opts.Sandboxes.List()
	standard := s.sessions.id()
	return fit(min(len(all), sessionsShown), func(n int) *reply {
		r := &SessionResult{Action: action, SessionID: id, Sessions: make([]SessionInfo, 0, n)}
		var b strings.Builder
		if text != "" {
			b.WriteString(text + "\n")
		}
		for _, info := range all[:n] {
			e := s.sessionInfo(info, standard)
			r.Sessions = append(r.Sessions, e)
			b.WriteString(e.line() + "\n")
		}
		switch {
		case len(all) == 0:
			b.WriteString("[no sessions; the next call of another tool makes the default one]")
		case n < len(all):
			fmt.Fprintf(&b, "[%d of %d sessions]", n, len(all))
		default:
			fmt.Fprintf(&b, "[%s]", counted(n, "session"))
		}
		return &reply{data: r, text: b.String()}
	})
}

func (s *Server) sessionInfo(info sandbox.Info, standard string) SessionInfo {
	e := SessionInfo{
		ID: info.ID, Default: info.ID == standard, Label: short(printable(info.Label), 200),
		State: string(info.State), Image: short(printable(info.Image), 200), Accelerator: info.Accelerator,
		CPUs: info.Limits.CPUs, MemoryMiB: info.Limits.MemoryMiB, DiskMiB: info.Limits.DiskMiB,
		Commands: info.Processes,
	}
	if info.State == sandbox.StateClosed {
		e.Reason = reasonOf(info, 400)
	}
	if !info.Created.IsZero() {
		e.AgeSeconds = int64(time.Since(info.Created).Seconds())
	}
	if sess, err := s.opts.Sandboxes.Get(info.ID); err == nil {
		m := sess.Mounts()
		e.Mounts = mountInfos(m)
		for _, why := range m.Refused {
			e.NotMounted = append(e.NotMounted, short(printable(why), 500))
		}
	}
	return e
}

func (e SessionInfo) line() string {
	line := fmt.Sprintf("%s  %s  %s, %d MiB memory, %s, %d s old", e.ID, e.State,
		counted(e.CPUs, "CPU"), e.MemoryMiB, counted(e.Commands, "command"), e.AgeSeconds)
	if e.Default {
		line += "  (default)"
	}
	if e.Label != "" {
		line += "  " + e.Label
	}
	if e.Reason != "" {
		line += "  ended: " + strings.ReplaceAll(e.Reason, "\n", "\n    ")
	}
	for _, m := range e.Mounts {
		line += fmt.Sprintf("\n    %s  %s", m.Path, m.Mode)
		switch {
		case m.Memory:
			line += "  memory"
		case m.Source != "":
			line += "  the user's " + m.Source
		}
	}
	for _, why := range e.NotMounted {
		line += "\n    " + why
	}
	return line
}
