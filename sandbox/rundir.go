package sandbox

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// A session's run directory holds its sockets, the process id of its QEMU, and
// a lock that the owning process holds as long as it lives: a directory whose
// lock is free belongs to nobody any more.
const (
	lockName = "lock"
	pidName  = "qemu.pid"
)

type runDir struct {
	path string
	lock *flock.Flock
}

func newRunDir(base, id string) (*runDir, error) {
	d := &runDir{path: filepath.Join(base, id)}
	if err := os.Mkdir(d.path, 0o700); err != nil {
		return nil, fmt.Errorf("making the session's directory: %w", err)
	}
	d.lock = flock.New(filepath.Join(d.path, lockName))
	if ok, err := d.lock.TryLock(); err != nil || !ok {
		os.RemoveAll(d.path)
		return nil, fmt.Errorf("locking the session's directory %s: %w", d.path, errors.Join(err, errors.New("another process holds it")))
	}
	return d, nil
}

// recordPID notes which process must not outlive the owner.
func (d *runDir) recordPID(pid int) error {
	return os.WriteFile(filepath.Join(d.path, pidName), []byte(strconv.Itoa(pid)), 0o600)
}

func (d *runDir) remove() error {
	err := os.RemoveAll(d.path)
	return errors.Join(err, d.lock.Close())
}

// collectStale removes what sessions of dead processes left in base.
func collectStale(base string, log *slog.Logger) {
	entries, err := os.ReadDir(base)
	if err != nil {
		return
	}
	for _, e := range entries {
		path := filepath.Join(base, e.Name())
		if err := collectOne(path, log); err != nil {
			log.Warn("collecting what a dead session left", "dir", path, "err", err)
		}
	}
}

func collectOne(path string, log *slog.Logger) error {
	lockPath := filepath.Join(path, lockName)
	if _, err := os.Stat(lockPath); errors.Is(err, os.ErrNotExist) {
		// Its owner may be between making the directory and locking it.
		if st, err := os.Stat(path); err != nil || time.Since(st.ModTime()) < time.Minute {
			return nil
		}
	}
	lock := flock.New(lockPath)
	ok, err := lock.TryLock()
	if err != nil || !ok {
		return err
	}
	defer lock.Close()
	if b, err := os.ReadFile(filepath.Join(path, pidName)); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && isOurQEMU(pid) {
			log.Info("ending the QEMU of a dead session", "pid", pid)
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill()
			}
		}
	}
	log.Info("removing what a dead session left", "dir", path)
	return os.RemoveAll(path)
}

// isOurQEMU guards against a process id that now belongs to something else.
func isOurQEMU(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	args := strings.Split(string(b), "\x00")
	return err == nil && len(args) > 2 && strings.Contains(filepath.Base(args[0]), "qemu-system") && args[1] == "-name" && args[2] == "gondolin"
}
