package tools

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// copySession answers fork, snapshot and restore.
func (s *Server) copySession(ctx context.Context, c *call, a *sessionArgs) (*reply, error) {
	if a.Action != "fork" && a.Name == "" {
		return nil, toolErrorf("nothing was done: %s needs `name`, the snapshot's", a.Action)
	}
	if a.Action == "restore" {
		return s.restoreSession(ctx, c, a)
	}
	id := firstOf(a.Session, s.sessions.id())
	if id == "" {
		return nil, toolErrorf("nothing was done: there is no session to %s yet", a.Action)
	}
	sess, err := s.opts.Sandboxes.Get(id)
	if err != nil {
		return nil, s.noSession(id, err)
	}
	c.sess = sess
	if a.Action == "snapshot" {
		return s.snapshotSession(ctx, id, a)
	}
	made, pause, err := s.opts.Sandboxes.Fork(ctx, id, max(a.Count, 1))
	if err != nil {
		return nil, fmt.Errorf("no copy was made, and the session %s is as it was: %w", id, err)
	}
	ids := make([]string, 0, len(made))
	for _, m := range made {
		ids = append(ids, m.ID())
	}
	r := s.sessionsReply(a.Action, "", fmt.Sprintf("Forked session %s, which stood still for %d ms: %s. Processes, jobs and files go on in each; "+
		"their connections to the outside were reset. Give an id as `session` to work in it.", id, pause.Milliseconds(), strings.Join(ids, ", ")))
	return r.copied(ids, "", pause), nil
}

func (s *Server) snapshotSession(ctx context.Context, id string, a *sessionArgs) (*reply, error) {
	t, err := s.opts.Sandboxes.Snapshot(ctx, id, a.Name, a.DiskOnly)
	if err != nil {
		return nil, fmt.Errorf("no snapshot was made, and the session %s is as it was: %w", id, err)
	}
	what := "with its processes"
	if a.DiskOnly {
		what = "without processes"
	}
	r := s.sessionsReply(a.Action, id, fmt.Sprintf("Session %s is kept %s as snapshot %s (%d MiB); it stood still for %d ms and goes on.",
		id, what, t.Name, t.Bytes>>20, t.Pause.Milliseconds()))
	return r.copied(nil, t.Name, t.Pause), nil
}

func (s *Server) restoreSession(ctx context.Context, c *call, a *sessionArgs) (*reply, error) {
	c.progress.say(func() string { return "restoring the snapshot" })
	sess, err := s.opts.Sandboxes.Restore(ctx, a.Name, s.optionsOf(ctx, a))
	if err != nil {
		return nil, fmt.Errorf("the session was not made: %w", err)
	}
	r := s.sessionsReply(a.Action, sess.ID(), fmt.Sprintf("Restored snapshot %s as session %s. Give it as `session` to work in it. "+
		"Start programs again that use secrets or the network: they were given others now.", a.Name, sess.ID()))
	return r.copied(nil, a.Name, 0), nil
}

// copied adds what only copies have to a result of the session tool.
func (r *reply) copied(forks []string, snapshot string, pause time.Duration) *reply {
	if d, ok := r.data.(*SessionResult); ok {
		d.Forks, d.Snapshot, d.PauseMS = forks, snapshot, pause.Milliseconds()
	}
	return r
}
