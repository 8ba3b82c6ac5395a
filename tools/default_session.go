package tools

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gondolin-go/gondolin/sandbox"
)

// defaultSession is the session of calls that name none. It is made once for
// all calls that wait for it.
type defaultSession struct {
	mu     sync.Mutex
	now    Session
	making *making
	note   string // what the model has to be told about the last one's end
	news   string // and about the mounts of the one that there is

	roots     []string // what it was made with
	rootsTold []string // later ones that the model knows not to be in it
}

// making is a creation under way. done is closed after the other fields are set.
type making struct {
	done chan struct{}
	sess Session
	err  error

	roots []string
}

// defaultFor returns the default session, making one if there is none that
// lives. note is to be told to the model; told is called when it has been.
func (s *Server) defaultFor(ctx context.Context) (sess Session, note string, told func(), err error) {
	d := &s.sessions
	d.mu.Lock()
	if d.now != nil {
		if info := d.now.Info(); info.State == sandbox.StateClosed {
			d.note = fmt.Sprintf("The previous session %s ended: %s%s", info.ID, sentence(reasonOf(info, 600)), lostWith(d.now))
			d.now = nil
		} else {
			defer d.mu.Unlock()
			note, told := d.noteFor(d.now, s.roots.paths())
			return d.now, note, told, nil
		}
	}
	m := d.making
	if m == nil {
		s.expectRoots(ctx)
		m = &making{done: make(chan struct{})}
		// The creation belongs to the connection, not to this call: whoever is
		// cancelled while waiting leaves a session for the next call.
		if err := s.begin(func(life context.Context) { s.make(life, m) }); err != nil {
			d.mu.Unlock()
			return nil, "", nil, err
		}
		d.making = m
	}
	d.mu.Unlock()

	select {
	case <-ctx.Done():
		return nil, "", nil, ctx.Err()
	case <-m.done:
	}
	if m.err != nil {
		return nil, "", nil, toolErrorf("the sandbox could not be started: %s\nNothing was run. The next call tries again.", plain(m.err))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	note, told = d.noteFor(m.sess, s.roots.paths())
	return m.sess, note, told, nil
}

// make creates the default session and hands it to those who wait.
func (s *Server) make(ctx context.Context, m *making) {
	began := time.Now()
	defer close(m.done)
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic while a session was made", "panic", fmt.Sprint(p))
			m.err = fmt.Errorf("a mistake in this server, which is in its log")
		}
		s.sessions.mu.Lock()
		defer s.sessions.mu.Unlock()
		s.sessions.making = nil
		if m.err == nil {
			s.sessions.set(m.sess, m.roots, m.sess.Mounts().note())
		}
	}()
	m.roots = s.roots.await(ctx, s.rootsWait)
	m.sess, m.err = s.opts.Sandboxes.Create(ctx, SessionOptions{Label: "default", Roots: m.roots})
	if m.err != nil {
		s.log.Error("default session not made", "error", m.err)
		return
	}
	s.log.Info("default session made", "session", m.sess.ID(), "took", time.Since(began).Round(time.Millisecond))
}

// set makes sess the default. The lock is held.
func (d *defaultSession) set(sess Session, roots []string, news string) {
	d.now, d.roots, d.rootsTold, d.news = sess, roots, roots, news
}

// noteFor is what has to be told about sess, made after its predecessor and with other roots
// than there are now. told forgets it. The lock is held.
func (d *defaultSession) noteFor(sess Session, roots []string) (note string, told func()) {
	var parts []string
	if d.note != "" {
		parts = append(parts, fmt.Sprintf("%s; this is a new one (%s).", d.note, sess.ID()))
	}
	if d.news != "" {
		parts = append(parts, d.news)
	}
	if !slices.Equal(roots, d.roots) && !slices.Equal(roots, d.rootsTold) {
		parts = append(parts, fmt.Sprintf("The client's workspace is another now (%s). The session %s was made before and keeps the mounts that it has; "+
			"session {\"action\": \"reset\"} replaces it, with all that is not in a mount, by one that has the new ones.",
			short(printable(strings.Join(roots, ", ")), 300), sess.ID()))
	}
	return strings.Join(parts, " "), func() {
		d.mu.Lock()
		d.note, d.news, d.rootsTold = "", "", roots
		d.mu.Unlock()
	}
}

// id is the default session's, or empty.
func (d *defaultSession) id() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now == nil {
		return ""
	}
	return d.now.ID()
}

// forget drops the default session if it is the one named: its end was asked
// for and needs no note.
func (d *defaultSession) forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now != nil && d.now.ID() == id {
		d.now = nil
		d.note = ""
	}
}

// adopt makes sess the default unless there is one or one is being made.
func (d *defaultSession) adopt(sess Session, roots []string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now != nil || d.making != nil {
		return false
	}
	d.set(sess, roots, "") // its maker tells
	d.note = ""
	return true
}

// reset forgets everything at the end of a connection.
func (d *defaultSession) reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now, d.note, d.news = nil, "", ""
}

// reasonOf is why a session ended, in at most about most characters. It may have
// several lines, the console's last ones among them; the first line and the end tell most.
func reasonOf(info sandbox.Info, most int) string {
	if info.Reason == "" {
		return "no reason is known"
	}
	text := printableLines(info.Reason)
	first, rest, _ := strings.Cut(text, "\n")
	first = short(first, most/2)
	room := most - utf8.RuneCountInString(first)
	if over := utf8.RuneCountInString(rest) - room; over > 0 {
		rest = "…" + string([]rune(rest)[over:])
	}
	if rest == "" {
		return first
	}
	return first + "\n" + rest
}

// sentence ends a reason so that more text can follow.
func sentence(reason string) string {
	if strings.Contains(reason, "\n") {
		return reason + "\n"
	}
	return reason + ". "
}
