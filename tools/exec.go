package tools

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"github.com/gondolin-go/gondolin/sandbox"
)

type execArgs struct {
	Command        string            `json:"command" min:"1" doc:"Shell command line, run with bash -c (sh where there is no bash). Give either this or argv."`
	Argv           []string          `json:"argv" doc:"Program and arguments, run without a shell. Give either this or command."`
	Cwd            string            `json:"cwd" max:"4096" doc:"Working directory. Default: the session's, or the home of the user that the command runs as, for root /root. A cd does not last to the next call."`
	Env            map[string]string `json:"env" doc:"Environment variables to add or replace."`
	Stdin          string            `json:"stdin" max:"12582912" doc:"Text for standard input, followed by its end. Without it: empty; with background=true: open for job_input."`
	User           string            `json:"user" max:"256" doc:"User to run as, by name or uid[:gid]. Default: the session's, usually root. One without a home directory needs cwd."`
	TimeoutMS      int               `json:"timeout_ms" min:"1" max:"3600000" default:"120000" doc:"Milliseconds after which the command and everything it started are ended. With background=true there is none unless it is given."`
	MaxOutputBytes int               `json:"max_output_bytes" min:"0" max:"30000" default:"30000" doc:"Most bytes of stdout and stderr to return, together. Beginning and end are kept; the middle can be read with job_output. Cut further where the whole result would pass 50000 characters."`
	Background     bool              `json:"background" default:"false" doc:"Return a job_id at once and let the command run on. Follow it with job_output, job_input and job_stop."`
	Session        string            `json:"session" max:"128" doc:"Id of the session to run in. Default: this connection's own."`
}

// ExecResult is the structured result of exec.
type ExecResult struct {
	ExitCode    *int     `json:"exit_code,omitempty" jsonschema:"how the command ended: 0 is success, 128 plus the number of a signal that ended it; missing while it runs"`
	Signal      string   `json:"signal,omitempty" jsonschema:"the signal that ended it, such as SIGKILL"`
	State       string   `json:"state" jsonschema:"running or exited"`
	Stdout      string   `json:"stdout" jsonschema:"standard output"`
	Stderr      string   `json:"stderr" jsonschema:"standard error"`
	TimedOut    bool     `json:"timed_out" jsonschema:"whether timeout_ms ended it"`
	Truncated   bool     `json:"truncated" jsonschema:"whether the middle of the output was left out"`
	InvalidUTF8 bool     `json:"invalid_utf8,omitempty" jsonschema:"whether bytes that are not UTF-8 were replaced in stdout or stderr"`
	StdoutBytes int64    `json:"stdout_bytes" jsonschema:"bytes that it wrote to stdout"`
	StderrBytes int64    `json:"stderr_bytes" jsonschema:"bytes that it wrote to stderr"`
	DurationMS  int64    `json:"duration_ms" jsonschema:"how long it ran"`
	JobID       string   `json:"job_id,omitempty" jsonschema:"for job_output and its siblings; set when it runs in the background or output was left out"`
	RestOffset  *int64   `json:"rest_offset,omitempty" jsonschema:"offset for job_output from which nothing that was left out is missed"`
	SessionID   string   `json:"session" jsonschema:"the session that it ran in"`
	Denials     []Denial `json:"denials" jsonschema:"what the host refused the session meanwhile, the newest if they are many"`
	DenialsMore int      `json:"denials_more,omitempty" jsonschema:"how many earlier ones are not in denials"`
	Noted
}

const execDoc = `Run a command in this session's own Linux machine and return its output and exit code.
A non-zero exit code is an ordinary result. Pass shell syntax in command, or a program with exact arguments in argv.
Calls share files but not a shell: set cwd and env each time. Servers and long builds belong in background=true.
The command and what it started are ended when the time is up or the call is cancelled.`

func (s *Server) addExec() {
	add(s, tool[execArgs]{
		name: "exec", title: "Run a command", doc: execDoc,
		hints:  hints{destructive: true, openWorld: true},
		output: mcp.WithOutputSchema[ExecResult](),
		adjust: func(ps properties) { ps.atMost("timeout_ms", s.opts.MaxTimeout.Milliseconds()) },
		long:   func(a *execArgs) bool { return !a.Background || a.Stdin != "" },
		run:    s.exec,
	})
}

func (s *Server) exec(ctx context.Context, c *call, a *execArgs) (*reply, error) {
	if (a.Command == "") == (len(a.Argv) == 0) {
		return nil, toolErrorf("nothing was run: give exactly one of `command` (a shell command line) and `argv` (a program with its arguments)")
	}
	if len(a.Argv) > 0 && a.Argv[0] == "" {
		return nil, toolErrorf("nothing was run: `argv` must begin with a program")
	}
	sess, err := s.session(ctx, c, a.Session)
	if err != nil {
		return nil, err
	}
	cmd := sandbox.Command{
		Argv: a.Argv, Shell: a.Command, Dir: a.Cwd, Env: a.Env, User: a.User,
		Retain: true, SpoolBytes: spoolBytes,
	}
	if !a.Background || c.given["timeout_ms"] != nil {
		cmd.Timeout = time.Duration(a.TimeoutMS) * time.Millisecond
	}
	if a.Background {
		return s.execJob(ctx, sess, cmd, a)
	}
	if a.Stdin != "" {
		cmd.Stdin = strings.NewReader(a.Stdin)
	}
	run := execution{
		out: newCapture(a.MaxOutputBytes), err: newCapture(a.MaxOutputBytes),
		sess: sess, uri: resourceLinks(ctx),
	}
	cmd.Stdout, cmd.Stderr = run.out, run.err
	c.progress.say(func() string {
		if line := run.out.lastLine(); line != "" {
			return line
		}
		return run.err.lastLine()
	})
	began := time.Now()
	run.exit, err = sess.Run(ctx, cmd)
	run.denials = sess.Denials(began)
	if err != nil {
		return nil, execError(startError(err, a), run)
	}
	r := fit(a.MaxOutputBytes, run.reply)
	if !r.data.(*ExecResult).Truncated && run.exit.ID != "" {
		// Everything was shown; the session need not keep it. It may have been
		// dropped already, and it will be in the end.
		if err := sess.Release(ctx, run.exit.ID); err != nil {
			s.log.Debug("ended command not released", "job", run.exit.ID, "error", err)
		}
	}
	return r, nil
}

// execJob starts a command in the background.
func (s *Server) execJob(ctx context.Context, sess Session, cmd sandbox.Command, a *execArgs) (*reply, error) {
	cmd.KeepStdin = true
	job, err := sess.StartJob(ctx, cmd)
	if err != nil {
		return nil, startError(err, a)
	}
	r := &ExecResult{State: string(sandbox.JobRunning), JobID: job.ID, SessionID: sess.ID(), Denials: []Denial{}}
	text := fmt.Sprintf("Started as job %s. Read its output with job_output {\"job_id\": %q}.", job.ID, job.ID)
	if cmd.Timeout > 0 {
		text += fmt.Sprintf(" It is ended after %s.", span(cmd.Timeout))
	}
	if a.Stdin != "" {
		if err := sess.Input(ctx, job.ID, []byte(a.Stdin), true); err != nil {
			note := "stdin was not taken to its end: " + short(plain(err), 300)
			r.Notes = []string{note}
			text += "\n[" + note + "]"
		}
	}
	return &reply{text: text, data: r}, nil
}

// startError says what to do about a command that did not start.
func startError(err error, a *execArgs) error {
	var file *sandbox.FileError
	if !errors.As(err, &file) || file.Op != "starting" {
		return err
	}
	hint := ""
	switch {
	case strings.HasPrefix(file.Msg, "working directory:") && a.Cwd == "":
		hint = "That is the home of the user or the session's directory; give a cwd that exists, such as / or /tmp."
	case strings.HasPrefix(file.Msg, "working directory:"):
		hint = "cwd is a path in the machine; list_files shows what is there."
	case len(a.Argv) > 0 && strings.ContainsAny(a.Argv[0], " \t;|&"):
		hint = "The first item of argv is the program alone; give a whole command line as `command`."
	}
	if hint == "" {
		return err
	}
	return toolErrorf("nothing was run: %s. %s", file, hint)
}

// execError keeps the output of a command whose end is not known.
func execError(err error, run execution) error {
	if run.out.bytes()+run.err.bytes() == 0 {
		return err
	}
	return fmt.Errorf("%w\nIts last output: %s%s", err, run.out.clip(2000).tailText(), run.err.clip(2000).tailText())
}

// execution is one ended command.
type execution struct {
	out, err *capture
	exit     sandbox.Exit
	sess     Session
	denials  []sandbox.Denial
	uri      bool // whether the client knows resource links
}

// reply shows the command in at most n bytes of output.
func (e execution) reply(n int) *reply {
	outRoom, errRoom := split(n, e.out.bytes(), e.err.bytes())
	out, errs := e.out.clip(outRoom), e.err.clip(errRoom)
	r := &ExecResult{
		ExitCode: &e.exit.Code, Signal: e.exit.Signal, State: string(sandbox.JobExited),
		TimedOut: e.exit.TimedOut, Truncated: out.cut+errs.cut > 0,
		InvalidUTF8: out.replaced || errs.replaced,
		StdoutBytes: e.out.bytes(), StderrBytes: e.err.bytes(),
		DurationMS: e.exit.Duration.Milliseconds(),
		SessionID:  e.sess.ID(),
	}
	r.Denials, r.DenialsMore = cutDenials(e.denials)
	reply := &reply{data: r, failed: r.TimedOut}
	rest := ""
	if r.Truncated && e.exit.ID != "" {
		r.JobID, r.RestOffset = e.exit.ID, ptr(e.restOffset(out, errs))
		rest = fmt.Sprintf("; read on with job_output {\"job_id\": %q, \"offset\": %d}", r.JobID, *r.RestOffset)
		uri := outputURI(r.SessionID, r.JobID)
		if e.uri {
			reply.blocks = append(reply.blocks, mcp.NewResourceLink(uri, "output of "+r.JobID, "The whole output, as far as it is kept.", "text/plain"))
		}
	}
	r.Stdout = out.text(cutNote(out.cut, rest))
	r.Stderr = errs.text(cutNote(errs.cut, rest))
	if note := e.exit.Note; note != "" {
		r.Notes = []string{short(printable(note), 500)}
	}
	reply.text = e.text(r)
	return reply
}

// restOffset is the place in the job's joined output before which nothing was
// cut: a byte of one stream never comes earlier there than in its own stream.
func (e execution) restOffset(out, errs clipped) int64 {
	offset := int64(-1)
	for _, c := range []clipped{out, errs} {
		if c.cut > 0 && (offset < 0 || c.cutAt < offset) {
			offset = c.cutAt
		}
	}
	// What the spool has dropped cannot be read any more.
	return max(offset, e.out.bytes()+e.err.bytes()-spoolBytes, 0)
}

func cutNote(cut int64, rest string) string {
	return fmt.Sprintf("[... %s left out%s ...]", counted(cut, "byte"), rest)
}

// text is the readable form.
func (e execution) text(r *ExecResult) string {
	var b strings.Builder
	write := func(s string) {
		b.WriteString(s)
		if s != "" && !strings.HasSuffix(s, "\n") {
			b.WriteByte('\n')
		}
	}
	write(r.Stdout)
	if r.Stderr != "" {
		write("[stderr]")
		write(r.Stderr)
	}
	took := e.exit.Duration.Round(time.Millisecond)
	switch {
	case r.TimedOut:
		fmt.Fprintf(&b, "[timed out after %s and was ended; give a larger timeout_ms or use background=true]", took)
	case r.Signal != "":
		fmt.Fprintf(&b, "[ended by %s, exit code %d, after %s]", r.Signal, *r.ExitCode, took)
	default:
		fmt.Fprintf(&b, "[exit code %d after %s]", *r.ExitCode, took)
	}
	if r.StdoutBytes+r.StderrBytes > spoolBytes && r.Truncated {
		fmt.Fprintf(&b, "\n[only the newest %d bytes of its output are kept]", spoolBytes)
	}
	if r.InvalidUTF8 {
		b.WriteString("\n[bytes that are not UTF-8 are shown as \uFFFD; pipe through base64 or od -c to see them]")
	}
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "\n[%s]", note)
	}
	b.WriteString(denialLines(r.Denials, r.DenialsMore))
	return b.String()
}

// split shares n bytes between two streams: each may have half, and what one
// does not need is the other's.
func split(n int, a, b int64) (int, int) {
	half := int64(n / 2)
	switch {
	case a <= half:
		return int(a), n - int(a)
	case b <= half:
		return n - int(b), int(b)
	}
	return int(half), n - int(half)
}

// tailText is the end of what was clipped.
func (c clipped) tailText() string {
	if c.cut == 0 {
		return c.head
	}
	return c.tail
}

// resourceLinks says whether the client knows that kind of content block.
func resourceLinks(ctx context.Context) bool {
	return server.RequestProtocolVersion(ctx) >= mcp.ProtocolVersion20250618
}
