package tools

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/gondolin-go/gondolin/sandbox"
)

// session finds the session that a call works in and remembers it, with what
// has to be told about it.
func (s *Server) session(ctx context.Context, c *call, id string) (Session, error) {
	if id == "" {
		c.progress.say(func() string { return "starting the sandbox" })
		sess, note, told, err := s.defaultFor(ctx)
		c.progress.say(nil)
		if err != nil {
			return nil, err
		}
		if note != "" {
			c.notes = append(c.notes, note)
			c.takeNote = told
		}
		c.sess = sess
		return sess, nil
	}
	sess, err := s.opts.Sandboxes.Get(id)
	if err != nil {
		return nil, s.noSession(id, err)
	}
	if info := sess.Info(); info.State == sandbox.StateClosed {
		return nil, toolErrorf("session %s has ended: %s%s. %s", info.ID, sentence(reasonOf(info, 2000)), lostWith(sess), s.validIDs())
	}
	c.sess = sess
	return sess, nil
}

func (s *Server) noSession(id string, err error) error {
	return toolErrorf("no session %q (%s). %s", short(id, 60), short(err.Error(), 200), s.validIDs())
}

// validIDs says which sessions there are.
func (s *Server) validIDs() string {
	var ids []string
	more := 0
	standard := s.sessions.id()
	for _, info := range s.opts.Sandboxes.List() {
		switch {
		case info.State == sandbox.StateClosed:
		case len(ids) == 50:
			more++
		case info.ID == standard:
			ids = append(ids, info.ID+" (the default)")
		default:
			ids = append(ids, info.ID)
		}
	}
	if len(ids) == 0 {
		return "There is no session now; leave `session` out to work in the default one."
	}
	if more > 0 {
		ids = append(ids, fmt.Sprintf("and %d more", more))
	}
	return "Sessions: " + strings.Join(ids, ", ") + ". Leave `session` out to work in the default one."
}

// explain puts an error into words that a model can act on.
func (s *Server) explain(ctx context.Context, c *call, name string, err error) string {
	if t, ok := asTool(err); ok {
		return string(t)
	}
	var file *sandbox.FileError
	switch {
	case ctx.Err() != nil:
		return name + " was cancelled"
	case errors.Is(err, sandbox.ErrClosed):
		if c.sess != nil && c.sess.Info().State == sandbox.StateClosed {
			return fmt.Sprintf("%s failed because the session %s ended meanwhile: %s%s. "+
				"The next call without `session` gets a new one.", name, c.sess.ID(), sentence(reasonOf(c.sess.Info(), 2000)), lostWith(c.sess))
		}
		return fmt.Sprintf("%s failed: %sThe session's files and processes are gone.", name, sentence(err.Error()))
	case errors.Is(err, sandbox.ErrNoJob):
		text := err.Error()
		if strings.HasPrefix(text, "no process ") { // the guest's own words say it already
			text = strings.TrimSuffix(text, ": "+sandbox.ErrNoJob.Error())
		}
		return fmt.Sprintf("%s. %s", text, s.validJobs(ctx, c.sess))
	case errors.As(err, &file):
		return fmt.Sprintf("%s failed: %s%s", name, err, hintFor(c, file))
	case errors.Is(err, sandbox.ErrChanged):
		return fmt.Sprintf("%s: the file was not changed, because its content is not what if_sha256 says (%s). Read it again first.", name, err)
	}
	return fmt.Sprintf("%s failed: %s", name, plain(err))
}

// plain is an error's text without the names of the classes that sandbox puts at
// its end for callers to branch on: the text before says the same and more.
func plain(err error) string {
	if !errors.Is(err, sandbox.ErrInvalid) && !errors.Is(err, sandbox.ErrLimit) {
		return err.Error()
	}
	lines := strings.Split(err.Error(), "\n")
	for i, line := range lines {
		for _, class := range []error{sandbox.ErrInvalid, sandbox.ErrLimit} {
			line = strings.TrimSuffix(line, ": "+class.Error())
		}
		lines[i] = line
	}
	return strings.Join(lines, "\n")
}

// hintFor adds why the host refused it, or what usually helps.
func hintFor(c *call, e *sandbox.FileError) string {
	if c.sess != nil {
		if hint := denialHint(c, e); hint != "" {
			return hint
		}
		if hint := mountHint(c.sess.Mounts(), e); hint != "" {
			return hint
		}
	}
	switch {
	case errors.Is(e, fs.ErrNotExist):
		return ". Paths are those of the sandbox, not of the client's machine; list_files and glob show what is there."
	case e.Errno == "EISDIR":
		return ". It is a directory; list_files shows what is in it."
	case e.Errno == "ENOTDIR":
		return ". A part of the path is a file."
	case e.Errno == "ENOSPC":
		return ". The disk is full; remove what is not needed."
	case e.Errno == "EROFS":
		return ". The file system is read-only there; /tmp can be written."
	}
	return ""
}

// validJobs says which jobs a session has.
func (s *Server) validJobs(ctx context.Context, sess Session) string {
	if sess == nil {
		return ""
	}
	jobs, err := sess.Jobs(ctx)
	if err != nil || len(jobs) == 0 {
		return fmt.Sprintf("Session %s has no jobs now; ended ones are kept only for a while.", sess.ID())
	}
	var names []string
	for i, j := range jobs {
		if i == 30 {
			names = append(names, fmt.Sprintf("and %d more", len(jobs)-i))
			break
		}
		names = append(names, fmt.Sprintf("%s (%s, %s)", j.ID, j.State, short(printable(j.Command), 60)))
	}
	return fmt.Sprintf("Jobs of session %s: %s.", sess.ID(), strings.Join(names, "; "))
}
