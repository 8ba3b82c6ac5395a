package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/gondolin-go/gondolin/guest/wire"
	"github.com/gondolin-go/gondolin/netguard"
	"github.com/gondolin-go/gondolin/netguard/ca"
	"github.com/gondolin-go/gondolin/netguard/secret"
	"github.com/gondolin-go/gondolin/sandbox/qemu"
	"github.com/gondolin-go/gondolin/sandbox/template"
)

// Session is one machine. Its methods may be called from any goroutine.
type Session struct {
	client
	host      *Host
	machineID [16]byte
	dir       *runDir
	opts      Options
	created   time.Time

	// Set before the session is handed out, then constant.
	vm     *qemu.VM
	accel  qemu.Accelerator
	origin Origin
	boot   time.Duration

	// What letGo closes; under mu once the session is handed out.
	template *template.Template // that it was cloned from, or nil
	memory   *os.File           // its memory, if that is a file of its own
	scratch  *os.File           // its scratch disk, if it has one
	from     *os.File           // a disk to begin with, while it boots
	past     *past              // of the session that it is a copy of, or nil
	again    bool               // its machine is a copy of another's that ran
	freezing chan struct{}      // held while it is copied

	denials *DenialLog

	// Set by attachNetwork, before the session is handed out.
	guard        *netguard.Guard
	authority    *ca.CA
	secrets      *secret.Set
	secretStore  *secret.Store
	placeholders map[string]string // variables with the placeholders of secrets

	ending sync.Once
	gone   chan struct{} // closed when nothing of the session is left

	diskError string // what the host said of a failed access to the scratch disk; under mu

	dialer  dialer
	exposed exposed
	shells  shells
}

func newSession(ctx context.Context, h *Host, id string, dir *runDir, o Options) *Session {
	s := &Session{
		host: h, dir: dir, opts: o, origin: OriginBooted, created: time.Now(), gone: make(chan struct{}),
		freezing: make(chan struct{}, 1),
	}
	s.init(ctx, id, h.log.With("session", id))
	s.terms, s.note = s.ownTerms, s.diskNote
	if s.denials = o.Denials; s.denials == nil {
		s.denials = &DenialLog{}
	}
	_, _ = rand.Read(s.machineID[:]) // cannot fail since Go 1.24
	return s
}

// ownTerms are what the options and the network say. A pooled session gets them when it is taken.
func (s *Session) ownTerms() terms {
	return terms{
		dir: s.opts.Dir, user: s.opts.User,
		env: []map[string]string{s.opts.Image.Env, s.opts.Env, s.placeholders},
	}
}

// ID names the session.
func (s *Session) ID() string { return s.id }

// Info describes the session as it is now.
func (s *Session) Info() Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := Info{
		ID: s.id, Label: s.opts.Label, State: StateRunning, Reason: s.reason, Created: s.created, LastUsed: s.lastUsed,
		Image: s.opts.Image.ID, Accelerator: string(s.accel), Root: s.opts.Root, Limits: s.opts.Limits,
		Processes: s.running, Boot: s.boot, Origin: s.origin,
		Dir: s.opts.Dir, User: s.opts.User, Holder: s.host.opts.Register, PID: os.Getpid(),
	}
	for _, m := range s.opts.Mounts {
		i.Mounts = append(i.Mounts, m.Path)
	}
	if s.reason != "" {
		i.State = StateClosed
	}
	return i
}

// Done is closed when the session has ended and nothing of it is left; Info
// then says why.
func (s *Session) Done() <-chan struct{} { return s.gone }

// Close ends the session: its processes, its machine, its files.
func (s *Session) Close() error {
	s.end("it was closed")
	return nil
}

// end closes the session, once, and waits until nothing is left of it.
func (s *Session) end(reason string) {
	s.ending.Do(func() {
		s.mu.Lock()
		s.reason = reason
		mux := s.mux
		s.mu.Unlock()
		s.log.Info("session ends", "reason", firstLine(reason))
		s.cancel()
		s.vm.Close()
		if mux != nil {
			mux.Close()
		}
		s.workers.Wait()
		s.letGo()
		if err := s.dir.remove(); err != nil {
			s.log.Warn("removing the session's directory", "err", err)
		}
		s.host.forget(s)
		close(s.gone)
	})
	<-s.gone
}

// letGo closes what the session holds of its machine.
func (s *Session) letGo() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range []*os.File{s.memory, s.scratch} {
		if f != nil {
			f.Close()
		}
	}
	if s.template != nil {
		s.template.Close()
	}
	s.memory, s.scratch, s.template = nil, nil, nil
}

// maxLost is how often a guest may break its connection within a minute.
const maxLost = 10

// watch follows the machine, the connection and the limits until the session ends.
func (s *Session) watch() {
	// The session cannot be ended from a goroutine that its end waits for.
	end := func(format string, args ...any) { go s.end(fmt.Sprintf(format, args...)) }
	wall, idle := newTimer(s.opts.Limits.Wall), newTimer(s.opts.Limits.Idle)
	defer wall.Stop()
	defer idle.Stop()
	s.mu.Lock()
	mux := s.mux
	s.mu.Unlock()
	var lost []time.Time // when the connection broke, lately
	for {
		if mux == nil { // it broke before it was watched
			if lost = append(lost, time.Now()); len(lost) > maxLost {
				if time.Since(lost[0]) < time.Minute {
					end("the guest broke the connection %d times within a minute", len(lost))
					return
				}
				lost = lost[1:]
			}
			var err error
			if mux, err = s.reconnect(); err != nil {
				end("%v", withConsole(s.cause(err), s.vm))
				return
			}
		}
		select {
		case <-s.life.Done():
			return
		case <-s.vm.Done():
			end("%v", withConsole(s.vm.Err(), s.vm))
			return
		case <-mux.CloseChan():
			s.drop(mux)
			mux = nil
		case <-wall.C:
			end("it reached its age limit (limits.wall) of %v", s.opts.Limits.Wall)
			return
		case <-idle.C:
			left := s.idleLeft()
			if left <= 0 {
				end("it was not used for %v (limits.idle)", s.opts.Limits.Idle)
				return
			}
			idle.Reset(left)
		}
	}
}

// reconnect opens the control port anew; only watch calls it.
func (s *Session) reconnect() (*yamux.Session, error) {
	conn, err := s.connect(s.life, s.vm, wire.PortControl, settleTimeout, true)
	if err != nil {
		return nil, err
	}
	mux, err := wire.Client(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	s.log.Info("connection to the guest taken up again")
	s.setMux(mux)
	return mux, nil
}

// cause says why a connection could not be taken up again. When the machine is
// dying its own end is the reason, and shows a moment later.
func (s *Session) cause(err error) error {
	timer := time.NewTimer(2 * time.Second)
	defer timer.Stop()
	select {
	case <-s.vm.Done():
		return s.vm.Err()
	case <-s.life.Done():
	case <-timer.C:
	}
	return fmt.Errorf("the connection to the guest was lost: %w", err)
}

// newTimer returns a timer that never fires when limit is not positive.
func newTimer(limit time.Duration) *time.Timer {
	if limit <= 0 {
		t := time.NewTimer(time.Hour)
		t.Stop()
		return t
	}
	return time.NewTimer(limit)
}

func (s *Session) idleLeft() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active > 0 {
		return s.opts.Limits.Idle
	}
	return time.Until(s.lastUsed.Add(s.opts.Limits.Idle))
}

// onEvent takes what QEMU reports of the machine.
func (s *Session) onEvent(e qemu.Event) {
	s.log.Debug("machine event", "event", e.Name)
	if e.Name != "BLOCK_IO_ERROR" {
		return
	}
	var data struct {
		Reason string `json:"reason"` // strerror; the event's nospace is for another werror policy
	}
	_ = json.Unmarshal(e.Data, &data)
	s.mu.Lock()
	known := s.diskError != ""
	s.diskError = data.Reason
	s.mu.Unlock()
	if !known { // the guest can cause any number of them
		s.log.Warn("the session's disk fails", "reason", data.Reason)
	}
}

// diskNote names a failure of the host's disk, which the guest sees as one of its own.
func (s *Session) diskNote() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.diskError {
	case "":
		return ""
	case syscall.ENOSPC.Error(), "No space left on device":
		return "the host's disk under " + s.host.opts.CacheDir + " is full: make room there"
	}
	return "the session's disk under " + s.host.opts.CacheDir + " failed on the host: " + s.diskError
}
