package tools

import (
	"context"
	"fmt"
	"time"

	"github.com/gondolin-go/gondolin/sandbox"
)

func (b *fakeBoxes) Fork(ctx context.Context, id string, n int) ([]Session, time.Duration, error) {
	var made []Session
	for range n {
		s, err := b.Create(ctx, SessionOptions{Label: "fork of " + id})
		if err != nil {
			return nil, 0, err
		}
		made = append(made, s)
	}
	return made, 80 * time.Millisecond, nil
}

func (b *fakeBoxes) Snapshot(_ context.Context, id, name string, disk bool) (*sandbox.Taken, error) {
	if name == "busy" {
		return nil, fmt.Errorf("mounts are in use: process 7 (vi) has /workspace/a open: %w", sandbox.ErrBusy)
	}
	return &sandbox.Taken{Snapshot: &sandbox.Snapshot{Name: name, Memory: !disk, Bytes: 64 << 20}, Pause: 70 * time.Millisecond}, nil
}

func (b *fakeBoxes) Restore(ctx context.Context, name string, o SessionOptions) (Session, error) {
	if name == "none" {
		return nil, sandbox.ErrNoSnapshot
	}
	return b.Create(ctx, o)
}
