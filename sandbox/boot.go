package sandbox

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/gondolin-go/gondolin/guest/wire"
	"github.com/gondolin-go/gondolin/sandbox/qemu"
	"github.com/gondolin-go/gondolin/sandbox/template"
)

// Bounds of a start.
const (
	// aliveTimeout is how long an accelerator without a verdict has until the guest's first byte.
	aliveTimeout = 3 * time.Second
	// unprovenTimeout is how long it then has until the guest's announcement.
	unprovenTimeout = 15 * time.Second
	// settleTimeout bounds the handshake after the announcement.
	settleTimeout = 30 * time.Second
	// equipTimeout bounds what comes after it: a copy's guest may have been taken over before.
	equipTimeout = 2 * time.Minute
	// consoleLines is how much of the console an error shows.
	consoleLines = 12
)

// boot starts a machine and leads it through the handshake.
func (h *Host) boot(ctx context.Context, o Options) (*Session, error) {
	return h.bootFrom(ctx, o, nil)
}

// bootFrom is boot with a copy of a disk that was in use, if it is not nil.
func (h *Host) bootFrom(ctx context.Context, o Options, disk *os.File) (*Session, error) {
	began := time.Now()
	id := newID()
	config, err := h.machine(id, &o)
	if err != nil {
		return nil, err
	}
	dir, err := newRunDir(h.opts.RuntimeDir, id)
	if err != nil {
		return nil, err
	}
	s := newSession(ctx, h, id, dir, o)
	if s.from = disk; disk != nil {
		s.origin = OriginRestored
	}
	if err := h.bootAny(ctx, s, config); err != nil {
		s.log.Warn("session did not start", "err", err)
		s.cancel()
		return nil, errors.Join(err, dir.remove())
	}
	s.boot = time.Since(began)
	s.log.Info("session started", "accelerator", s.accel, "boot", s.boot.Round(time.Millisecond))
	return s, nil
}

// machine describes the machine of a session.
func (h *Host) machine(id string, o *Options) (qemu.Config, error) {
	for _, path := range []string{o.Image.Kernel, o.Image.Modules, o.Image.RootDisk} {
		if _, err := os.Stat(path); err != nil {
			return qemu.Config{}, fmt.Errorf("image %s is not complete: %w; build it again with `gondolin-mcp images build --force`", o.Image.ID, err)
		}
	}
	initrd, err := h.initramfsFor(o.Image.Modules)
	return qemu.Config{
		Name: vmName(id), Binary: h.qemuPath, CPUs: o.Limits.CPUs, MemoryMiB: o.Limits.MemoryMiB,
		Kernel: o.Image.Kernel, Initramfs: initrd, RootDisk: o.Image.RootDisk, Scratch: o.Root == RootCOW,
		Net: card(), Cmdline: wire.CmdlineRoot + string(o.Root) + " " + cardConfig(),
	}, err
}

// bootAny tries the accelerators in turn.
func (h *Host) bootAny(ctx context.Context, s *Session, c qemu.Config) error {
	verdicts := qemu.LoadVerdicts(h.opts.CacheDir, h.qemuPath+" "+h.qemuVersion)
	list, _, err := qemu.Candidates(h.opts.Accelerator, verdicts)
	if err != nil {
		return err
	}
	_, proven := verdicts.Get(list[0])
	if (proven || len(list) == 1) && s.from == nil {
		c.Accelerator = list[0]
		if err := h.clone(ctx, s, c); err == nil || ctx.Err() != nil {
			return err
		}
	}
	if len(list) > 1 {
		if !proven {
			// Others wait for the verdict instead of trying the same.
			select {
			case h.accel <- struct{}{}:
			case <-ctx.Done():
				return ctx.Err()
			}
			defer func() { <-h.accel }()
			verdicts = qemu.LoadVerdicts(h.opts.CacheDir, h.qemuPath+" "+h.qemuVersion)
			if list, _, err = qemu.Candidates(h.opts.Accelerator, verdicts); err != nil {
				return err
			}
		}
	}
	failed := map[qemu.Accelerator]qemu.Verdict{}
	remember := func(a qemu.Accelerator, v qemu.Verdict) {
		if err := verdicts.Set(a, v); err != nil {
			s.log.Warn("remembering the accelerator", "err", err)
		}
	}
	for i, a := range list {
		verdict, proven := verdicts.Get(a)
		unproven := i < len(list)-1 && (!proven || !verdict.Works)
		c.Accelerator, c.Verbose = a, unproven
		var diskErr error
		if diskErr, err = h.bootWatched(ctx, s, c, unproven); diskErr != nil {
			return diskErr // and not the accelerator's fault
		}
		if err == nil {
			if unproven {
				remember(a, qemu.Verdict{Works: true})
			}
			// Only now is it the accelerator's fault and not the image's or the disk's.
			for other, verdict := range failed {
				remember(other, verdict)
			}
			return nil
		}
		if !unproven || ctx.Err() != nil {
			return err
		}
		failed[a] = qemu.Verdict{Reason: fmt.Sprintf("%s was tried and did not run the guest: %s", a, oneLine(err.Error()))}
		s.log.Warn("falling back to the next accelerator, for this boot of the host", "accelerator", a, "err", err)
	}
	return err
}

// bootWatched boots a machine, and another when the first stalls.
func (h *Host) bootWatched(ctx context.Context, s *Session, c qemu.Config, unproven bool) (diskErr, err error) {
	for watch := !unproven; ; watch = false {
		scratch, err := h.scratchFor(ctx, s, &c, nil)
		if err != nil {
			return err, nil
		}
		err = h.bootOnce(ctx, s, c, start{unproven: unproven, watch: watch, scratch: scratch})
		if !errors.Is(err, qemu.ErrStalled) {
			return nil, err
		}
		s.log.Warn("starting the machine again", "err", err)
	}
}

// oneLine joins the lines of a message and bounds it.
func oneLine(s string) string {
	const most = 400
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// errNoTemplate: there is none yet, which is no failure.
var errNoTemplate = errors.New("no template")

// clone makes the session's machine from a template. On failure nothing of it is left,
// and the session may boot instead.
func (h *Host) clone(ctx context.Context, s *Session, c qemu.Config) error {
	t, key := h.cloneFrom(ctx, c, s.opts.Limits.DiskMiB)
	if t == nil {
		return errNoTemplate
	}
	defer t.Close()
	scratch, err := h.scratchFor(ctx, s, &c, t)
	if err != nil {
		return err
	}
	err = h.bootOnce(ctx, s, c, start{template: t, scratch: scratch})
	if err == nil {
		s.origin = OriginCloned
	} else if ctx.Err() == nil {
		h.clones.discard(key)
		s.log.Warn("the template did not work and was removed: booting instead", "err", err)
	}
	return err
}

// scratchFor returns the scratch disk of a session's machine, which the machine closes; nil if it has none.
func (h *Host) scratchFor(ctx context.Context, s *Session, c *qemu.Config, t *template.Template) (*os.File, error) {
	switch {
	case !c.Scratch:
		return nil, nil
	case t != nil:
		return cloneScratch(h.opts.CacheDir, t.Disk())
	case s.from != nil:
		return cloneScratch(h.opts.CacheDir, s.from)
	}
	return newScratch(ctx, h.opts.CacheDir, s.opts.Limits.DiskMiB)
}

// start says how a machine's life begins.
type start struct {
	unproven bool               // nobody knows yet whether the accelerator works
	watch    bool               // give a boot up that does not get on
	template *template.Template // to clone; nil: boot
	scratch  *os.File           // see scratchFor
	again    bool               // the template was a session's machine, whose port was open
}

// bootOnce starts one machine. On failure nothing of it is left.
func (h *Host) bootOnce(ctx context.Context, s *Session, c qemu.Config, from start) (err error) {
	o := qemu.Options{Dir: s.dir.path, Scratch: from.scratch, Logger: s.log, OnEvent: s.onEvent}
	defer func() {
		if err != nil {
			s.letGo()
		}
	}()
	if err := s.hold(&c, &o, from); err != nil {
		if from.scratch != nil {
			from.scratch.Close()
		}
		return err
	}
	if o.State != nil {
		defer o.State.Close()
	}
	vm, err := qemu.Start(ctx, c, o)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			vm.Close()
			err = withConsole(err, vm)
		}
	}()
	if err := s.dir.recordPID(vm.PID()); err != nil {
		return err
	}
	limit := h.opts.BootTimeout
	if from.template != nil {
		limit = min(limit, cloneTimeout)
		if err := vm.Continue(); err != nil {
			return err
		}
	}
	if from.unproven {
		if err := vm.WaitAlive(ctx, aliveTimeout); err != nil {
			return err
		}
		limit = min(limit, unprovenTimeout)
	}
	if from.watch {
		watched, stop := vm.WatchBoot(ctx)
		defer stop()
		ctx = watched
	}
	conn, err := s.connect(ctx, vm, wire.PortControl, limit, from.again)
	if err != nil {
		return err
	}
	mux, err := wire.Client(conn)
	if err != nil {
		conn.Close()
		return err
	}
	s.vm, s.accel, s.again = vm, c.Accelerator, from.again
	s.setMux(mux)
	return nil
}

// hold opens the memory of the session's machine and keeps what a copy of it will need.
func (s *Session) hold(c *qemu.Config, o *qemu.Options, from start) (err error) {
	if from.scratch != nil {
		if s.scratch, err = reopen(from.scratch); err != nil {
			return err
		}
	}
	if from.template != nil {
		s.template = from.template.Share()
		c.Memory, o.Memory = qemu.MemoryClone, from.template.Memory()
		o.State, err = from.template.State()
		return err
	}
	s.memory, err = template.Anonymous("gondolin-memory", int64(c.MemoryMiB)<<20)
	if errors.Is(err, template.ErrUnsupported) {
		return nil // QEMU's own, which cannot be copied
	}
	c.Memory, o.Memory = qemu.MemoryShared, s.memory
	return err
}

func withConsole(err error, vm *qemu.VM) error {
	if tail := vm.ConsoleTail(consoleLines); tail != "" {
		return fmt.Errorf("%w\nlast lines of the console:\n%s", err, tail)
	}
	return err
}

// connect opens a port and leads the guest through the handshake,
// which must begin within limit. again says that the port was open before.
func (s *Session) connect(ctx context.Context, vm *qemu.VM, port string, limit time.Duration, again bool) (_ net.Conn, err error) {
	conn, err := vm.Dial(ctx, port)
	if err != nil {
		return nil, err
	}
	// A machine that dies or a caller that goes away ends the wait.
	stop := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-ctx.Done():
		case <-vm.Done():
		case <-stop:
			return
		}
		_ = conn.SetDeadline(time.Unix(1, 0))
	}()
	defer func() {
		close(stop)
		<-watched
		switch {
		case err == nil:
			err = conn.SetDeadline(time.Time{})
		case vm.Err() != nil:
			err = vm.Err()
		case ctx.Err() != nil:
			err = context.Cause(ctx)
		}
		if err != nil {
			conn.Close()
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	if again {
		if err := wire.WriteReset(conn); err != nil {
			return nil, fmt.Errorf("resetting port %s: %w", port, err)
		}
	}
	var hi wire.Announce
	if err := wire.ReadHandshake(conn, &hi); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, fmt.Errorf("the guest did not announce itself within %v", limit)
		}
		return nil, fmt.Errorf("waiting for the guest's announcement: %w", err)
	}
	if hi.Version != wire.Version {
		return nil, fmt.Errorf("the guest speaks protocol version %d and this program %d: %w", hi.Version, wire.Version, wire.ErrProtocol)
	}
	if err := conn.SetDeadline(time.Now().Add(settleTimeout)); err != nil {
		return nil, err
	}
	hello, err := s.hello()
	if err != nil {
		return nil, err
	}
	if err := wire.WriteHandshake(conn, hello); err != nil {
		return nil, fmt.Errorf("sending the hello: %w", err)
	}
	var ready wire.Ready
	if err := wire.ReadHandshake(conn, &ready); err != nil {
		return nil, fmt.Errorf("waiting for the guest to get ready: %w", err)
	}
	if ready.Err != "" {
		return nil, fmt.Errorf("the guest could not get ready: %s", printable(ready.Err))
	}
	return conn, nil
}

func (s *Session) hello() (*wire.Hello, error) {
	entropy := make([]byte, wire.EntropySize)
	if _, err := io.ReadFull(rand.Reader, entropy); err != nil {
		return nil, fmt.Errorf("drawing entropy: %w", err)
	}
	return &wire.Hello{
		Version: wire.Version, Session: s.id, Freshen: wire.Freshen{UnixNano: time.Now().UnixNano(), Entropy: entropy},
		Hostname: cmp.Or(s.opts.Hostname, vmName(s.id)), MachineID: hex.EncodeToString(s.machineID[:]),
		Processes: s.opts.Limits.Processes,
	}, nil
}
