package main

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/netguard"
	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/sandbox/audit"
)

// record is the audit record of one session: what its network decides and what is run in
// it. A nil one, and one that was not opened because none is kept, takes everything.
type record struct {
	audit  configs.Audit
	origin string // what the session goes on from, if anything; set before open

	mu       sync.Mutex
	log      *audit.Log
	commands uint64              // numbered so far
	running  map[uint64]struct{} // those that have not been seen to end
	jobs     map[string]uint64   // those of them that run in the background, by their ids
}

var _ netguard.Recorder = (*record)(nil)

func (r *record) open(session string) error {
	if !r.audit.Enabled {
		return nil
	}
	log, err := audit.OpenWith(r.audit.Dir, session, audit.Options{FileSize: int64(r.audit.FileSize) << 20, Files: r.audit.Files})
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.log = log
	r.mu.Unlock()
	return r.write(audit.Event{Kind: audit.KindSession, Detail: "started", Reason: r.origin})
}

// copied records that the session was copied, and what became of that. The copy exists, so that an
// error changes nothing any more; it shows at the next command.
func (r *record) copied(how, into string) {
	_ = r.write(audit.Event{Kind: audit.KindSession, Detail: how, Reason: into})
}

// close ends the record with the reason for the session's end.
func (r *record) close(reason string) error {
	err := r.write(audit.Event{Kind: audit.KindSession, Detail: "ended", Reason: reason})
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.log == nil {
		return nil
	}
	return errors.Join(err, r.log.Close())
}

func (r *record) write(e audit.Event) error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	log := r.log
	r.mu.Unlock()
	if log == nil {
		return nil
	}
	return log.Record(e)
}

// Record implements netguard.Recorder.
func (r *record) Record(e netguard.Event) error {
	return r.write(audit.Event{
		Time: e.Time, Kind: audit.KindNetwork, Exec: r.only(), Flow: e.Flow, Protocol: e.Protocol, Host: e.Host, Port: e.Port, Addr: e.Addr,
		Method: e.Method, Path: e.Path, Command: e.Command, Status: e.Status, Verdict: e.Verdict, Rule: e.Rule, Reason: e.Reason, Remedy: e.Remedy,
		Secrets: e.Secrets, Sent: e.Sent, Received: e.Received, Seconds: e.Duration.Seconds(), Done: e.Duration > 0 || e.Status > 0,
	})
}

// runs records a command before it runs, and gives it its number. What cannot be recorded does not run.
func (r *record) runs(cmd sandbox.Command) (number uint64, err error) {
	if r == nil {
		return 0, nil
	}
	r.mu.Lock()
	r.commands++
	number = r.commands
	if r.running == nil {
		r.running = map[uint64]struct{}{}
	}
	r.running[number] = struct{}{}
	r.mu.Unlock()
	err = r.write(audit.Event{Kind: audit.KindExec, Exec: numeral(number), Command: commandLine(cmd), Detail: "started"})
	if err != nil {
		r.over(number)
		return 0, notRecorded(err)
	}
	return number, nil
}

// over says that a command runs no more.
func (r *record) over(number uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, number)
}

// leave says that a command goes on in the background, where its end is seen when somebody asks for it.
func (r *record) leave(number uint64, id string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.jobs == nil {
		r.jobs = map[string]uint64{}
	}
	r.jobs[id] = number
}

// saw takes note of a command in the background that has ended.
func (r *record) saw(job sandbox.Job) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if number, ok := r.jobs[job.ID]; ok && job.State == sandbox.JobExited {
		delete(r.jobs, job.ID)
		delete(r.running, number)
	}
}

// only is the number of the command that runs, or "" when it is not one alone: whose a connection is cannot be told then.
func (r *record) only() string {
	if r == nil {
		return ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.running) == 1 {
		for number := range r.running {
			return numeral(number)
		}
	}
	return ""
}

func numeral(n uint64) string { return strconv.FormatUint(n, 10) }

// ended records how a command came out.
func (r *record) ended(number uint64, cmd sandbox.Command, exit sandbox.Exit, err error) error {
	if r == nil {
		return nil
	}
	r.over(number)
	e := audit.Event{
		Kind: audit.KindExec, Exec: numeral(number), Command: commandLine(cmd), Status: exit.Code, Seconds: exit.Duration.Seconds(), Done: true, Detail: "ended",
	}
	switch {
	case err != nil:
		e.Verdict, e.Reason = audit.Error, err.Error()
	case exit.TimedOut:
		e.Detail = "timed out"
	case exit.Signal != "":
		e.Detail = "ended by " + exit.Signal
	}
	return r.write(e)
}

// follow records a command before it runs; the function that it returns records the end. It is
// what sandbox.Options.Visited asks for.
func (r *record) follow(cmd sandbox.Command) (ended func(sandbox.Exit, error), err error) {
	number, err := r.runs(cmd)
	if err != nil {
		return nil, err
	}
	return func(exit sandbox.Exit, err error) {
		if errors.Is(err, sandbox.ErrDetached) {
			r.leave(number, exit.ID)
			return // its end is not recorded
		}
		_ = r.ended(number, cmd, exit, err) // a record that fails says so at the next command
	}, nil
}

func commandLine(cmd sandbox.Command) string {
	if cmd.Shell != "" {
		return cmd.Shell
	}
	return strings.Join(cmd.Argv, " ")
}

// Run records the command before and after.
func (s *session) Run(ctx context.Context, cmd sandbox.Command) (sandbox.Exit, error) {
	number, err := s.record.runs(cmd)
	if err != nil {
		return sandbox.Exit{}, err
	}
	exit, err := s.Session.Run(ctx, cmd)
	s.metrics.ran(exit, err)
	if rerr := s.record.ended(number, cmd, exit, err); rerr != nil && err == nil {
		err = notRecorded(rerr)
	}
	return exit, err
}

// StartJob records the command. Its end is not recorded, unless it did not start.
func (s *session) StartJob(ctx context.Context, cmd sandbox.Command) (sandbox.Job, error) {
	number, err := s.record.runs(cmd)
	if err != nil {
		return sandbox.Job{}, err
	}
	job, err := s.Session.StartJob(ctx, cmd)
	if err != nil {
		_ = s.record.ended(number, cmd, sandbox.Exit{}, err) // as in follow
		return job, err
	}
	s.record.leave(number, job.ID)
	return job, nil
}

// Output sees that a job has ended.
func (s *session) Output(ctx context.Context, id string, offset int64, limit int, wait time.Duration) (sandbox.OutputChunk, error) {
	chunk, err := s.Session.Output(ctx, id, offset, limit, wait)
	s.record.saw(chunk.Job)
	return chunk, err
}

// Job sees that it has ended.
func (s *session) Job(ctx context.Context, id string) (sandbox.Job, error) {
	job, err := s.Session.Job(ctx, id)
	s.record.saw(job)
	return job, err
}

// notRecordedError is an audit record that cannot be written.
type notRecordedError struct{ error }

func (e notRecordedError) Error() string {
	return "the audit record cannot be written, and what is not recorded does not happen: " + e.error.Error() + ". Ask the user to look after it (audit.dir in the configuration of gondolin-mcp)."
}

func (e notRecordedError) Unwrap() error { return e.error }

func notRecorded(err error) error { return notRecordedError{err} }

// pruneRecords removes records that are older than they are kept.
func (b *sandboxes) pruneRecords() {
	a := b.config.Audit
	if !a.Enabled || a.Keep == configs.Never {
		return
	}
	n, err := audit.Prune(a.Dir, time.Now().Add(-time.Duration(a.Keep)))
	if err != nil {
		b.log.Warn("removing old audit records", "error", err)
	}
	if n > 0 {
		b.log.Info("removed old audit records", "sessions", n, "older_than", a.Keep)
	}
}
