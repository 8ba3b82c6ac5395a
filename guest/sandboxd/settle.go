//go:build linux

package sandboxd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/pid1"
	"github.com/gondolin-go/gondolin/guest/wire"
)

const (
	scratchDevice = "/dev/vdb"
	newRoot       = "/newroot"
)

// freshen applies the clock, which stood still while the VM was stopped, and
// entropy, which it shared with its clones.
func freshen(h *wire.Freshen) error {
	if len(h.Entropy) != wire.EntropySize {
		return fmt.Errorf("the host sent %d bytes of entropy, not %d", len(h.Entropy), wire.EntropySize)
	}
	if err := setClock(h.UnixNano); err != nil {
		return err
	}
	return seed(h.Entropy)
}

func setClock(unixNano int64) error {
	now := unix.NsecToTimespec(unixNano)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		return fmt.Errorf("setting the clock: %w", err)
	}
	return nil
}

// seed credits entropy and makes the kernel use it at once; random(4).
func seed(entropy []byte) error {
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("seeding: %w", err)
	}
	defer f.Close()
	var pool struct {
		bits, size int32
		buf        [wire.EntropySize]byte
	}
	pool.bits, pool.size = wire.EntropySize*8, wire.EntropySize
	copy(pool.buf[:], entropy)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&pool))); errno != 0 {
		return fmt.Errorf("adding entropy: %w", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDRESEEDCRNG, 0); errno != 0 {
		return fmt.Errorf("reseeding: %w", errno)
	}
	return nil
}

// prepare does what no session differs in, before the announcement: a machine that
// is stopped there need not do it again in each of its clones.
func prepare(ctx context.Context) (readonly, warm bool, err error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return false, false, err
	}
	mode, network := wire.RootCOW, ""
	for _, word := range strings.Fields(string(line)) {
		if m, ok := strings.CutPrefix(word, wire.CmdlineRoot); ok {
			mode = m
		}
		if n, ok := strings.CutPrefix(word, wire.CmdlineNet); ok {
			network = n
		}
		warm = warm || word == wire.CmdlineWarm
	}
	if err := mountSessionRoot(mode); err != nil {
		return false, false, err
	}
	if err := enterRoot(); err != nil {
		return false, false, err
	}
	if err := loopbackUp(); err != nil {
		return false, false, err
	}
	readonly = mode == wire.RootReadOnly
	// sandboxfs has made it, for itself; every user reads the certificates there.
	if err := errors.Join(os.MkdirAll(stateDir, 0o755), os.Chmod(stateDir, 0o755)); err != nil {
		return false, false, err
	}
	if network != "" {
		if err := setupNetwork(network, readonly); err != nil {
			return false, false, err
		}
	}
	if err := prepareTrust(readonly); err != nil {
		return false, false, err
	}
	if !readonly {
		// Their directories are in the writable layer then, and the names of no session.
		if err := writeNames("gondolin", ""); err != nil {
			return false, false, err
		}
	}
	if err := setupCgroups(); err != nil {
		return false, false, err
	}
	if warm {
		warmUp(ctx)
	}
	return readonly, warm, nil
}

// warmUp runs what commands use first, so that its files are in the page cache.
// An image may have none of it.
func warmUp(ctx context.Context) {
	for _, argv := range [][]string{
		{"/bin/true"}, {"/bin/bash", "-c", "ls -l / | cat > /dev/null"}, {"/bin/sh", "-c", ":"},
		{"/usr/bin/git", "--version"}, {"/usr/bin/python3", "-c", "import os, re, json"},
	} {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Env = []string{"PATH=" + defaultPath}
		_ = cmd.Run()
		cancel()
	}
}

// settle gives the machine the session's names. It runs once, before any command.
func settle(h *wire.Hello, readonly bool) error {
	if err := unix.Sethostname([]byte(h.Hostname)); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	if !readonly {
		if err := writeNames(h.Hostname, h.MachineID); err != nil {
			return err
		}
	} else if err := provide("/etc/hosts", hosts(h.Hostname), true); err != nil {
		return err
	}
	return limitProcesses(h.Processes)
}

// mountSessionRoot puts the writable layer over the root disk.
func mountSessionRoot(mode string) error {
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return err
	}
	upper := "/upper"
	if err := os.MkdirAll(upper, 0o755); err != nil {
		return err
	}
	var err error
	switch mode {
	case wire.RootCOW:
		// A new disk is all zeros: its inode tables need no thread that writes zeros to them.
		err = unix.Mount(scratchDevice, upper, "ext4", unix.MS_NOATIME, "noinit_itable")
	case wire.RootMemory:
		err = unix.Mount("tmpfs", upper, "tmpfs", unix.MS_NOATIME, "size=90%,mode=0755")
	case wire.RootReadOnly:
		if err := unix.Mount(pid1.Lower, newRoot, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting the root: %w", err)
		}
		return nil
	default:
		return fmt.Errorf("unknown root mode %q", mode)
	}
	if err != nil {
		return fmt.Errorf("mounting the writable layer (%s): %w", mode, err)
	}
	// A disk that was in use before: the kernel takes no volatile work directory a second time.
	if err := os.RemoveAll(upper + "/work"); err != nil {
		return fmt.Errorf("clearing the overlay's work directory: %w", err)
	}
	for _, d := range []string{upper + "/data", upper + "/work"} {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	// The layer dies with the session: volatile leaves out syncs to it.
	opts := "lowerdir=" + pid1.Lower + ",upperdir=" + upper + "/data,workdir=" + upper + "/work,volatile"
	if err := unix.Mount("overlay", newRoot, "overlay", unix.MS_NOATIME, opts); err != nil {
		return fmt.Errorf("mounting the overlay: %w", err)
	}
	return nil
}

// enterRoot moves the kernel's file systems into the new root and makes it /.
func enterRoot() error {
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run"} {
		target := newRoot + dir
		if err := os.MkdirAll(target, 0o755); err != nil {
			return fmt.Errorf("the image has no directory %s and the root is read-only: %w", dir, err)
		}
		if err := unix.Mount(dir, target, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving %s: %w", dir, err)
		}
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(newRoot, "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("entering the root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return writableTmp()
}

// writableTmp makes sure that /tmp can be written to in every root mode.
func writableTmp() error {
	for _, dir := range []string{"/tmp", "/var/tmp"} {
		err := os.MkdirAll(dir, 0o777|os.ModeSticky)
		if err == nil {
			err = os.Chmod(dir, 0o777|os.ModeSticky)
		}
		if err == nil {
			continue
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil && dir == "/tmp" {
			return fmt.Errorf("mounting /tmp: %w", err)
		}
	}
	return nil
}

// hosts is the content of hosts(5). The machine's own name has an address of each family: for one
// that is missing programs would ask the host.
func hosts(name string) string {
	return "127.0.0.1 localhost " + name + "\n::1 localhost ip6-localhost ip6-loopback " + name + "\n"
}

// writeNames writes the files that name the machine. An image may lack /etc.
func writeNames(host, machineID string) error {
	if err := os.MkdirAll("/etc", 0o755); err != nil {
		return err
	}
	files := map[string]string{
		"/etc/hostname":   host + "\n",
		"/etc/machine-id": machineID + "\n",
		"/etc/hosts":      hosts(host),
	}
	for path, content := range files {
		if st, err := os.Lstat(path); err == nil && !st.Mode().IsRegular() {
			_ = os.Remove(path) // a link that points nowhere yet
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return fmt.Errorf("writing %s: %w", path, err)
		}
	}
	_ = os.Remove(filepath.FromSlash("/var/lib/dbus/machine-id"))
	return nil
}

// loopbackUp brings lo up; the kernel gives it its addresses.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bringing up lo: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bringing up lo: %w", err)
	}
	return nil
}
