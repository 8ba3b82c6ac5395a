//go:build linux

package sandboxd

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/sandboxfs"
	"github.com/gondolin-go/gondolin/guest/wire"
)

const (
	// freezeWait is how long processes may take until they all stand still. One that waits
	// for a disk or a mount does so first.
	freezeWait = 5 * time.Second
	// holdersNamed is how many processes a refusal names.
	holdersNamed = 5
)

// hold makes every command's processes stand still, so that nothing of them runs in a copy
// of the machine before it has the time, entropy and mounts of its own. It refuses when one
// of them is in a mount: what is open there exists for this machine's host only.
func (a *agent) hold(m *wire.Hold) (_ any, werr *wire.Error) {
	a.holding.Lock()
	defer a.holding.Unlock()
	if !a.held && !a.procs.door.shut(freezeWait) {
		return nil, &wire.Error{Code: wire.CodeBusy, Msg: fmt.Sprintf("a command did not start within %v; try again", freezeWait)}
	}
	a.held = true
	defer func() {
		if werr != nil {
			_ = a.letGo()
		}
	}()
	if err := freezeAll(); err != nil {
		return nil, &wire.Error{Code: wire.CodeBusy, Msg: err.Error()}
	}
	if dev, mounted := sandboxfs.Device(); mounted && !m.KeepMounts {
		if list := holders(dev); len(list) > 0 {
			return nil, &wire.Error{Code: wire.CodeBusy, Msg: "mounts are in use: " + strings.Join(list, "; ")}
		}
	}
	if m.Sync {
		unix.Sync()
	}
	return nil, nil
}

// thaw lets the processes go on, and tells the connections that they had. It comes after a hold
// that is under way, or that would have the last word.
func (a *agent) thaw(*struct{}) (any, *wire.Error) {
	a.holding.Lock()
	defer a.holding.Unlock()
	flows := connections()
	if err := a.letGo(); err != nil {
		return nil, errnoError("", err)
	}
	return wire.Thawed{Flows: flows}, nil
}

// letGo ends hold; a.holding is held.
func (a *agent) letGo() error {
	if err := thawAll(); err != nil {
		return err
	}
	if a.held {
		a.held = false
		a.procs.door.open()
	}
	return nil
}

func thawAll() error {
	return os.WriteFile(cgroupRoot+"/cgroup.freeze", []byte("0"), 0)
}

// freezeAll returns when all processes stand still; cgroup-v2, Core Interface Files.
func freezeAll() error {
	if err := os.WriteFile(cgroupRoot+"/cgroup.freeze", []byte("1"), 0); err != nil {
		return fmt.Errorf("freezing processes: %w", err)
	}
	deadline := time.Now().Add(freezeWait)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		b, err := os.ReadFile(cgroupRoot + "/cgroup.events")
		if err == nil && strings.Contains(string(b), "frozen 1") {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("some process did not stand still within %v: it waits for a disk or a mount; try again", freezeWait)
		}
		<-tick.C
	}
}

// holders describes the processes that have something on a device open, mapped or as a
// directory, or another view of the file systems in which it is mounted.
func holders(dev uint64) []string {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	own, _ := os.Readlink("/proc/self/ns/mnt")
	var list []string
	for _, proc := range procs {
		pid := filepath.Base(proc)
		path := heldBy(proc, dev)
		if ns, err := os.Readlink(proc + "/ns/mnt"); path == "" && err == nil && ns != own && inMountinfo(proc, dev) {
			path = "a mount namespace of its own"
		}
		if path == "" || isAgent(pid) {
			continue
		}
		if len(list) == holdersNamed {
			return append(list, "and others")
		}
		comm, _ := os.ReadFile(proc + "/comm")
		list = append(list, fmt.Sprintf("process %s (%s) has %s", pid, strings.TrimSpace(string(comm)), path))
	}
	return list
}

// isAgent reports whether a process is one of this program's own, which know what to do.
func isAgent(pid string) bool {
	own, _ := os.Readlink("/proc/self/exe")
	exe, err := os.Readlink("/proc/" + pid + "/exe")
	return err == nil && exe == own && own != ""
}

func heldBy(proc string, dev uint64) string {
	links := []string{proc + "/cwd", proc + "/root", proc + "/exe"}
	for _, dir := range []string{"/fd", "/map_files"} {
		entries, _ := os.ReadDir(proc + dir)
		for _, e := range entries {
			links = append(links, filepath.Join(proc+dir, e.Name()))
		}
	}
	for _, link := range links {
		var st unix.Statx_t
		// The host is not asked: what the kernel knows is enough.
		if unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, 0, &st) != nil ||
			unix.Mkdev(st.Dev_major, st.Dev_minor) != dev {
			continue
		}
		target, _ := os.Readlink(link)
		switch filepath.Base(link) {
		case "cwd":
			return target + " as its working directory"
		case "root":
			return target + " as its root directory"
		}
		return target + " open"
	}
	return ""
}

func inMountinfo(proc string, dev uint64) bool {
	b, err := os.ReadFile(proc + "/mountinfo")
	return err == nil && strings.Contains(string(b), fmt.Sprintf(" %d:%d ", unix.Major(dev), unix.Minor(dev)))
}

// connections lists the TCP connections that end outside of the machine.
func connections() []wire.Flow {
	var flows []wire.Flow
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		lines := strings.Split(string(b), "\n")
		for _, line := range lines[1:] {
			f := strings.Fields(line)
			if len(f) < 4 || slices.Contains(tcpWithoutPeer, f[3]) {
				continue
			}
			local, ok1 := procAddr(f[1])
			remote, ok2 := procAddr(f[2])
			if !ok1 || !ok2 || local.Addr().IsLoopback() || local.Addr() == remote.Addr() {
				continue
			}
			if flows = append(flows, wire.Flow{Local: local.String(), Remote: remote.String()}); len(flows) == wire.MaxFlows {
				return flows
			}
		}
	}
	return flows
}

// tcpWithoutPeer are the states of sockets that wait for nothing from a peer: TIME_WAIT, CLOSE, LISTEN.
var tcpWithoutPeer = []string{"06", "07", "0A"}

// procAddr reads an address of proc_net_tcp: words of 32 bits in the machine's byte order.
func procAddr(s string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(s, ":")
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil || len(host)%8 != 0 {
		return netip.AddrPort{}, false
	}
	var raw []byte
	for ; len(host) > 0; host = host[8:] {
		word, err := strconv.ParseUint(host[:8], 16, 32)
		if err != nil {
			return netip.AddrPort{}, false
		}
		raw = append(raw, byte(word), byte(word>>8), byte(word>>16), byte(word>>24))
	}
	addr, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), ok
}
