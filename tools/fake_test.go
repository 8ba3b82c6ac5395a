package tools

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gondolin-go/gondolin/sandbox"
)

// fakeBoxes makes sessions in memory. create, when set, replaces the making.
type fakeBoxes struct {
	mu       sync.Mutex
	n        int
	sessions map[string]*fakeSession
	mounts   func(o SessionOptions) Mounts
	create   func(ctx context.Context, o SessionOptions) error
	run      func(ctx context.Context, cmd sandbox.Command) (sandbox.Exit, error)
	made     []SessionOptions
}

func newFakeBoxes() *fakeBoxes { return &fakeBoxes{sessions: map[string]*fakeSession{}} }

func (b *fakeBoxes) Create(ctx context.Context, o SessionOptions) (Session, error) {
	b.mu.Lock()
	create := b.create
	b.mu.Unlock()
	if create != nil {
		if err := create(ctx, o); err != nil {
			return nil, err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n++
	s := &fakeSession{
		id: fmt.Sprintf("vm-%d", b.n), label: o.Label, limits: o.Limits, run: b.run,
		state: sandbox.StateRunning, files: map[string][]byte{}, jobs: map[string]*fakeJob{},
	}
	if b.mounts != nil {
		s.mounts = b.mounts(o)
	}
	b.sessions[s.id] = s
	b.made = append(b.made, o)
	return s, nil
}

func (b *fakeBoxes) Get(id string) (Session, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s, ok := b.sessions[id]; ok {
		return s, nil
	}
	return nil, errors.New("never heard of it")
}

func (b *fakeBoxes) List() []sandbox.Info {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []sandbox.Info
	for i := 1; i <= b.n; i++ {
		if s, ok := b.sessions[fmt.Sprintf("vm-%d", i)]; ok {
			all = append(all, s.Info())
		}
	}
	return all
}

func (b *fakeBoxes) Close(_ context.Context, id, reason string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sessions[id].closeFor(reason)
	return nil
}

func (b *fakeBoxes) session(id string) *fakeSession {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sessions[id]
}

type fakeSession struct {
	mu            sync.Mutex
	id, label     string
	limits        sandbox.Limits
	state         sandbox.State
	reason        string
	files         map[string][]byte
	as            map[string]sandbox.FileInfo // what Stat says of a file, where that is not what files has
	jobs          map[string]*fakeJob
	n             int
	released      []string
	run           func(ctx context.Context, cmd sandbox.Command) (sandbox.Exit, error)
	exposed       []Exposed
	fileErr       error
	startErr      error
	entries       []sandbox.FileInfo
	globbed       sandbox.GlobOptions // by the last Glob
	matches       []sandbox.GrepMatch
	changes       bool // files change between reading and writing
	ignoresSignal string
	mounts        Mounts
	denials       []sandbox.Denial
	onFile        func() error // called by WriteFile
	mute          chan string  // gets the id of a job whose Output then says nothing before ctx ends
}

type fakeJob struct {
	cmd     sandbox.Command
	out     []byte
	in      []byte
	eof     bool
	exit    *sandbox.Exit
	signals []string
	changed chan struct{}
}

var _ Session = (*fakeSession)(nil)

func (s *fakeSession) ID() string { return s.id }

func (s *fakeSession) Info() sandbox.Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sandbox.Info{ID: s.id, Label: s.label, State: s.state, Reason: s.reason, Limits: s.limits, Image: "test"}
}

func (s *fakeSession) closeFor(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state, s.reason = sandbox.StateClosed, reason
}

func (s *fakeSession) alive() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == sandbox.StateClosed {
		return fmt.Errorf("%w: %s", sandbox.ErrClosed, s.reason)
	}
	return s.fileErr
}

// Run writes what the command line asks for unless the test has its own run.
func (s *fakeSession) Run(ctx context.Context, cmd sandbox.Command) (sandbox.Exit, error) {
	if err := s.alive(); err != nil {
		return sandbox.Exit{}, err
	}
	var counts [2]counter
	spool := &lockedBuffer{}
	counts[0].w, counts[1].w = []io.Writer{cmd.Stdout, spool}, []io.Writer{cmd.Stderr, spool}
	cmd.Stdout, cmd.Stderr = &counts[0], &counts[1]
	run := s.run
	if run == nil {
		run = func(_ context.Context, cmd sandbox.Command) (sandbox.Exit, error) {
			text, _ := strings.CutPrefix(cmd.Shell, "echo ")
			_, err := io.WriteString(cmd.Stdout, text)
			return sandbox.Exit{}, err
		}
	}
	exit, err := run(ctx, cmd)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	exit.ID = fmt.Sprintf("job-%d", s.n)
	exit.Stdout, exit.Stderr = counts[0].n, counts[1].n
	s.jobs[exit.ID] = &fakeJob{cmd: cmd, out: spool.b, exit: &exit, changed: make(chan struct{})}
	return exit, err
}

type counter struct {
	w []io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	for _, w := range c.w {
		_, _ = w.Write(p)
	}
	return len(p), nil
}

type lockedBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.b) < 1<<20 {
		l.b = append(l.b, p...)
	}
	return len(p), nil
}

func (s *fakeSession) StartJob(_ context.Context, cmd sandbox.Command) (sandbox.Job, error) {
	if err := s.alive(); err != nil {
		return sandbox.Job{}, err
	}
	if cmd.Stdin != nil || cmd.Stdout != nil || cmd.Stderr != nil {
		return sandbox.Job{}, fmt.Errorf("a background command takes no reader or writers: %w", sandbox.ErrInvalid)
	}
	if s.startErr != nil {
		return sandbox.Job{}, s.startErr
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	id := fmt.Sprintf("job-%d", s.n)
	s.jobs[id] = &fakeJob{cmd: cmd, changed: make(chan struct{})}
	return s.job(id), nil
}

func (s *fakeSession) job(id string) sandbox.Job {
	j := s.jobs[id]
	r := sandbox.Job{ID: id, Command: j.cmd.Shell, State: sandbox.JobRunning, Output: int64(len(j.out)), Exit: j.exit}
	if j.exit != nil {
		r.State = sandbox.JobExited
	}
	return r
}

// update changes a job and wakes who waits for it.
func (s *fakeSession) update(id string, f func(j *fakeJob)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.jobs[id]
	f(j)
	close(j.changed)
	j.changed = make(chan struct{})
}

func (s *fakeSession) Jobs(context.Context) ([]sandbox.Job, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []sandbox.Job
	for id := range s.jobs {
		all = append(all, s.job(id))
	}
	slices.SortFunc(all, func(a, b sandbox.Job) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}

func (s *fakeSession) Job(_ context.Context, id string) (sandbox.Job, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.jobs[id] == nil {
		return sandbox.Job{}, fmt.Errorf("%w: %s", sandbox.ErrNoJob, id)
	}
	return s.job(id), nil
}

func (s *fakeSession) Output(ctx context.Context, id string, offset int64, most int, wait time.Duration) (sandbox.OutputChunk, error) {
	if s.mute != nil {
		s.mute <- id
		<-ctx.Done()
		return sandbox.OutputChunk{}, ctx.Err()
	}
	timeout := time.After(wait)
	for {
		s.mu.Lock()
		j := s.jobs[id]
		if j == nil {
			s.mu.Unlock()
			return sandbox.OutputChunk{}, fmt.Errorf("%w: %s", sandbox.ErrNoJob, id)
		}
		offset := min(offset, int64(len(j.out)))
		data := bytes.Clone(j.out[offset:min(len(j.out), int(offset)+most)])
		chunk := sandbox.OutputChunk{Data: data, Offset: offset, Next: offset + int64(len(data)), Job: s.job(id)}
		changed, ended := j.changed, j.exit != nil
		s.mu.Unlock()
		if len(data) > 0 || ended || wait == 0 {
			return chunk, nil
		}
		select {
		case <-changed:
		case <-timeout:
			return chunk, nil
		case <-ctx.Done():
			return sandbox.OutputChunk{}, ctx.Err()
		}
	}
}

func (s *fakeSession) Input(ctx context.Context, id string, data []byte, eof bool) error {
	if _, err := s.Job(ctx, id); err != nil {
		return err
	}
	s.update(id, func(j *fakeJob) { j.in = append(j.in, data...); j.eof = j.eof || eof })
	return nil
}

func (s *fakeSession) Signal(ctx context.Context, id, signal string) error {
	if _, err := s.Job(ctx, id); err != nil {
		return err
	}
	s.update(id, func(j *fakeJob) {
		j.signals = append(j.signals, signal)
		if signal != s.ignoresSignal {
			j.exit = &sandbox.Exit{ID: id, Code: 143, Signal: "SIG" + signal}
		}
	})
	return nil
}

func (s *fakeSession) Release(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.jobs, id)
	s.released = append(s.released, id)
	return nil
}

func (s *fakeSession) file(op, name string) ([]byte, error) {
	if err := s.alive(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.files[name]
	if !ok {
		return nil, &sandbox.FileError{Op: op, Path: short(name, 100), Errno: "ENOENT", Msg: "no such file or directory"}
	}
	return data, nil
}

func (s *fakeSession) Open(_ context.Context, name string, offset, limit int64) (io.ReadCloser, sandbox.FileInfo, error) {
	data, err := s.file("open", name)
	if err != nil {
		return nil, sandbox.FileInfo{}, err
	}
	if limit == 0 {
		limit = int64(len(data))
	}
	return io.NopCloser(io.NewSectionReader(bytes.NewReader(data), offset, limit)), s.describe(name, data), nil
}

func (s *fakeSession) describe(name string, data []byte) sandbox.FileInfo {
	info := sandbox.FileInfo{Name: path.Base(name), Type: "file", Size: int64(len(data)), Mode: 0o644}
	if as, ok := s.as[name]; ok {
		info.Type, info.Size = as.Type, as.Size
	}
	return info
}

func (s *fakeSession) WriteFile(_ context.Context, name string, r io.Reader, o sandbox.WriteOptions) (sandbox.Written, error) {
	if err := s.alive(); err != nil {
		return sandbox.Written{}, err
	}
	if s.onFile != nil {
		return sandbox.Written{}, s.onFile()
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return sandbox.Written{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, had := s.files[name]
	if o.IfSHA256 != "" {
		if sum := sha256.Sum256(old); !had || hex.EncodeToString(sum[:]) != o.IfSHA256 {
			return sandbox.Written{}, fmt.Errorf("%s: %w", name, sandbox.ErrChanged)
		}
	}
	s.files[name] = data
	sum := sha256.Sum256(data)
	return sandbox.Written{Bytes: int64(len(data)), SHA256: hex.EncodeToString(sum[:]), Created: !had}, nil
}

func (s *fakeSession) EditFile(_ context.Context, name, old, replacement string, all bool, ifSHA256 string) (sandbox.EditResult, error) {
	data, err := s.file("edit", name)
	if err != nil {
		return sandbox.EditResult{}, err
	}
	if sum := sha256.Sum256(data); s.changes || ifSHA256 != "" && hex.EncodeToString(sum[:]) != ifSHA256 {
		return sandbox.EditResult{}, fmt.Errorf("%s: %w", name, sandbox.ErrChanged)
	}
	n := strings.Count(string(data), old)
	if n == 0 || n > 1 && !all {
		return sandbox.EditResult{}, fmt.Errorf("%w: %d occurrences", sandbox.ErrNoMatch, n)
	}
	after := []byte(strings.ReplaceAll(string(data), old, replacement))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[name] = after
	return sandbox.EditResult{Replacements: n, Before: data, After: after}, nil
}

func (s *fakeSession) Stat(_ context.Context, name string) (sandbox.FileInfo, error) {
	data, err := s.file("stat", name)
	return s.describe(name, data), err
}

func (s *fakeSession) ReadDir(_ context.Context, _ string, limit int) ([]sandbox.FileInfo, bool, error) {
	if err := s.alive(); err != nil {
		return nil, false, err
	}
	return s.entries[:min(limit, len(s.entries))], len(s.entries) > limit, nil
}

func (s *fakeSession) Glob(ctx context.Context, o sandbox.GlobOptions) ([]sandbox.FileInfo, bool, error) {
	if _, err := path.Match(o.Pattern, ""); err != nil {
		return nil, false, fmt.Errorf("%w: pattern %q: %w", sandbox.ErrInvalid, o.Pattern, err)
	}
	s.globbed = o
	return s.ReadDir(ctx, o.Root, o.Limit)
}

func (s *fakeSession) Grep(_ context.Context, o sandbox.GrepOptions) ([]sandbox.GrepMatch, bool, error) {
	if _, err := regexp.Compile(o.Pattern); err != nil {
		return nil, false, fmt.Errorf("%w: pattern: %w", sandbox.ErrInvalid, err)
	}
	return s.matches[:min(o.Limit, len(s.matches))], len(s.matches) > o.Limit, s.alive()
}

func (s *fakeSession) Close(context.Context) error {
	s.closeFor("closed")
	return nil
}
