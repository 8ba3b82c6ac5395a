package sandbox

import (
	"context"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/gondolin-go/gondolin/guest/wire"
	"github.com/gondolin-go/gondolin/vfs"
)

// Mount is a directory of the guest whose files the host serves (package vfs).
type Mount struct {
	// Path is where it is in the guest: absolute, made if it does not exist. A mount may
	// lie in another that stands before it.
	Path string
	// Root is the provider's root directory. It stays the caller's, who closes it, if it
	// needs that, when the session is Done.
	Root vfs.Node
	// ReadOnly makes the guest's kernel refuse writes. It is a convenience for the guest:
	// what must not be changed is wrapped in vfs.ReadOnly.
	ReadOnly bool
	// Private says that nothing but this guest changes what is below Root; see vfs.Mount.
	Private bool
}

// checkMounts returns what is wrong with the mounts of a session.
func checkMounts(mounts []Mount) []error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf(format+": %w", append(args, ErrInvalid)...))
	}
	seen := map[string]bool{}
	for i, m := range mounts {
		switch clean := path.Clean(m.Path); {
		case !path.IsAbs(m.Path) || strings.ContainsRune(m.Path, 0):
			bad("mount %d: path %q: use an absolute path of the guest", i, m.Path)
		case covered(clean):
			bad("mount %d: path %q belongs to the guest's own file systems", i, m.Path)
		case seen[clean]:
			bad("mount %d: path %q has a mount already", i, m.Path)
		case m.Root == nil:
			bad("mount %d at %s has no provider", i, m.Path)
		default:
			seen[clean] = true
		}
	}
	return errs
}

// covered reports whether a mount there would break the guest or could not be seen.
func covered(p string) bool {
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run/gondolin"} {
		if p == dir || strings.HasPrefix(p, dir+"/") {
			return true
		}
	}
	return p == "/" || p == "/run"
}

// attachMounts begins to serve the session's mounts and waits until the guest has them.
func (s *Session) attachMounts(ctx context.Context) error {
	if len(s.opts.Mounts) == 0 {
		return nil
	}
	connections := 0
	o := vfs.Options{Logger: s.log, Resume: s.revived(), Ready: func() {
		if connections++; connections == 1 {
			return // attachMounts binds
		}
		s.work(func() {
			if err := s.bindMounts(s.life); err != nil && s.life.Err() == nil {
				s.log.Warn("mounting again", "err", err)
			}
		})
	}}
	for i, m := range s.opts.Mounts {
		o.Mounts = append(o.Mounts, vfs.Mount{Name: mountName(i), Root: m.Root, Private: m.Private})
	}
	server, err := vfs.New(o)
	if err != nil {
		return err
	}
	if !s.work(func() { s.serveFiles(server) }) {
		return s.closedError()
	}
	return s.bindMounts(ctx)
}

func mountName(i int) string { return strconv.Itoa(i) }

// serveFiles serves the file port until the session ends. A guest that breaks it
// off gets it back, and its mounts with it, but not for ever.
func (s *Session) serveFiles(server *vfs.Server) {
	var lost []time.Time
	for {
		conn, err := s.vm.Dial(s.life, wire.PortFS)
		if err == nil {
			err = server.Serve(s.life, conn)
		}
		if s.life.Err() != nil || s.vm.Err() != nil {
			return
		}
		s.log.Warn("the connection of the mounts was lost", "err", err)
		if lost = append(lost, time.Now()); len(lost) > maxLost {
			if time.Since(lost[0]) < time.Minute {
				s.log.Error("the guest broke the connection of its mounts too often: they are gone", "times", len(lost))
				return
			}
			lost = lost[1:]
		}
	}
}

// bindMounts lets the guest put the mounts at their paths.
func (s *Session) bindMounts(ctx context.Context) error {
	var req wire.Mounts
	for i, m := range s.opts.Mounts {
		req.Mounts = append(req.Mounts, wire.Mount{Name: mountName(i), Path: path.Clean(m.Path), ReadOnly: m.ReadOnly})
	}
	return s.call(ctx, wire.OpMount, "", req, nil)
}
