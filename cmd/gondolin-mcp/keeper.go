package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/gondolin-go/gondolin/images"
)

// keeper finds the image that sessions run, and builds the default one when it
// is missing: at the first session and not at start, because a client wants its
// greeting answered at once.
type keeper struct {
	dir, name string
	autoBuild bool
	log       *slog.Logger
	life      context.Context // a build ends with it
	workers   *sync.WaitGroup

	build func(ctx context.Context, s *images.Store, spec images.Spec, p images.Progress) (*images.Image, error)

	mu       sync.Mutex
	building *building // under way
}

// building is a build that any number of calls wait for. err is set before done is closed.
type building struct {
	done chan struct{}
	err  error
}

// take returns the image, checked, and keeps it in the store until release is called.
func (k *keeper) take(ctx context.Context) (img *images.Image, release func(), err error) {
	store, err := images.OpenStore(k.dir)
	if err != nil {
		return nil, nil, err
	}
	img, err = store.Get(k.name)
	if missing := (*images.NotFoundError)(nil); errors.As(err, &missing) {
		if k.name != images.DefaultTag || !k.autoBuild {
			return nil, nil, whyNotBuilt(err, k.name)
		}
		if err := k.wait(ctx, store); err != nil {
			return nil, nil, err
		}
		img, err = store.Get(k.name)
	}
	if err != nil {
		return nil, nil, err
	}
	return keep(ctx, img)
}

// present is take for an image that is there.
func (k *keeper) present(ctx context.Context) (img *images.Image, release func(), err error) {
	store, err := images.OpenStore(k.dir)
	if err != nil {
		return nil, nil, err
	}
	if img, err = store.Get(k.name); err != nil {
		return nil, nil, err
	}
	return keep(ctx, img)
}

func keep(ctx context.Context, img *images.Image) (*images.Image, func(), error) {
	release, err := img.Use()
	if err != nil {
		return nil, nil, err
	}
	if err := img.Check(ctx); err != nil {
		release()
		return nil, nil, err
	}
	return img, release, nil
}

// wait builds the default image, or waits for who does. The build does not
// depend on the call: who gives up leaves it to the next one.
func (k *keeper) wait(ctx context.Context, store *images.Store) error {
	k.mu.Lock()
	b := k.building
	if b == nil {
		b = &building{done: make(chan struct{})}
		k.building = b
		k.workers.Go(func() { k.run(b, store) })
	}
	k.mu.Unlock()
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for the default image, which is being built: %w", ctx.Err())
	}
}

func (k *keeper) run(b *building, store *images.Store) {
	k.log.Info("the default image is missing; building it takes some minutes, once", "store", store.Dir())
	_, err := k.build(k.life, store, images.Spec{Name: images.DefaultTag, Version: programVersion()}, logProgress{k.log})
	if err != nil {
		k.log.Error("the default image was not built", "error", err)
		b.err = fmt.Errorf("the default image is missing and could not be built: %w\n"+
			"`gondolin-mcp doctor` checks what a build needs, and `gondolin-mcp images build` shows its progress", err)
	} else {
		k.log.Info("the default image is ready")
	}
	k.mu.Lock()
	k.building = nil
	k.mu.Unlock()
	close(b.done)
}

// logProgress puts a build's progress into the log, a line for each step.
type logProgress struct{ log *slog.Logger }

func (p logProgress) Note(text string) { p.log.Info("building the image", "step", text) }

func (p logProgress) Start(what string, total int64) images.Task {
	if total > 0 {
		p.log.Info("building the image", "step", what, "size", images.FormatBytes(total))
	} else {
		p.log.Info("building the image", "step", what)
	}
	return images.Quiet.Start(what, total)
}
