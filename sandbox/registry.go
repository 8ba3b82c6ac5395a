package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// listTimeout is how long one session's holder has to describe it.
const listTimeout = 3 * time.Second

// listAtOnce is how many holders are asked at the same time.
const listAtOnce = 16

// List describes the sessions of all processes that register them in a runtime directory
// (HostOptions.Register), oldest first. What dead processes left there is removed. A holder that does not answer is
// part of the error, which comes beside the others' sessions.
func List(ctx context.Context, runtimeDir string, log *slog.Logger) ([]Info, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ids, err := registered(runtimeDir, log)
	if err != nil {
		return nil, err
	}
	infos, errs := make([]Info, len(ids)), make([]error, len(ids))
	slots := make(chan struct{}, listAtOnce)
	var asking sync.WaitGroup
	for i, id := range ids {
		slots <- struct{}{}
		asking.Go(func() {
			defer func() { <-slots }()
			infos[i], errs[i] = ask(ctx, runtimeDir, id, log)
		})
	}
	asking.Wait()
	infos = slices.DeleteFunc(infos, func(i Info) bool { return i.ID == "" })
	slices.SortFunc(infos, func(a, b Info) int { return a.Created.Compare(b.Created) })
	return infos, errors.Join(errs...)
}

// ask describes one session; neither information nor an error if it has just gone.
func ask(ctx context.Context, runtimeDir, id string, log *slog.Logger) (Info, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	a, err := attach(ctx, runtimeDir, id, log)
	if err != nil {
		if errors.Is(err, ErrUnknown) {
			err = nil
		}
		return Info{}, err
	}
	defer a.Close()
	return a.info, nil
}

// registered are the ids of the sessions that can be attached to.
func registered(runtimeDir string, log *slog.Logger) ([]string, error) {
	if err := checkPrivate(runtimeDir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil // nobody has had a session
		}
		return nil, err
	}
	collectStale(runtimeDir, log)
	sockets, err := filepath.Glob(filepath.Join(globEscape(runtimeDir), "*", socketName))
	if err != nil {
		return nil, fmt.Errorf("looking for sessions: %w", err)
	}
	ids := make([]string, 0, len(sockets))
	for _, s := range sockets {
		if id := filepath.Base(filepath.Dir(s)); !strings.HasPrefix(id, youngPrefix) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func globEscape(p string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(p)
}

// Attach connects to a session that another process holds and has registered in a runtime
// directory. name is its id, its label, or the beginning of its id; it must mean one session. The
// error wraps ErrUnknown when it does not.
//
// Log may be nil. Commands that are started through it end when it is closed or this process dies, except jobs
// and those that were detached from.
func Attach(ctx context.Context, runtimeDir, name string, log *slog.Logger) (*Attached, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := checkPrivate(runtimeDir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if name == "" || strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".") {
		return attachByLabel(ctx, runtimeDir, name, log)
	}
	a, err := attach(ctx, runtimeDir, name, log)
	if errors.Is(err, ErrUnknown) {
		return attachByLabel(ctx, runtimeDir, name, log)
	}
	return a, err
}

// attachByLabel is Attach for what is no whole id.
func attachByLabel(ctx context.Context, runtimeDir, name string, log *slog.Logger) (*Attached, error) {
	infos, lerr := List(ctx, runtimeDir, log)
	var open, labelled, begun []string
	for _, i := range infos {
		known := i.ID
		if i.Label != "" {
			known += fmt.Sprintf(" (%q)", printable(i.Label))
		}
		open = append(open, known)
		if i.Label == name && name != "" {
			labelled = append(labelled, i.ID)
		}
		if strings.HasPrefix(i.ID, name) && name != "" {
			begun = append(begun, i.ID)
		}
	}
	found := labelled
	if len(found) == 0 {
		found = begun
	}
	switch {
	case len(found) == 1:
		return attach(ctx, runtimeDir, found[0], log)
	case len(found) > 1:
		return nil, unknown("%q means several sessions: %s", printable(name), strings.Join(found, ", "))
	case lerr != nil:
		return nil, unknown("no session %q answers: %v", printable(name), lerr)
	case len(open) == 0:
		return nil, unknown("no session %q: none is open", printable(name))
	}
	return nil, unknown("no session %q: open are %s", printable(name), strings.Join(open, ", "))
}

// attach connects to the session with an id.
func attach(ctx context.Context, runtimeDir, id string, log *slog.Logger) (*Attached, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(runtimeDir, id, socketName))
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOTDIR) ||
			errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENAMETOOLONG) { // too long for an id: a label
			return nil, unknown("no session %q", id) // its holder is dead
		}
		return nil, fmt.Errorf("attaching to session %s: %w", id, err)
	}
	mux, err := present(ctx, conn, id)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("attaching to session %s: %w", id, err)
	}
	a := newAttached(ctx, filepath.Join(runtimeDir, id), mux, log.With("session", id))
	desc, err := a.describe(ctx, wire.Describe{})
	if err != nil {
		a.Close()
		return nil, err
	}
	a.info = desc.Info
	return a, nil
}

// present leads the program through the handshake with a session's holder.
func present(ctx context.Context, conn net.Conn, id string) (*yamux.Session, error) {
	if err := conn.SetDeadline(time.Now().Add(greetTimeout)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	silent := func(err error) error {
		if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return errors.New("the process that holds it does not answer")
		}
		return err
	}
	var hi wire.Announce
	if err := wire.ReadHandshake(conn, &hi); err != nil {
		return nil, silent(err)
	}
	if hi.Session != id {
		return nil, fmt.Errorf("its socket leads to session %q", printable(hi.Session))
	}
	if err := wire.WriteHandshake(conn, wire.Visit{Version: wire.Version}); err != nil {
		return nil, silent(err)
	}
	var ready wire.Ready
	if err := wire.ReadHandshake(conn, &ready); err != nil {
		return nil, silent(err)
	}
	if ready.Err != "" {
		return nil, errors.New(printable(ready.Err))
	}
	if !stop() {
		return nil, ctx.Err()
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return wire.Client(conn)
}
