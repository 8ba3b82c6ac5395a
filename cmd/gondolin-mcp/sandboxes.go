package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/images"
	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/tools"
)

// endedKept is how many ended sessions are remembered, for the reason of their end.
const endedKept = 16

// sandboxes is what tools asks for, made of a configuration, an image store and
// a sandbox host. The host is made when it is first needed and asked for again
// after a failure: QEMU may be installed while a client runs.
type sandboxes struct {
	config   *configs.Config
	log      *slog.Logger
	images   *keeper
	secrets  secrets
	policies *policies
	metrics  *metrics
	ask      func(context.Context, tools.Question) (bool, error) // the human; nil: there is none
	cwd      string                                              // for configs.WorkspaceCWD
	program  string                                              // what the registry of sessions calls this process
	once     bool                                                // it makes one session and ends with it
	tell     func(format string, args ...any)                    // the person who made it, what the log may leave out
	life     context.Context                                     // until close
	end      context.CancelFunc
	workers  sync.WaitGroup // one for each session, the preparation, a build

	hostMu sync.Mutex
	host   *sandbox.Host

	mu    sync.Mutex
	open  map[string]*session
	ended []*session // newest last
	// For the metrics: sessions so far, and what the network of those that ended refused.
	started, denied uint64
}

var _ tools.Sandboxes = (*sandboxes)(nil)

func newSandboxes(ctx context.Context, c *configs.Config, log *slog.Logger) *sandboxes {
	b := &sandboxes{program: "serve", config: c, log: log, cwd: workingDirectory(), policies: newPolicies(c), open: map[string]*session{}}
	b.tell = func(string, ...any) {}
	b.metrics = newMetrics(b)
	b.life, b.end = context.WithCancel(ctx)
	b.images = &keeper{
		dir: c.ImageDir(), name: c.Image.Name, autoBuild: c.Image.AutoBuild,
		log: log, life: b.life, workers: &b.workers, build: images.Build,
	}
	return b
}

// close ends every session and everything else under way, and waits for it.
func (b *sandboxes) close() {
	b.end()
	b.hostMu.Lock()
	host := b.host
	b.hostMu.Unlock()
	if host != nil {
		if err := host.Close(); err != nil {
			b.log.Warn("closing the sandboxes", "error", err)
		}
	}
	b.workers.Wait()
}

// prepare makes the host, and what lets sessions start at once, beforehand, and says in
// the log what is missing.
func (b *sandboxes) prepare() {
	b.workers.Go(func() {
		host, err := b.theHost(b.life)
		if err != nil {
			if b.life.Err() == nil {
				b.log.Error("no session can start", "error", err)
			}
			return
		}
		img, release, err := b.images.present(b.life)
		if err != nil {
			return // the first session builds it, or says what is wrong with it
		}
		defer release()
		opts := b.config.SessionOptions()
		opts.Image = sandboxImage(img)
		if opts.Dir == "" && b.expectsWorkspace() {
			opts.Dir = configs.WorkspacePath
		}
		if err := host.Prepare(opts); err != nil && b.life.Err() == nil {
			b.log.Warn("preparing for the first session", "error", err)
		}
	})
}

func (b *sandboxes) theHost(ctx context.Context) (*sandbox.Host, error) {
	b.hostMu.Lock()
	defer b.hostMu.Unlock()
	if b.host != nil {
		return b.host, nil
	}
	o := b.config.HostOptions(b.log)
	o.Register, o.TemplateFirst = b.program, b.once
	if b.once {
		o.Pool.Size = 0
	}
	host, err := sandbox.NewHost(ctx, o)
	if err != nil {
		return nil, err
	}
	b.host = host
	return host, nil
}

// Create makes a session with the configured options, as far as the agent did not ask for less.
func (b *sandboxes) Create(ctx context.Context, o tools.SessionOptions) (tools.Session, error) {
	s, err := b.create(ctx, o)
	if err != nil {
		return nil, err // and no interface that holds a nil
	}
	return s, nil
}

func (b *sandboxes) create(ctx context.Context, o tools.SessionOptions) (*session, error) {
	opts := b.config.SessionOptions()
	opts.Label = o.Label
	var err error
	if opts.Limits, err = lower(opts.Limits, o.Limits); err != nil {
		return nil, err
	}
	// Before the image, which may take minutes that would be wasted.
	host, err := b.theHost(ctx)
	if err != nil {
		return nil, err
	}
	img, release, err := b.images.take(ctx)
	if err != nil {
		return nil, err
	}
	p, err := b.equip(ctx, &opts, o.Roots, img, release, nil)
	if err != nil {
		return nil, err
	}
	s, err := host.Create(ctx, opts)
	if err != nil {
		return nil, errors.Join(err, p.close(err.Error()))
	}
	return b.enter(ctx, s, p), nil
}

// equipment is what a session has of this process until it is Done.
type equipment struct {
	*files
	net     *network
	img     *images.Image
	release func() // of the image
	roots   []string
}

func (p *equipment) close(reason string) error {
	err := p.net.close(reason)
	p.files.close()
	p.release()
	return err
}

// equip opens what a session needs beside its machine, and puts it into its options. from are the
// files of the session that it is a copy of, or nil. It owns release from here on.
func (b *sandboxes) equip(ctx context.Context, opts *sandbox.Options, roots []string, img *images.Image, release func(), from *files) (*equipment, error) {
	opts.Image = sandboxImage(img)
	files, err := b.provide(roots, firstOf(opts.User, opts.Image.User), from)
	if err != nil {
		release()
		return nil, err
	}
	net, err := b.network(ctx)
	if err != nil {
		files.close()
		release()
		return nil, err
	}
	opts.Mounts, opts.Denials, opts.Network = files.mounts, files.denials, net.Network
	opts.Visited, opts.Snapshotted = net.record.follow, func(m *sandbox.Snapshot) { net.record.copied("kept", "as snapshot "+m.Name) }
	if opts.Dir == "" {
		opts.Dir = files.dir
	}
	return &equipment{files: files, net: net, img: img, release: release, roots: roots}, nil
}

// enter adds a session to those that are open, and opens what the configuration offers of it.
func (b *sandboxes) enter(ctx context.Context, s *sandbox.Session, p *equipment) *session {
	wrapped := &session{Session: s, mounts: p.shown, plan: p.plan, record: p.net.record, metrics: b.metrics, hosts: b.config.Ingress.Hosts, equipment: p}
	unfollow := b.policies.follow(s.SetPolicy)
	b.mu.Lock()
	b.open[s.ID()] = wrapped
	b.started++
	b.mu.Unlock()
	b.workers.Go(func() {
		<-s.Done()
		unfollow()
		if err := p.close(wrapped.Info().Reason); err != nil {
			b.log.Error("closing the audit record", "session", s.ID(), "error", err)
		}
		b.bury(wrapped)
	})
	b.reach(ctx, wrapped)
	return wrapped
}

// bury moves a session that ended to those that are only remembered.
func (b *sandboxes) bury(s *session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.open, s.ID())
	b.denied += s.NetworkStats().Denials
	b.ended = append(b.ended, s)
	if len(b.ended) > endedKept {
		b.ended = slices.Delete(b.ended, 0, len(b.ended)-endedKept)
	}
}

func (b *sandboxes) Get(id string) (tools.Session, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.open[id]; s != nil {
		return s, nil
	}
	for _, s := range b.ended {
		if s.ID() == id {
			return s, nil
		}
	}
	return nil, errors.New("no session has or had this id lately")
}

func (b *sandboxes) List() []sandbox.Info {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]sandbox.Info, 0, len(b.open))
	for _, s := range b.open {
		// One that just ended may not have been buried yet.
		if info := s.Info(); info.State != sandbox.StateClosed {
			list = append(list, info)
		}
	}
	slices.SortFunc(list, func(x, y sandbox.Info) int { return x.Created.Compare(y.Created) })
	return list
}

func (b *sandboxes) Close(_ context.Context, id, reason string) error {
	b.mu.Lock()
	s := b.open[id]
	b.mu.Unlock()
	if s == nil {
		return nil // it has ended already
	}
	return s.closeFor(reason)
}

// session is a sandbox session that knows why it was closed.
type session struct {
	*sandbox.Session
	mounts  tools.Mounts
	plan    []planned
	record  *record // nil: none is kept
	metrics *metrics
	hosts   []string // ingress.hosts

	equipment *equipment

	mu     sync.Mutex
	reason string
}

var _ tools.Session = (*session)(nil)

func (s *session) closeFor(reason string) error {
	s.mu.Lock()
	if s.reason == "" && s.Session.Info().State != sandbox.StateClosed {
		s.reason = reason
	}
	s.mu.Unlock()
	return s.Session.Close()
}

// Close waits for the end of the machine, whatever ctx says: it is short.
func (s *session) Close(context.Context) error { return s.closeFor("") }

func (s *session) Mounts() tools.Mounts { return s.mounts }

// Info puts the reason that was given for closing in the place of "it was closed".
func (s *session) Info() sandbox.Info {
	info := s.Session.Info()
	s.mu.Lock()
	defer s.mu.Unlock()
	if info.State == sandbox.StateClosed && s.reason != "" {
		info.Reason = s.reason
	}
	return info
}

// sandboxImage is an image of the store in the terms of package sandbox.
func sandboxImage(img *images.Image) sandbox.Image {
	si := sandbox.Image{
		ID: img.ID(), Key: img.ID(),
		Kernel: img.Path(images.KernelFile), Modules: img.Path(images.ModulesFile), RootDisk: img.Path(images.RootFile),
	}
	if names := img.Names(); len(names) > 0 {
		si.ID = fmt.Sprintf("%s (%.12s)", names[0], img.ID())
	}
	if c := img.Manifest.Config; c != nil {
		si.Dir, si.User = c.WorkingDir, c.User
		si.Env = map[string]string{}
		for _, v := range c.Env {
			if name, value, ok := strings.Cut(v, "="); ok && name != "" {
				si.Env[name] = value
			}
		}
	}
	return si
}

// atMost is what the session tool may offer. No time limit is 0 there.
func atMost(c *configs.Config) sandbox.Limits {
	l := c.Limits.Sandbox()
	l.Wall, l.Idle = max(l.Wall, 0), max(l.Idle, 0)
	return l
}

// lower applies the limits that an agent asked for to the configured ones. It
// can have less of everything; all that it cannot have is said at once.
func lower(have, want sandbox.Limits) (sandbox.Limits, error) {
	var errs []error
	refuse := func(key string, asked, allowed any) {
		errs = append(errs, fmt.Errorf("%v is more than the %v that %s allows: ask for at most that, or ask the user to raise %s in the configuration of gondolin-mcp",
			asked, allowed, key, key))
	}
	count := func(key string, have *int, want int, show func(int) any) {
		switch {
		case want == 0:
		case want > *have:
			refuse(key, show(want), show(*have))
		default:
			*have = want
		}
	}
	number := func(n int) any { return n }
	size := func(n int) any { return configs.Size(n) }
	count("limits.cpus", &have.CPUs, want.CPUs, number)
	count("limits.memory", &have.MemoryMiB, want.MemoryMiB, size)
	count("limits.disk", &have.DiskMiB, want.DiskMiB, size)
	count("limits.processes", &have.Processes, want.Processes, number)
	span := func(key string, have *time.Duration, want time.Duration) {
		switch {
		case want == 0:
		case *have > 0 && (want < 0 || want > *have): // negative means never
			refuse(key, configs.Duration(want), configs.Duration(*have))
		default:
			*have = want
		}
	}
	span("limits.wall", &have.Wall, want.Wall)
	span("limits.idle", &have.Idle, want.Idle)
	return have, errors.Join(errs...)
}
