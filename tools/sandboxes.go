package tools

import (
	"context"
	"io"
	"time"

	"github.com/gondolin-go/gondolin/sandbox"
)

// Session is what the tools need of one sandbox session. *sandbox.Session
// offers all but Mounts and what is about exposing. All methods honour ctx and may be called at the same time.
type Session interface {
	ID() string
	Info() sandbox.Info

	// Run starts a command and waits for its end. Cancelling ctx ends the
	// process group in the guest.
	Run(ctx context.Context, cmd sandbox.Command) (sandbox.Exit, error)
	// StartJob starts a retained command and does not wait for it.
	StartJob(ctx context.Context, cmd sandbox.Command) (sandbox.Job, error)
	Jobs(ctx context.Context) ([]sandbox.Job, error)
	Job(ctx context.Context, id string) (sandbox.Job, error)
	// Output returns what a job wrote from offset on, at most max bytes. With
	// nothing there it waits up to wait for output or the job's end.
	Output(ctx context.Context, id string, offset int64, max int, wait time.Duration) (sandbox.OutputChunk, error)
	Input(ctx context.Context, id string, data []byte, eof bool) error
	// Signal takes a name without SIG, such as "TERM".
	Signal(ctx context.Context, id, signal string) error
	Release(ctx context.Context, id string) error

	// Open reads limit bytes from offset on; a limit of 0 reads to the end.
	Open(ctx context.Context, path string, offset, limit int64) (io.ReadCloser, sandbox.FileInfo, error)
	WriteFile(ctx context.Context, path string, r io.Reader, o sandbox.WriteOptions) (sandbox.Written, error)
	EditFile(ctx context.Context, path, old, new string, all bool, ifSHA256 string) (sandbox.EditResult, error)
	// Stat follows links.
	Stat(ctx context.Context, path string) (sandbox.FileInfo, error)
	ReadDir(ctx context.Context, path string, limit int) (entries []sandbox.FileInfo, truncated bool, err error)
	Glob(ctx context.Context, o sandbox.GlobOptions) (matches []sandbox.FileInfo, truncated bool, err error)
	Grep(ctx context.Context, o sandbox.GrepOptions) (matches []sandbox.GrepMatch, truncated bool, err error)

	// Mounts are the same for the session's whole life.
	Mounts() Mounts
	// Denials are what the host refused the session after a time, oldest first.
	Denials(since time.Time) []sandbox.Denial

	// Expose lets the user of this computer open what listens on a port of the machine, or with port 0
	// what its file of listeners says. It says whether anything answers there now.
	Expose(ctx context.Context, port int) (e Exposed, answers bool, err error)
	Exposed() []Exposed
	// Unexpose ends that and says whether it was so.
	Unexpose(port int) (bool, error)

	Close(ctx context.Context) error
}

// SessionOptions are what an agent may ask of a new session. A zero field
// takes what the operator configured.
type SessionOptions struct {
	Label  string
	Limits sandbox.Limits // may lower the configured limits, never raise them

	// Roots are the client's, if Options.Roots asks for them: paths of its machine, or URIs.
	// They are a wish: Session.Mounts says what became of them.
	Roots []string
}

// Sandboxes makes, finds and ends sessions.
type Sandboxes interface {
	Create(ctx context.Context, o SessionOptions) (Session, error)
	Get(id string) (Session, error)
	List() []sandbox.Info
	// Fork makes n sessions that go on where the one named stands, all or none.
	Fork(ctx context.Context, id string, n int) (made []Session, pause time.Duration, err error)
	// Snapshot keeps a session's machine, or its disk alone, under a name; Restore makes a session of it.
	Snapshot(ctx context.Context, id, name string, disk bool) (*sandbox.Taken, error)
	Restore(ctx context.Context, name string, o SessionOptions) (Session, error)
	// Close ends a session; reason is what its Info says afterwards.
	Close(ctx context.Context, id, reason string) error
}
