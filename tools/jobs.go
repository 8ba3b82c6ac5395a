package tools

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"github.com/gondolin-go/gondolin/sandbox"
)

type jobOutputArgs struct {
	JobID   string `json:"job_id" need:"yes" min:"1" max:"128" doc:"The job, as exec named it."`
	Offset  int    `json:"offset" min:"0" default:"0" doc:"Byte of the output to begin at: 0, or next_offset of the last answer."`
	WaitMS  int    `json:"wait_ms" min:"0" max:"60000" default:"0" doc:"Milliseconds to wait for new output or the job's end when there is none yet."`
	Session string `json:"session" max:"128" doc:"Id of the session that the job runs in. Default: this connection's own."`
}

type jobInputArgs struct {
	JobID   string `json:"job_id" need:"yes" min:"1" max:"128" doc:"The job, as exec named it."`
	Data    string `json:"data" max:"1048576" doc:"Text for its standard input, with a newline where the program expects one."`
	EOF     bool   `json:"eof" default:"false" doc:"Close its standard input after data."`
	Session string `json:"session" max:"128" doc:"Id of the session that the job runs in. Default: this connection's own."`
}

type jobStopArgs struct {
	JobID   string `json:"job_id" need:"yes" min:"1" max:"128" doc:"The job, as exec named it."`
	Signal  string `json:"signal" enum:"TERM,INT,HUP,QUIT,KILL,USR1,USR2,SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGKILL,SIGUSR1,SIGUSR2" default:"TERM" doc:"Signal for the job's process group, with or without SIG. TERM is followed by KILL after 2 seconds; the others are sent alone."`
	Session string `json:"session" max:"128" doc:"Id of the session that the job runs in. Default: this connection's own."`
}

// JobState is how a job is, in the results of the job tools.
type JobState struct {
	JobID      string `json:"job_id" jsonschema:"the job"`
	State      string `json:"state" jsonschema:"running or exited"`
	ExitCode   *int   `json:"exit_code,omitempty" jsonschema:"once it has exited"`
	Signal     string `json:"signal,omitempty" jsonschema:"the signal that ended it"`
	TimedOut   bool   `json:"timed_out,omitempty" jsonschema:"whether timeout_ms of exec ended it"`
	TotalBytes int64  `json:"total_bytes" jsonschema:"bytes of output that it has written so far"`
}

// JobOutputResult is the structured result of job_output.
type JobOutputResult struct {
	JobState
	Chunk       string `json:"chunk" jsonschema:"stdout and stderr in the order in which they were written"`
	NextOffset  int64  `json:"next_offset" jsonschema:"offset for the next call"`
	More        bool   `json:"more" jsonschema:"whether there is more to read now"`
	Dropped     int64  `json:"dropped_bytes,omitempty" jsonschema:"bytes after the asked offset that are not kept any more"`
	InvalidUTF8 bool   `json:"invalid_utf8,omitempty" jsonschema:"whether bytes that are not UTF-8 were replaced"`
	Noted
}

// JobStateResult is the structured result of job_input and job_stop.
type JobStateResult struct {
	JobState
	Noted
}

const (
	chunkBytes = 24000
	stopGrace  = 2 * time.Second
)

func (s *Server) addJobs() {
	add(s, tool[jobOutputArgs]{
		name: "job_output", title: "Read a job's output",
		doc: `Read what a job has written, from an offset on: one started with background=true, or an exec whose output was cut.
Give next_offset back as offset to read on. With wait_ms it waits for something new instead of returning at once.`,
		hints:  hints{readOnly: true, idempotent: true},
		output: mcp.WithOutputSchema[JobOutputResult](),
		long:   func(a *jobOutputArgs) bool { return a.WaitMS > 0 },
		run:    s.jobOutput,
	})
	add(s, tool[jobInputArgs]{
		name: "job_input", title: "Write to a job's input",
		doc:    "Write to the standard input of a job that was started with background=true and without stdin.",
		hints:  hints{openWorld: true},
		output: mcp.WithOutputSchema[JobStateResult](),
		long:   func(*jobInputArgs) bool { return true },
		run:    s.jobInput,
	})
	add(s, tool[jobStopArgs]{
		name: "job_stop", title: "Stop a job",
		doc:    "Send a signal to a job and everything in its process group. The result says whether it has ended; its output stays readable.",
		hints:  hints{destructive: true, idempotent: true},
		output: mcp.WithOutputSchema[JobStateResult](),
		long:   func(*jobStopArgs) bool { return true },
		run:    s.jobStop,
	})
}

func (s *Server) jobOutput(ctx context.Context, c *call, a *jobOutputArgs) (*reply, error) {
	sess, err := s.session(ctx, c, a.Session)
	if err != nil {
		return nil, err
	}
	chunk, err := sess.Output(ctx, a.JobID, int64(a.Offset), chunkBytes, time.Duration(a.WaitMS)*time.Millisecond)
	if err != nil {
		return nil, err
	}
	return fit(chunkBytes, func(n int) *reply { return outputReply(chunk, n) }), nil
}

// outputReply shows at most n bytes of a chunk and never half a character of
// it, unless the job left it at that.
func outputReply(chunk sandbox.OutputChunk, n int) *reply {
	data := chunk.Data[:min(n, len(chunk.Data))]
	ended := chunk.Job.State == sandbox.JobExited && chunk.Offset+int64(len(data)) >= chunk.Job.Output
	if !ended {
		if whole := wholeRunes(data); len(whole) > 0 {
			data = whole
		}
	}
	r := &JobOutputResult{JobState: stateOf(chunk.Job), Dropped: chunk.Dropped}
	r.Chunk, r.InvalidUTF8 = validUTF8(data)
	r.NextOffset = chunk.Offset + int64(len(data))
	if len(data) == 0 && n > 0 {
		r.NextOffset = chunk.Next
	}
	r.More = len(data) < len(chunk.Data) || chunk.Next < chunk.Job.Output
	text := r.Chunk
	if text != "" && text[len(text)-1] != '\n' {
		text += "\n"
	}
	if r.Dropped > 0 {
		text = fmt.Sprintf("[%s from the asked offset on not kept any more]\n", counted(r.Dropped, "byte")) + text
	}
	text += "[" + describe(r.JobState)
	if r.More {
		text += "; there is more"
	}
	return &reply{data: r, text: text + fmt.Sprintf("; next_offset %d]", r.NextOffset)}
}

func (s *Server) jobInput(ctx context.Context, c *call, a *jobInputArgs) (*reply, error) {
	if a.Data == "" && !a.EOF {
		return nil, toolErrorf("nothing was written: give `data`, or `eof` to close the job's standard input")
	}
	sess, err := s.session(ctx, c, a.Session)
	if err != nil {
		return nil, err
	}
	if err := sess.Input(ctx, a.JobID, []byte(a.Data), a.EOF); err != nil {
		return nil, err
	}
	return jobReply(ctx, sess, a.JobID)
}

func (s *Server) jobStop(ctx context.Context, c *call, a *jobStopArgs) (*reply, error) {
	sess, err := s.session(ctx, c, a.Session)
	if err != nil {
		return nil, err
	}
	job, err := sess.Job(ctx, a.JobID)
	if err != nil {
		return nil, err
	}
	if job.State == sandbox.JobRunning {
		if err := stop(ctx, sess, job, strings.TrimPrefix(a.Signal, "SIG")); err != nil {
			return nil, err
		}
	}
	return jobReply(ctx, sess, a.JobID)
}

// stop signals a job and waits a little for its end.
func stop(ctx context.Context, sess Session, job sandbox.Job, signal string) error {
	if err := sess.Signal(ctx, job.ID, signal); err != nil {
		return err
	}
	ended, err := waitEnd(ctx, sess, job, stopGrace)
	if err != nil || ended || signal != "TERM" {
		return err
	}
	if err := sess.Signal(ctx, job.ID, "KILL"); err != nil {
		return err
	}
	_, err = waitEnd(ctx, sess, job, stopGrace)
	return err
}

// waitEnd follows a job's output to learn of its end.
func waitEnd(ctx context.Context, sess Session, job sandbox.Job, most time.Duration) (ended bool, err error) {
	offset, until := job.Output, time.Now().Add(most)
	for {
		left := time.Until(until)
		if left <= 0 {
			return false, nil
		}
		chunk, err := sess.Output(ctx, job.ID, offset, chunkBytes, left)
		if err != nil {
			return false, err
		}
		if chunk.Job.State == sandbox.JobExited {
			return true, nil
		}
		offset = chunk.Next
	}
}

func jobReply(ctx context.Context, sess Session, id string) (*reply, error) {
	job, err := sess.Job(ctx, id)
	if err != nil {
		return nil, err
	}
	state := stateOf(job)
	return &reply{data: &JobStateResult{JobState: state}, text: describe(state)}, nil
}

func stateOf(job sandbox.Job) JobState {
	s := JobState{JobID: job.ID, State: string(job.State), TotalBytes: job.Output}
	if job.Exit != nil {
		s.ExitCode, s.Signal, s.TimedOut = &job.Exit.Code, job.Exit.Signal, job.Exit.TimedOut
	}
	return s
}

func describe(s JobState) string {
	switch {
	case s.TimedOut && s.ExitCode != nil:
		return fmt.Sprintf("job %s timed out and was ended, exit code %d", s.JobID, *s.ExitCode)
	case s.Signal != "" && s.ExitCode != nil:
		return fmt.Sprintf("job %s was ended by %s, exit code %d", s.JobID, s.Signal, *s.ExitCode)
	case s.ExitCode != nil:
		return fmt.Sprintf("job %s exited with code %d", s.JobID, *s.ExitCode)
	}
	return fmt.Sprintf("job %s is %s", s.JobID, s.State)
}
