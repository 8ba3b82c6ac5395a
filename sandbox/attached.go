package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// Attached is a session that another process holds. Commands and files are used as those of a
// Session; what its guest may reach and see is the holder's business. Its methods may be called
// from any goroutine.
type Attached struct {
	client
	dir    string // the session's run directory
	info   Info   // when it was attached to
	ending sync.Once
	gone   chan struct{}
}

func newAttached(ctx context.Context, dir string, mux *yamux.Session, log *slog.Logger) *Attached {
	a := &Attached{dir: dir, gone: make(chan struct{})}
	a.init(ctx, filepath.Base(dir), log)
	a.remote, a.note = true, func() string { return "" }
	a.terms = func() terms { return terms{dir: a.info.Dir, user: a.info.User} }
	a.setMux(mux)
	a.work(func() { a.watch(mux) })
	return a
}

// watch waits for the end of the session or of the connection.
func (a *Attached) watch(mux *yamux.Session) {
	// The holder's answer, with its reason, comes before the connection ends.
	ctx, cancel := context.WithCancel(a.life)
	defer cancel()
	a.work(func() {
		select {
		case <-mux.CloseChan():
			time.AfterFunc(lastWords, cancel)
		case <-ctx.Done():
		}
	})
	var ended wire.Watched
	err := a.call(ctx, wire.OpWatch, "", nil, &ended)
	if a.life.Err() != nil {
		return
	}
	reason := printable(ended.Reason)
	if err != nil {
		<-mux.CloseChan()
		reason = "the process that held it has gone"
	}
	go a.end(reason) // it waits for this goroutine
}

// lastWords is how long it may take to read what came before a connection ended.
const lastWords = 100 * time.Millisecond

func (a *Attached) end(reason string) {
	a.ending.Do(func() {
		a.mu.Lock()
		a.reason = reason
		mux := a.mux
		a.mu.Unlock()
		a.cancel()
		if mux != nil {
			mux.Close()
		}
		a.workers.Wait()
		close(a.gone)
	})
	<-a.gone
}

// ID names the session.
func (a *Attached) ID() string { return a.id }

// Info describes the session as it is now.
func (a *Attached) Info(ctx context.Context) (Info, error) {
	d, err := a.describe(ctx, wire.Describe{})
	return d.Info, err
}

// Console returns the last lines that the machine printed, at most 1000.
func (a *Attached) Console(ctx context.Context, lines int) (string, error) {
	d, err := a.describe(ctx, wire.Describe{Console: lines})
	return d.Console, err
}

// Denials returns what the host refused the session's guest lately, oldest first.
func (a *Attached) Denials(ctx context.Context) ([]Denial, error) {
	d, err := a.describe(ctx, wire.Describe{Denials: true})
	return d.Denials, err
}

func (a *Attached) describe(ctx context.Context, m wire.Describe) (description, error) {
	var d description
	err := a.call(ctx, wire.OpDescribe, "", m, &d)
	return d, err
}

// Snapshot is Session.Snapshot, made by the process that holds the session, in its snapshots.
func (a *Attached) Snapshot(ctx context.Context, name string, o SnapshotOptions) (*Taken, error) {
	var taken Taken
	err := a.call(ctx, wire.OpSnapshot, "", wire.TakeSnapshot{Name: name, Disk: o.Disk}, &taken)
	return &taken, err
}

// End ends the session for everybody, and waits until nothing of it is left or ctx ends. The
// reason is what its holder and its users are told.
func (a *Attached) End(ctx context.Context, reason string) error {
	if err := a.call(ctx, wire.OpEnd, "", wire.EndSession{Reason: reason}, nil); err != nil {
		return err
	}
	// The directory goes last.
	tick := time.NewTicker(endEvery)
	defer tick.Stop()
	for {
		if _, err := os.Lstat(a.dir); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		select {
		case <-tick.C:
			select {
			case <-a.gone: // perhaps with its holder: then it is for us to collect
				if _, err := collectOne(a.dir, false, a.log); err != nil {
					return fmt.Errorf("ending session %s: %w", a.id, err)
				}
			default:
			}
		case <-ctx.Done():
			return fmt.Errorf("ending session %s: %w", a.id, context.Cause(ctx))
		}
	}
}

// endEvery is how often a session that ends is looked at.
const endEvery = 5 * time.Millisecond

// Done is closed when the session has ended or the connection to its holder was lost.
func (a *Attached) Done() <-chan struct{} { return a.gone }

// Reason says why it ended, or "".
func (a *Attached) Reason() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reason
}

// Close leaves the session. Commands that this Attached started end.
func (a *Attached) Close() error {
	a.end("it was left")
	return nil
}
