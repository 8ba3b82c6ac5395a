package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"
)

// Options say where a machine lives.
type Options struct {
	Dir     string   // existing directory of mode 0700 for the ports' sockets
	Scratch *os.File // the scratch disk if Config.Scratch; the VM closes it
	Memory  *os.File // if Config.Memory is a file; stays the caller's
	State   *os.File // to load from if Config.Memory says so; stays the caller's
	Logger  *slog.Logger
	OnEvent func(Event) // called from one goroutine; must not block
}

// VM is one running QEMU process.
type VM struct {
	dir     string
	process *os.Process
	console *console
	qmp     *qmp
	net     net.Conn
	ports   *ports
	log     *slog.Logger

	workers sync.WaitGroup
	done    chan struct{} // closed when the process was reaped
	exit    error         // why it ended; set before done closes
	close   sync.Once
}

// Start starts a machine. The guest's life begins; nothing is known of it yet.
func Start(ctx context.Context, c Config, o Options) (_ *VM, err error) {
	var cleanup []func()
	defer func() {
		for i := len(cleanup) - 1; i >= 0; i-- {
			cleanup[i]()
		}
	}()
	if o.Scratch != nil {
		cleanup = append(cleanup, func() { o.Scratch.Close() })
	}
	var files []*os.File
	for _, path := range []string{c.Kernel, c.Initramfs, c.RootDisk} {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("opening a file of the image: %w", err)
		}
		cleanup = append(cleanup, func() { f.Close() })
		files = append(files, f)
	}
	monitor, theirs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("making the monitor's socket: %w", err)
	}
	files = append(files, theirs)
	for _, name := range Ports {
		f, err := listen(filepath.Join(o.Dir, name))
		if err != nil {
			monitor.Close()
			theirs.Close()
			return nil, fmt.Errorf("making the socket of port %s: %w", name, err)
		}
		cleanup = append(cleanup, func() { f.Close() })
		files = append(files, f)
	}
	link, card, err := socketPair()
	if err != nil {
		monitor.Close()
		theirs.Close()
		return nil, fmt.Errorf("making the network's socket: %w", err)
	}
	cleanup = append(cleanup, func() { card.Close() })
	files = append(files, card)
	if c.Scratch {
		files = append(files, o.Scratch)
	}
	if c.Memory.file() {
		files = append(files, o.Memory)
	}
	if c.Memory.loaded() {
		files = append(files, o.State)
		c.bare = isBare(o.State)
	}

	vm := &VM{dir: o.Dir, net: link, ports: newPorts(), console: newConsole(), log: o.Logger, done: make(chan struct{})}
	err = vm.spawn(ctx, &c, files)
	theirs.Close() // so that the monitor's end shows when QEMU ends
	if err != nil {
		monitor.Close()
		link.Close()
		return nil, err
	}
	onEvent := o.OnEvent
	if onEvent == nil {
		onEvent = func(Event) {}
	}
	vm.qmp = newQMP(monitor, onEvent)
	if err := vm.qmp.execute("qmp_capabilities", nil, nil); err != nil {
		vm.Close()
		return nil, fmt.Errorf("QEMU did not start: %w: %s", errors.Join(vm.Err(), err), vm.ConsoleTail(4))
	}
	if c.Memory.loaded() {
		if err := vm.load(ctx, &c); err != nil {
			vm.Close()
			return nil, fmt.Errorf("loading the machine's state: %w: %s", errors.Join(vm.Err(), err), vm.ConsoleTail(4))
		}
	}
	return vm, nil
}

// spawn starts the process from a thread that lives as long as it does:
// PR_SET_PDEATHSIG fires when the thread that made the child ends.
func (vm *VM) spawn(ctx context.Context, c *Config, files []*os.File) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	started := make(chan error, 1)
	vm.workers.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd := exec.Command(c.Binary, c.Argv()...)
		cmd.ExtraFiles = files
		cmd.Env = []string{} // nothing of the host's environment
		confine(cmd, c.Accelerator)
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			started <- err
			return
		}
		stderr, err := cmd.StderrPipe()
		if err != nil {
			started <- err
			return
		}
		if err := cmd.Start(); err != nil {
			started <- fmt.Errorf("starting %s: %w", c.Binary, err)
			return
		}
		vm.process = cmd.Process
		started <- nil
		var drains sync.WaitGroup
		drains.Go(func() { vm.console.drain(stdout, true) })
		drains.Go(func() { vm.console.drain(stderr, false) })
		drains.Wait()
		err = cmd.Wait()
		if err == nil {
			err = errors.New("the machine powered off")
		}
		vm.exit = fmt.Errorf("QEMU ended: %w", err)
		close(vm.done)
	})
	return <-started
}

// Alive is closed when the guest has printed its first byte.
func (vm *VM) Alive() <-chan struct{} { return vm.console.alive }

// Done is closed when the process has ended.
func (vm *VM) Done() <-chan struct{} { return vm.done }

// Err says why the process ended, or nil while it runs.
func (vm *VM) Err() error {
	select {
	case <-vm.done:
		return vm.exit
	default:
		return nil
	}
}

// ConsoleTail returns the last lines of the console, safe to print.
func (vm *VM) ConsoleTail(lines int) string { return vm.console.tail(lines) }

// PID is QEMU's process id.
func (vm *VM) PID() int { return vm.process.Pid }

// Net is the other end of the machine's network card: Ethernet frames, each behind its
// length (32 bits, big-endian). It is closed with the machine.
func (vm *VM) Net() net.Conn { return vm.net }

// Close ends the machine at once and waits until nothing of it is left but the
// directory. What the guest holds in memory is lost.
func (vm *VM) Close() {
	vm.close.Do(func() {
		if err := vm.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			vm.log.Warn("ending QEMU", "pid", vm.process.Pid, "err", err)
		}
		vm.workers.Wait()
		if vm.qmp != nil {
			vm.qmp.close()
		}
		vm.net.Close()
		for _, name := range Ports {
			_ = os.Remove(filepath.Join(vm.dir, name))
		}
	})
}

// WaitOpen waits until the guest has opened a port, at most limit.
func (vm *VM) WaitOpen(ctx context.Context, port string, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the guest did not open port %s within %v", port, limit))
	defer cancel()
	label := fmt.Sprintf("port%d", slices.Index(Ports[:], port))
	tick := time.NewTicker(10 * time.Millisecond) // there is no event for it
	defer tick.Stop()
	for {
		var devices []struct {
			Label string `json:"label"`
			Open  bool   `json:"frontend-open"`
		}
		if err := vm.qmp.execute("query-chardev", nil, &devices); err != nil {
			return err
		}
		for _, d := range devices {
			if d.Label == label && d.Open {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-vm.done:
			return vm.exit
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// WaitAlive waits for the guest's first sign of life, at most limit.
func (vm *VM) WaitAlive(ctx context.Context, limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-vm.Alive():
		return nil
	case <-vm.done:
		return vm.exit
	case <-timer.C:
		return fmt.Errorf("no sign of life from the guest within %v", limit)
	case <-ctx.Done():
		return ctx.Err()
	}
}
