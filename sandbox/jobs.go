package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// maxWait bounds how long Output waits in one call.
const maxWait = 10 * time.Minute

// inputPatience is how long a process may leave given input unread before Input fails.
const inputPatience = 10 * time.Second

// StartJob starts a command in the background. It runs until it ends, is
// signalled, or the session closes; ctx governs the start only. Its newest
// output is kept (Command.SpoolBytes) and older output dropped, so that a job
// never waits for a reader. Stdin and the writers of the command must be nil.
func (s *client) StartJob(ctx context.Context, cmd Command) (Job, error) {
	if cmd.Stdin != nil || cmd.Stdout != nil || cmd.Stderr != nil {
		return Job{}, fmt.Errorf("a background command takes no reader or writers; use Input and Output: %w", ErrInvalid)
	}
	cmd.Retain = true
	req, err := s.startRequest(&cmd)
	if err != nil {
		return Job{}, err
	}
	req.Detach = true
	defer s.use()()
	st, id, err := s.startProcess(ctx, req)
	if err != nil {
		return Job{}, err
	}
	st.Close()
	job, err := s.Job(ctx, strconv.FormatUint(id, 10))
	if err != nil { // it runs all the same
		job = Job{ID: strconv.FormatUint(id, 10), State: JobRunning, Started: time.Now()}
	}
	return job, nil
}

// Jobs returns the processes that run and those that are retained.
func (s *client) Jobs(ctx context.Context) ([]Job, error) {
	var reply wire.Jobs
	if err := s.call(ctx, wire.OpJobs, "", nil, &reply); err != nil {
		return nil, err
	}
	jobs := make([]Job, 0, len(reply.Jobs))
	for i := range reply.Jobs {
		jobs = append(jobs, jobOf(&reply.Jobs[i]))
	}
	return jobs, nil
}

// Job returns one process.
func (s *client) Job(ctx context.Context, id string) (Job, error) {
	jobs, err := s.Jobs(ctx)
	if err != nil {
		return Job{}, err
	}
	for _, j := range jobs {
		if j.ID == id {
			return j, nil
		}
	}
	return Job{}, fmt.Errorf("process %q: %w", id, ErrNoJob)
}

func jobOf(j *wire.Job) Job {
	out := Job{
		ID: strconv.FormatUint(j.ID, 10), Command: printable(j.Command), State: JobRunning,
		Started: time.UnixMicro(j.StartedUS), Output: j.Output,
	}
	if j.Exit != nil {
		exit := exitOf(j.ID, j.Exit)
		out.State, out.Exit = JobExited, &exit
	}
	return out
}

func jobID(id string) (uint64, error) {
	n, err := strconv.ParseUint(id, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("process %q: %w", id, ErrNoJob)
	}
	return n, nil
}

// Output returns up to limit bytes of a process's output from offset on, and
// waits up to wait for some to come. A negative offset means the newest output.
func (s *client) Output(ctx context.Context, id string, offset int64, limit int, wait time.Duration) (OutputChunk, error) {
	n, err := jobID(id)
	if err != nil {
		return OutputChunk{}, err
	}
	limit = min(max(limit, 1), wire.MaxOutput)
	wait = min(max(wait, 0), maxWait)
	var reply wire.OutputChunk
	if err := s.call(ctx, wire.OpOutput, "", wire.Output{ID: n, Offset: offset, Max: limit, WaitMS: wait.Milliseconds()}, &reply); err != nil {
		return OutputChunk{}, err
	}
	if len(reply.Data) > limit {
		return OutputChunk{}, fmt.Errorf("the guest sent %d bytes of output where %d were asked for: %w", len(reply.Data), limit, wire.ErrProtocol)
	}
	chunk := OutputChunk{Data: reply.Data, Offset: reply.Offset, Next: reply.Offset + int64(len(reply.Data)), Job: jobOf(&reply.Job)}
	if offset >= 0 && reply.Offset > offset {
		chunk.Dropped = reply.Offset - offset
	}
	return chunk, nil
}

// Input writes to a process's standard input, which must have been left open
// (Command.KeepStdin), and closes it after that if eof is set. It fails when
// the process does not read for 10 s.
func (s *client) Input(ctx context.Context, id string, data []byte, eof bool) error {
	n, err := jobID(id)
	if err != nil {
		return err
	}
	defer s.use()()
	st, err := s.request(ctx, wire.OpStdin, "", wire.Stdin{ID: n, KeepOpen: !eof, WaitMS: inputPatience.Milliseconds()}, nil)
	if err != nil {
		return err
	}
	defer st.Close()
	return send(st, bytes.NewReader(data), wire.SendData, nil)
}

// Signal sends a signal, such as "INT" or "9", to the group of a process. KILL
// goes to everything that the process started.
func (s *client) Signal(ctx context.Context, id, name string) error {
	n, err := jobID(id)
	if err != nil {
		return err
	}
	return s.call(ctx, wire.OpSignal, "", wire.Signal{ID: n, Name: name, Tree: true}, nil)
}

// Release forgets a process and its output. One that runs goes on unwatched.
func (s *client) Release(ctx context.Context, id string) error {
	n, err := jobID(id)
	if err != nil {
		return err
	}
	return s.call(ctx, wire.OpRelease, "", wire.ProcessRef{ID: n}, nil)
}
