package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/gondolin-go/gondolin/netguard"
	"github.com/gondolin-go/gondolin/sandbox/qemu"
)

// Session is one machine. Its methods may be called from any goroutine.
type Session struct {
	host      *Host
	id        string
	machineID [16]byte
	dir       *runDir
	opts      Options
	log       *slog.Logger
	created   time.Time

	// Set before the session is handed out, then constant.
	vm     *qemu.VM
	accel  qemu.Accelerator
	origin Origin
	boot   time.Duration

	denials *DenialLog

	// Set by attachNetwork, before the session is handed out.
	guard        *netguard.Guard
	placeholders map[string]string // variables with the placeholders of secrets

	life    context.Context // ends when the session closes
	cancel  context.CancelFunc
	workers sync.WaitGroup // goroutines that end with life
	ending  sync.Once
	gone    chan struct{} // closed when nothing of the session is left

	mu        sync.Mutex
	mux       *yamux.Session // nil while the connection is lost
	muxReady  chan struct{}  // closed when mux is set
	reason    string         // why it closed
	lastUsed  time.Time
	active    int    // calls under way
	running   int    // attached processes
	diskError string // what the host said of a failed access to the scratch disk
}

func newSession(ctx context.Context, h *Host, id string, dir *runDir, o Options) *Session {
	s := &Session{
		host: h, id: id, dir: dir, opts: o, log: h.log.With("session", id),
		origin: OriginBooted, created: time.Now(), lastUsed: time.Now(), muxReady: make(chan struct{}), gone: make(chan struct{}),
	}
	if s.denials = o.Denials; s.denials == nil {
		s.denials = &DenialLog{}
	}
	s.life, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	_, _ = rand.Read(s.machineID[:]) // cannot fail since Go 1.24
	return s
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
		if err := s.dir.remove(); err != nil {
			s.log.Warn("removing the session's directory", "err", err)
		}
		s.host.forget(s)
		close(s.gone)
	})
	<-s.gone
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

// use counts a call; the returned function ends it.
func (s *Session) use() func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active++
	s.lastUsed = time.Now()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.active--
		s.lastUsed = time.Now()
	}
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
