package sandbox

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/adrg/xdg"

	"github.com/gondolin-go/gondolin/sandbox/qemu"
)

// Defaults of HostOptions.
const (
	DefaultMaxSessions = 16
	// DefaultBootTimeout is for a busy host: emulated processors that wait for each other while
	// others have the host's were seen to need 80 s for what takes 3.
	DefaultBootTimeout = 4 * time.Minute
)

// HostOptions say where sessions live and how many. The zero value is useful.
type HostOptions struct {
	// CacheDir holds what can be made again: scratch disk templates, initramfs,
	// verdicts on accelerators. Default: gondolin in the user's cache directory.
	CacheDir string
	// RuntimeDir holds the sockets of sessions, on a path of at most 60 bytes.
	// Default: gondolin in XDG_RUNTIME_DIR, or gondolin-UID in the temporary directory.
	RuntimeDir string
	// StateDir holds what users want to keep: snapshots. Default: DefaultStateDir.
	StateDir    string
	QEMU        string        // name or path; default by architecture
	Accelerator string        // "auto" (default), "kvm", "hvf", "tcg"
	MaxSessions int           // default DefaultMaxSessions
	BootTimeout time.Duration // from start to the guest's announcement
	Pool        Pool          // sessions kept ready
	NoTemplates bool          // boot every session instead of cloning a template
	// TemplateFirst builds a template that is missing before a session instead of beside it:
	// for a process that makes one session, and would end before the template is done.
	TemplateFirst bool
	// Register lets other programs of the user list and attach to the sessions (List,
	// Attach), and is what they call this process, such as "serve". Empty: they cannot.
	Register string
	Logger   *slog.Logger // default: discard
}

// Host creates sessions and owns what they share.
type Host struct {
	opts        HostOptions
	qemuPath    string
	qemuVersion string
	log         *slog.Logger

	clones    *cloner
	pool      *pool
	snapshots *Snapshots

	initramfs struct {
		sync.Mutex
		made map[string]string // by the path of an image's modules
	}

	accel chan struct{} // held by the one start that finds out whether an accelerator works

	life   context.Context // ends when the host closes
	cancel context.CancelFunc
	making sync.WaitGroup // calls of Create

	mu       sync.Mutex
	closed   bool
	slots    int // sessions that exist or are being made
	sessions map[string]*Session
}

// NewHost prepares the directories, removes what dead processes left in them,
// and finds QEMU.
func NewHost(ctx context.Context, o HostOptions) (*Host, error) {
	o = o.withDefaults()
	path, err := qemu.FindBinary(o.QEMU)
	if err != nil {
		return nil, err
	}
	return newHost(ctx, o, path)
}

func (o HostOptions) withDefaults() HostOptions {
	if o.CacheDir == "" {
		o.CacheDir = filepath.Join(xdg.CacheHome, "gondolin")
	}
	if o.RuntimeDir == "" {
		o.RuntimeDir = DefaultRuntimeDir()
	}
	if o.MaxSessions == 0 {
		o.MaxSessions = DefaultMaxSessions
	}
	if o.BootTimeout == 0 {
		o.BootTimeout = DefaultBootTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func newHost(ctx context.Context, o HostOptions, path string) (*Host, error) {
	version, err := qemu.Version(ctx, path)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{o.CacheDir, o.RuntimeDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making %s: %w", dir, err)
		}
	}
	if err := checkPrivate(o.RuntimeDir); err != nil {
		return nil, err
	}
	if longest := filepath.Join(o.RuntimeDir, strings.Repeat("x", 12), qemu.Ports[len(qemu.Ports)-1]); len(longest) > 100 {
		return nil, fmt.Errorf("the runtime directory %s is too long for a socket's path: choose one of at most 60 bytes", o.RuntimeDir)
	}
	collectStale(o.RuntimeDir, o.Logger)
	h := &Host{
		opts: o, qemuPath: path, qemuVersion: version, log: o.Logger,
		accel: make(chan struct{}, 1), sessions: map[string]*Session{},
	}
	h.initramfs.made = map[string]string{}
	h.snapshots = OpenSnapshots(o.StateDir)
	if _, err := h.snapshots.collect(false, o.Logger); err != nil {
		o.Logger.Warn("collecting what dead processes left of snapshots", "err", err)
	}
	if h.clones, err = newCloner(o); err != nil {
		return nil, err
	}
	h.life, h.cancel = context.WithCancel(context.WithoutCancel(ctx))
	h.pool = newPool(h, o.Pool)
	go h.pool.run(h.life)
	return h, nil
}

// DefaultRuntimeDir is where sessions' sockets are unless HostOptions say otherwise.
func DefaultRuntimeDir() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) { // a relative one is invalid, says the XDG specification
		return filepath.Join(dir, "gondolin")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("gondolin-%d", os.Getuid()))
}

// checkPrivate refuses a directory that others may enter: whoever connects to a
// session's port before us speaks to its guest.
func checkPrivate(dir string) error {
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !st.IsDir() || st.Mode().Perm()&0o077 != 0 || !ownedByUs(st) {
		return fmt.Errorf("%s must be a directory of your own with mode 0700: remove it or choose another runtime directory", dir)
	}
	return nil
}

// Create boots a session. When ctx ends first, nothing of it stays behind.
func (h *Host) Create(ctx context.Context, o Options) (*Session, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	release, err := h.reserveFor(1)
	if err != nil {
		return nil, err
	}
	defer release()
	ctx, cancel := h.within(ctx)
	defer cancel()
	s := h.pooled(ctx, o)
	if s == nil {
		s, err = h.boot(ctx, o)
	}
	return h.handOut(ctx, s, err)
}

// within ends a context with the host.
func (h *Host) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(h.life, cancel)
	return ctx, func() { stop(); cancel() }
}

// handOut gives a session whose machine has come to life its network and its mounts, and
// enters it in its reserved place, which is given back on failure.
func (h *Host) handOut(ctx context.Context, s *Session, err error) (*Session, error) {
	if err == nil {
		// From here on its machine may die and its connection break.
		s.work(s.watch)
		err = s.equip(ctx)
		if err == nil && h.opts.Register != "" {
			err = s.register()
		}
		if err != nil {
			s.end("its network or its mounts did not come up: " + firstLine(err.Error()))
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil && s.Info().State == StateClosed {
		err = s.closedError() // its end has not found it among the sessions
	}
	if err != nil {
		h.slots--
		if h.closed {
			err = fmt.Errorf("creating a session: the host is closing: %w", ErrClosed)
		}
		return nil, err
	}
	h.sessions[s.id] = s
	return s, nil
}

// equip gives a session its network and its mounts, and lets a copy's processes go on.
func (s *Session) equip(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, equipTimeout, fmt.Errorf("the guest did not answer within %v", equipTimeout))
	defer cancel()
	err := s.attachNetwork(ctx)
	if err == nil {
		err = s.attachMounts(ctx)
	}
	if err == nil && s.revived() {
		err = s.wake(ctx)
	}
	return err
}

// Prepare makes ready, in the background, what lets a session with these options
// start at once: its template, and the pool if there is one.
func (h *Host) Prepare(o Options) error {
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	if h.opts.Pool.Size > 0 {
		h.pool.want(o)
		return nil
	}
	config, err := h.machine("template", &o)
	if err != nil {
		return err
	}
	verdicts := qemu.LoadVerdicts(h.opts.CacheDir, h.qemuPath+" "+h.qemuVersion)
	list, _, err := qemu.Candidates(h.opts.Accelerator, verdicts)
	if err != nil {
		return err
	}
	if _, proven := verdicts.Get(list[0]); !proven && len(list) > 1 {
		return nil // the first session finds out
	}
	config.Accelerator = list[0]
	if t, _ := h.cloneFrom(h.life, config, o.Limits.DiskMiB); t != nil {
		return t.Close()
	}
	return nil
}

// reserveFor reserves places for n sessions. release is called when nothing of them is under way
// any more; the places belong to handOut, or are given back.
func (h *Host) reserveFor(n int) (release func(), err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, fmt.Errorf("creating a session: the host is closed: %w", ErrClosed)
	}
	switch most := h.opts.MaxSessions; {
	case h.slots >= most:
		return nil, fmt.Errorf("%d sessions exist, the most allowed: close one or raise sessions.max: %w", h.slots, ErrLimit)
	case n > most-h.slots:
		return nil, fmt.Errorf("%d sessions exist and %d are allowed, so %d more cannot be made: ask for %d, close some or raise sessions.max: %w",
			h.slots, most, n, most-h.slots, ErrLimit)
	}
	h.slots += n
	h.making.Add(1)
	return h.making.Done, nil
}

// giveBack gives back places that were reserved and are not used.
func (h *Host) giveBack(n int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.slots -= n
	return nil
}

// forget is called by a session when all of it is gone.
func (h *Host) forget(s *Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sessions[s.id] == s {
		delete(h.sessions, s.id)
		h.slots--
	}
}

// Get returns a session.
func (h *Host) Get(id string) (*Session, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.sessions[id]; s != nil {
		return s, nil
	}
	ids := make([]string, 0, len(h.sessions))
	for id := range h.sessions {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	if len(ids) == 0 {
		return nil, fmt.Errorf("no session %q: none is open: %w", id, ErrClosed)
	}
	return nil, fmt.Errorf("no session %q: open are %s: %w", id, strings.Join(ids, ", "), ErrClosed)
}

// Sessions returns the open sessions, oldest first.
func (h *Host) Sessions() []*Session {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]*Session, 0, len(h.sessions))
	for _, s := range h.sessions {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *Session) int { return a.created.Compare(b.created) })
	return list
}

// Close ends what is being created, closes every session, and waits for both.
func (h *Host) Close() error {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.cancel()
	h.making.Wait()
	<-h.pool.done
	var wg sync.WaitGroup
	for _, s := range h.Sessions() {
		wg.Go(func() { s.end("the host is closing") })
	}
	wg.Wait()
	h.clones.close()
	return nil
}

func newID() string { return strings.ToLower(rand.Text()[:10]) }
