package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gondolin-go/gondolin/images"
	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/tools"
)

// running returns an open session.
func (b *sandboxes) running(id string) (*session, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.open[id]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("session %s is not open: %w", id, sandbox.ErrClosed)
}

// Fork makes copies of a session. Each has mounts, an audit record and a network of its own.
func (b *sandboxes) Fork(ctx context.Context, id string, n int) ([]tools.Session, time.Duration, error) {
	s, err := b.running(id)
	if err != nil {
		return nil, 0, err
	}
	var parts []*equipment
	forked, err := s.Session.Fork(ctx, sandbox.ForkOptions{Count: n, Adjust: func(_ int, o *sandbox.Options) error {
		img, release, err := keep(ctx, s.equipment.img)
		if err != nil {
			return err
		}
		p, err := b.equip(ctx, o, s.equipment.roots, img, release, s.equipment.files)
		if err == nil {
			p.net.record.origin = "as a fork of session " + id
			parts = append(parts, p)
		}
		return err
	}})
	if err != nil {
		for _, p := range parts {
			err = errors.Join(err, p.close(err.Error()))
		}
		return nil, 0, err
	}
	made := make([]tools.Session, 0, n)
	for i, copied := range forked.Sessions {
		s.record.copied("forked", "as session "+copied.ID())
		made = append(made, b.enter(ctx, copied, parts[i]))
	}
	return made, forked.Pause, nil
}

// Snapshot keeps a session's machine under a name.
func (b *sandboxes) Snapshot(ctx context.Context, id, name string, disk bool) (*sandbox.Taken, error) {
	s, err := b.running(id)
	if err != nil {
		return nil, err
	}
	return s.Session.Snapshot(ctx, name, sandbox.SnapshotOptions{Disk: disk})
}

// Restore makes a session that goes on from a snapshot, within the configured limits.
func (b *sandboxes) Restore(ctx context.Context, name string, o tools.SessionOptions) (tools.Session, error) {
	s, err := b.restore(ctx, name, o)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (b *sandboxes) restore(ctx context.Context, name string, o tools.SessionOptions) (*session, error) {
	host, err := b.theHost(ctx)
	if err != nil {
		return nil, err
	}
	m, err := host.Snapshots().Get(name)
	if err != nil {
		return nil, err
	}
	opts := b.config.SessionOptions()
	opts.Label = firstOf(o.Label, m.Label)
	want := sandbox.Limits{
		CPUs: m.CPUs, MemoryMiB: m.MemoryMiB, DiskMiB: m.DiskMiB, Processes: m.Processes, Wall: o.Limits.Wall, Idle: o.Limits.Idle,
	}
	if opts.Limits, err = lower(opts.Limits, want); err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", name, err)
	}
	store, err := images.OpenStore(b.images.dir)
	if err != nil {
		return nil, err
	}
	img, err := store.Get(m.ImageKey)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s was made with the image %s: %w", name, m.Image, err)
	}
	img, release, err := keep(ctx, img)
	if err != nil {
		return nil, err
	}
	p, err := b.equip(ctx, &opts, o.Roots, img, release, nil)
	if err != nil {
		return nil, err
	}
	p.net.record.origin = "from snapshot " + name
	s, err := host.Restore(ctx, name, opts)
	if err != nil {
		return nil, errors.Join(err, p.close(err.Error()))
	}
	return b.enter(ctx, s, p), nil
}
