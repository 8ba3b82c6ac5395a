//go:build linux

package sandboxd

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// cgroupRoot holds the cgroups of all commands, so that one limit bounds them together.
const cgroupRoot = "/sys/fs/cgroup/cmd"

// maxIdleCgroups is how many empty cgroups are kept for the next commands:
// making one costs more than the rest of a short command.
const maxIdleCgroups = 16

// cgroups gives each command a cgroup (v2), so that everything it started can
// be ended, also what left its process group.
type cgroups struct {
	mu        sync.Mutex
	idle      []*cgroup
	lingering []*cgroup // the command ended, something it started lives on
	made      int
	oomKills  int // as counted at the last look
}

type cgroup struct {
	path   string
	dir    *os.File
	events *os.File

	owner *process // the command it is for; nil once it was recycled
}

// setupCgroups makes the common cgroup with its limit of memory. Memory is limited a
// little below the machine's, so that a command that takes all of it is ended
// and the agent survives.
func setupCgroups() error {
	if err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+pids +memory"), 0); err != nil {
		return fmt.Errorf("enabling cgroup controllers: %w", err)
	}
	if err := os.Mkdir(cgroupRoot, 0o755); err != nil && !os.IsExist(err) {
		return fmt.Errorf("making the cgroup of commands: %w", err)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("sysinfo: %w", err)
	}
	total := info.Totalram * uint64(info.Unit)
	limit := total - max(total/32, 24<<20)
	if err := os.WriteFile(cgroupRoot+"/memory.max", []byte(strconv.FormatUint(limit, 10)), 0); err != nil {
		return fmt.Errorf("limiting memory: %w", err)
	}
	return nil
}

// limitProcesses bounds the processes and threads of all commands together.
func limitProcesses(n int) error {
	if err := os.WriteFile(cgroupRoot+"/pids.max", []byte(strconv.Itoa(n)), 0); err != nil {
		return fmt.Errorf("limiting processes: %w", err)
	}
	return nil
}

// acquire returns an empty cgroup.
func (c *cgroups) acquire() (*cgroup, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sweepLocked()
	if n := len(c.idle); n > 0 {
		g := c.idle[n-1]
		c.idle = c.idle[:n-1]
		return g, nil
	}
	c.made++
	path := filepath.Join(cgroupRoot, strconv.Itoa(c.made))
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, fmt.Errorf("making a cgroup: %w", err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	events, err := os.Open(filepath.Join(path, "cgroup.events"))
	if err != nil {
		dir.Close()
		return nil, err
	}
	return &cgroup{path: path, dir: dir, events: events}, nil
}

// release takes a cgroup back when its command has ended.
func (c *cgroups) release(g *cgroup) {
	if g == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lingering = append(c.lingering, g)
	c.sweepLocked()
}

// sweepLocked recycles the lingering cgroups that have become empty.
func (c *cgroups) sweepLocked() {
	kept := c.lingering[:0]
	for _, g := range c.lingering {
		switch {
		case g.populated():
			kept = append(kept, g)
			continue
		case len(c.idle) < maxIdleCgroups:
			c.idle = append(c.idle, g)
		default:
			g.dir.Close()
			g.events.Close()
			_ = os.Remove(g.path)
		}
		g.owner = nil
	}
	clear(c.lingering[len(kept):])
	c.lingering = kept
}

func (g *cgroup) populated() bool {
	var buf [256]byte
	n, err := g.events.ReadAt(buf[:], 0)
	return n > 0 && bytes.Contains(buf[:n], []byte("populated 1")) || n == 0 && err == nil
}

// own gives a cgroup to the command that will run in it.
func (c *cgroups) own(g *cgroup, p *process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g.owner = p
}

// alive reports whether anything that p started still runs.
func (c *cgroups) alive(p *process) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return p.cgroup.owner == p && p.cgroup.populated()
}

// kill ends everything that p started (cgroup.kill, Linux 5.14), also after p itself ended.
func (c *cgroups) kill(p *process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.cgroup.owner != p {
		return nil // nothing of it is left
	}
	if err := os.WriteFile(filepath.Join(p.cgroup.path, "cgroup.kill"), []byte("1"), 0); err != nil {
		return fmt.Errorf("killing a cgroup: %w", err)
	}
	return nil
}

// signal sends sig to everything that p left behind.
func (c *cgroups) signal(p *process, sig unix.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.cgroup.owner != p {
		return nil
	}
	pids, err := p.cgroup.pids()
	if err != nil {
		return err
	}
	// A pid is only a number: hold the processes first, and look again who they are.
	held := map[string]int{}
	for _, pid := range pids {
		n, err := strconv.Atoi(pid)
		if err != nil {
			continue
		}
		if fd, err := unix.PidfdOpen(n, 0); err == nil {
			held[pid] = fd
			defer unix.Close(fd)
		}
	}
	if pids, err = p.cgroup.pids(); err != nil {
		return err
	}
	for _, pid := range pids {
		if fd, ok := held[pid]; ok {
			_ = unix.PidfdSendSignal(fd, sig, nil, 0) // it may have ended meanwhile
		}
	}
	return nil
}

func (g *cgroup) pids() ([]string, error) {
	b, err := os.ReadFile(filepath.Join(g.path, "cgroup.procs"))
	if err != nil {
		return nil, fmt.Errorf("reading the processes of a cgroup: %w", err)
	}
	return strings.Fields(string(b)), nil
}

// outOfMemory reports whether the kernel has ended a command for want of memory
// since the last call.
func (c *cgroups) outOfMemory() bool {
	b, err := os.ReadFile(cgroupRoot + "/memory.events")
	if err != nil {
		return false
	}
	kills := 0
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(line, []byte("oom_kill ")); ok {
			kills, _ = strconv.Atoi(string(bytes.TrimSpace(v)))
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	more := kills > c.oomKills
	c.oomKills = kills
	return more
}
