//go:build linux

// Package pid1 is the first process of the guest. It mounts the kernel's file
// systems, loads the modules that the initramfs lists, mounts the read-only
// root disk below Lower, starts sandboxfs and sandboxd and from then on only reaps orphans.
//
// Everything that depends on a session (overlay, clock, entropy, names) is left
// to sandboxd and its handshake, so that a VM stopped after Announce can serve
// any session. When sandboxd ends, for whatever reason, the machine powers off:
// the host then reports the last lines of the console.
package pid1

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/near"
)

// Paths in the initramfs.
const (
	ModuleOrder = "/lib/gondolin/modules/order" // module paths, one a line
	Lower       = "/lower"                      // mount point of the root disk
	RootDevice  = "/dev/vda"
)

// Main runs the machine; it does not return.
func Main() {
	err := run()
	fmt.Fprintf(os.Stderr, "gondolin: pid1: %v\n", err)
	syscall.Sync()
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

func run() error {
	if err := mountBasics(); err != nil {
		return err
	}
	if err := openConsole(); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := mountRoot(); err != nil {
		return err
	}
	// As on any Debian: the agent raises its own soft limit, commands keep this one.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 1024, Max: 1 << 20}); err != nil {
		return fmt.Errorf("raising the limit of open files: %w", err)
	}
	// Caught, not ignored: children inherit what is ignored, and a command must be
	// able to die of SIGINT.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGHUP, syscall.SIGTERM)
	near.Stay()
	if err := spawnFS(); err != nil {
		return err
	}
	sandboxd, err := Spawn("sandboxd")
	if err != nil {
		return err
	}
	return reap(sandboxd)
}

// spawnFS starts sandboxfs and waits until it has taken hold of the directories
// that sandboxd moves away (sandboxfs.ReadyFD). Without it a session has no mounts, and works.
func spawnFS() error {
	var ready [2]int
	if err := syscall.Pipe2(ready[:], syscall.O_CLOEXEC); err != nil {
		return err
	}
	defer syscall.Close(ready[0])
	_, err := Spawn("sandboxfs", uintptr(ready[1]))
	syscall.Close(ready[1])
	if err != nil {
		return err
	}
	var b [1]byte
	_, _ = syscall.Read(ready[0], b[:]) // end of file: it is ready, or has ended
	return nil
}

// Spawn starts another part of this program; the caller waits for its end.
func Spawn(name string, more ...uintptr) (int, error) {
	pid, err := syscall.ForkExec("/proc/self/exe", []string{name}, &syscall.ProcAttr{
		Env:   []string{"GOMEMLIMIT=96MiB", "GOGC=200", "GOMAXPROCS=1"},
		Files: append([]uintptr{0, 1, 2}, more...),
	})
	if err != nil {
		return 0, fmt.Errorf("starting %s: %w", name, err)
	}
	return pid, nil
}

// reap waits for children until sandboxd ends.
func reap(sandboxd int) error {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return fmt.Errorf("waiting for children: %w", err)
		case pid == sandboxd && status.Signaled():
			return fmt.Errorf("sandboxd was ended by %v", status.Signal())
		case pid == sandboxd:
			return fmt.Errorf("sandboxd ended with code %d", status.ExitStatus())
		}
	}
}

func mountBasics() error {
	for _, m := range []struct {
		source, target, fstype string
		flags                  uintptr
		data                   string
	}{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("making %s: %w", m.target, err)
		}
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mounting %s: %w", m.target, err)
		}
	}
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("linking %s: %w", link, err)
		}
	}
	// The kernel makes /dev/ptmx for the first devpts instance only when asked to.
	_ = os.Chmod("/dev/ptmx", 0o666)
	return nil
}

func openConsole() error {
	fd, err := unix.Open("/dev/console", unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("opening the console: %w", err)
	}
	for std := range 3 {
		if fd != std {
			if err := unix.Dup3(fd, std, 0); err != nil {
				return fmt.Errorf("redirecting to the console: %w", err)
			}
		}
	}
	if fd > 2 {
		unix.Close(fd)
	}
	return nil
}

func loadModules() error {
	order, err := os.ReadFile(ModuleOrder)
	if err != nil {
		return fmt.Errorf("reading the module order: %w", err)
	}
	for _, path := range strings.Fields(string(order)) {
		if err := loadModule(path); err != nil {
			return err
		}
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening module: %w", err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("loading module %s: %w", path, err)
	}
	// The module is in the kernel now; its file would stay in memory for ever.
	return os.Remove(path)
}

// mountRoot mounts the root disk, which appears a moment after its driver.
func mountRoot() error {
	if err := os.MkdirAll(Lower, 0o755); err != nil {
		return err
	}
	if err := waitFor(RootDevice, 10*time.Second); err != nil {
		return err
	}
	if err := unix.Mount(RootDevice, Lower, "ext4", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mounting the root disk %s: %w", RootDevice, err)
	}
	return nil
}

// waitFor waits until path exists. Probing a disk has no event that the
// initramfs could wait for without a netlink listener; it takes milliseconds.
func waitFor(path string, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s did not appear within %v", path, limit)
		}
		<-tick.C
	}
}
