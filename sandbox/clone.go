package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gondolin-go/gondolin/guest/wire"
	"github.com/gondolin-go/gondolin/sandbox/qemu"
	"github.com/gondolin-go/gondolin/sandbox/template"
)

const (
	// cloneTimeout is how long a clone has until its announcement. It takes a tenth of a second.
	cloneTimeout = 20 * time.Second
	// keptTemplates is how many templates are kept on disk, and loadedTemplates in this
	// process's memory: a host needs one for each image and size of its sessions.
	keptTemplates   = 4
	loadedTemplates = 2
	templatesName   = "templates" // their directory in the cache
	// retryBuild is how long a template that could not be built is not tried again.
	retryBuild = 10 * time.Minute
)

// cloner makes the templates of a host and remembers those in use.
type cloner struct {
	store *template.Store // nil: this host boots every session
	first bool            // see HostOptions.TemplateFirst
	log   *slog.Logger

	mu     sync.Mutex
	slots  map[string]*slot
	builds sync.WaitGroup
}

// slot is what is known of the template of one key.
type slot struct {
	t        *template.Template // loaded; nil: not
	used     time.Time
	loading  chan struct{} // closed when it has been looked for on disk
	building chan struct{} // closed when it is built, or could not be; nil: nobody does
	failed   time.Time
}

func newCloner(o HostOptions) (*cloner, error) {
	c := &cloner{slots: map[string]*slot{}, log: o.Logger, first: o.TemplateFirst}
	if o.NoTemplates {
		return c, nil
	}
	store, err := template.New(filepath.Join(o.CacheDir, templatesName), keptTemplates, o.Logger)
	if errors.Is(err, template.ErrUnsupported) {
		return c, nil
	}
	c.store = store
	return c, err
}

// close waits for builds and lets the templates go.
func (c *cloner) close() {
	c.builds.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, sl := range c.slots {
		sl.drop()
	}
}

func (sl *slot) drop() {
	if sl.t != nil {
		sl.t.Close()
		sl.t = nil
	}
}

// get returns the template of a key, which the caller closes: the loaded one or that on
// disk. When there is none, it calls build in the background, once, and returns nil.
func (c *cloner) get(ctx context.Context, key string, build func() (*template.Template, error)) *template.Template {
	if c.store == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	sl := c.slots[key]
	if sl == nil {
		sl = &slot{}
		c.slots[key] = sl
	}
	for sl.loading != nil {
		loading := sl.loading
		c.mu.Unlock()
		select {
		case <-loading:
		case <-ctx.Done():
		}
		c.mu.Lock()
		if ctx.Err() != nil {
			return nil
		}
	}
	if sl.t == nil {
		if sl.building == nil && time.Since(sl.failed) >= retryBuild && !c.loadLocked(ctx, key, sl) && ctx.Err() == nil {
			c.buildLocked(sl, build)
		}
		if c.first {
			c.waitLocked(ctx, sl)
		}
		if sl.t == nil {
			return nil
		}
	}
	sl.used = time.Now()
	return sl.t.Share()
}

// loadLocked looks for a template on disk, without the lock meanwhile.
func (c *cloner) loadLocked(ctx context.Context, key string, sl *slot) bool {
	sl.loading = make(chan struct{})
	c.mu.Unlock()
	t, err := c.store.Load(ctx, key)
	c.mu.Lock()
	close(sl.loading)
	sl.loading = nil
	if err != nil {
		return false
	}
	c.putLocked(sl, t)
	return true
}

// waitLocked waits until nobody builds the slot's template, without the lock meanwhile.
func (c *cloner) waitLocked(ctx context.Context, sl *slot) {
	for sl.building != nil && ctx.Err() == nil {
		building := sl.building
		c.mu.Unlock()
		select {
		case <-building:
		case <-ctx.Done():
		}
		c.mu.Lock()
	}
}

func (c *cloner) buildLocked(sl *slot, build func() (*template.Template, error)) {
	sl.building = make(chan struct{})
	c.builds.Go(func() {
		t, err := build()
		c.mu.Lock()
		defer c.mu.Unlock()
		close(sl.building)
		sl.building = nil
		if err != nil {
			sl.failed = time.Now()
			return
		}
		c.putLocked(sl, t)
	})
}

// putLocked keeps a template and lets the least recently used go when there are too many.
func (c *cloner) putLocked(sl *slot, t *template.Template) {
	sl.t, sl.used = t, time.Now()
	loaded, oldest := 0, sl
	for _, other := range c.slots {
		if other.t != nil {
			loaded++
			if other.used.Before(oldest.used) {
				oldest = other
			}
		}
	}
	if loaded > loadedTemplates {
		oldest.drop()
	}
}

// discard forgets a template that no session could be cloned from, and removes it, so that
// the next process does not try it too. It is built again after retryBuild.
func (c *cloner) discard(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if sl := c.slots[key]; sl != nil {
		sl.drop()
		sl.failed = time.Now()
	}
	if _, err := c.store.Remove(func(i template.Info) bool { return i.Key == key }); err != nil {
		c.log.Warn("removing a template that does not work", "err", err)
	}
}

// cloneFrom returns the template for a machine, or nil. A template that lies on
// disk is loaded; one that does not exist is built while this session boots.
func (h *Host) cloneFrom(ctx context.Context, c qemu.Config, diskMiB int) (*template.Template, string) {
	c.Cmdline += " " + wire.CmdlineWarm
	key, err := h.templateKey(&c, diskMiB)
	if err != nil {
		h.log.Warn("naming the template", "err", err)
		return nil, ""
	}
	return h.clones.get(ctx, key, func() (*template.Template, error) {
		t, err := h.buildTemplate(h.life, key, c, diskMiB)
		switch {
		case err == nil:
			h.log.Info("template built", "key", key[:12])
		case h.life.Err() == nil:
			h.log.Warn("the template could not be built; sessions boot", "err", err)
		}
		return t, err
	}), key
}

// templateKey names everything that can change a template.
func (h *Host) templateKey(c *qemu.Config, diskMiB int) (string, error) {
	machine := *c
	machine.Name, machine.Memory = "template", qemu.MemoryShared
	sum := sha256.New()
	fmt.Fprintln(sum, "gondolin template 1", h.qemuPath, h.qemuVersion, hostCPU(), diskMiB)
	fmt.Fprintln(sum, c.Initramfs) // named by its content, and made again when it was removed
	for _, path := range []string{c.Binary, c.Kernel, c.RootDisk} {
		// Images are immutable and named by their content; a digest of half a
		// gigabyte for each session would be dear.
		st, err := os.Stat(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintln(sum, path, st.Size(), st.ModTime().UnixNano())
	}
	for _, arg := range machine.Argv() {
		fmt.Fprintf(sum, "%q\n", arg)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// buildTemplate boots a machine up to its announcement and saves it.
func (h *Host) buildTemplate(ctx context.Context, key string, c qemu.Config, diskMiB int) (*template.Template, error) {
	return h.clones.store.Build(ctx, key, int64(c.MemoryMiB)<<20, func(ctx context.Context, memory, state *os.File) (disk *os.File, err error) {
		id := newID()
		dir, err := newRunDir(h.opts.RuntimeDir, id)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, dir.remove()) }()
		o := qemu.Options{Dir: dir.path, Memory: memory, Logger: h.log}
		if c.Scratch {
			if disk, err = newScratch(ctx, h.opts.CacheDir, diskMiB); err != nil {
				return nil, err
			}
			if o.Scratch, err = reopen(disk); err != nil {
				disk.Close()
				return nil, err
			}
		}
		return disk, h.saveBooted(ctx, dir, c, o, state)
	})
}

// saveBooted boots a machine, and stops and saves it where it waits for its first host.
func (h *Host) saveBooted(ctx context.Context, dir *runDir, c qemu.Config, o qemu.Options, state *os.File) error {
	c.Name, c.Memory = vmName(filepath.Base(dir.path)), qemu.MemoryShared
	vm, err := qemu.Start(ctx, c, o)
	if err != nil {
		return err
	}
	defer vm.Close()
	if err := dir.recordPID(vm.PID()); err != nil {
		return err
	}
	ctx, stop := vm.WatchBoot(ctx)
	defer stop()
	// The guest then waits for a host to open the port, and so do the clones. No
	// connection is tried: one that closes again might still look open to a clone.
	if err := vm.WaitOpen(ctx, wire.PortControl, h.opts.BootTimeout); err != nil {
		return withConsole(err, vm)
	}
	return vm.Save(ctx, state, true)
}
