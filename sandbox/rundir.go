package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
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

	youngPrefix = ".new-" // of a directory that its owner is about to lock
)

type runDir struct {
	path string
	lock *flock.Flock
}

func newRunDir(base, id string) (*runDir, error) {
	d := &runDir{path: filepath.Join(base, id)}
	// It gets its name when it is locked: a collector would take it for a dead one's.
	young := filepath.Join(base, youngPrefix+id)
	if err := os.Mkdir(young, 0o700); err != nil {
		return nil, fmt.Errorf("making the session's directory: %w", err)
	}
	d.lock = flock.New(filepath.Join(young, lockName))
	ok, err := d.lock.TryLock()
	if err == nil && !ok {
		err = errors.New("another process holds it")
	}
	if err == nil {
		err = os.Rename(young, d.path)
	}
	if err != nil {
		d.lock.Close()
		os.RemoveAll(young)
		return nil, fmt.Errorf("locking the session's directory %s: %w", d.path, err)
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
		if _, err := collectOne(path, false, log); err != nil {
			log.Warn("collecting what a dead session left", "dir", path, "err", err)
		}
	}
}

// isOurs says whether a directory was made here. Who names a directory of other things as that
// of sessions, such as a home, must not lose them.
func isOurs(path string) bool {
	id, young := strings.CutPrefix(filepath.Base(path), youngPrefix)
	id, temp := strings.CutPrefix(id, snapshotTemp)
	if !idForm.MatchString(id) {
		return false
	}
	_, err := os.Lstat(filepath.Join(path, lockName))
	return err == nil || young || temp
}

// idForm is that of newID.
var idForm = regexp.MustCompile(`^[a-z2-7]{10}$`)

// collectOne removes one directory if it is a dead session's, or only says whether it is.
func collectOne(path string, dry bool, log *slog.Logger) (dead bool, err error) {
	st, err := os.Lstat(path)
	if err != nil || !st.IsDir() || !isOurs(path) {
		return false, nil // gone, or nothing of ours
	}
	if strings.HasPrefix(filepath.Base(path), youngPrefix) && time.Since(st.ModTime()) < time.Minute {
		return false, nil
	}
	lock := flock.New(filepath.Join(path, lockName), flock.SetFlag(os.O_RDONLY))
	ok, err := lock.TryLock()
	if errors.Is(err, fs.ErrNotExist) {
		ok, err = true, nil // its maker came no further
	}
	if err != nil || !ok {
		return false, err
	}
	defer lock.Close()
	if dry {
		return true, nil
	}
	if b, err := os.ReadFile(filepath.Join(path, pidName)); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && isQEMUOf(pid, filepath.Base(path)) {
			log.Info("ending the QEMU of a dead session", "pid", pid)
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill()
			}
		}
	}
	log.Info("removing what a dead session left", "dir", path)
	return true, os.RemoveAll(path)
}

// vmName is what a session's machine is called in its arguments.
func vmName(id string) string { return "gondolin-" + id }

// isQEMUOf guards against a process id that now belongs to something else.
func isQEMUOf(pid int, id string) bool {
	args, err := processArgs(pid)
	return err == nil && slices.Contains(args, vmName(id))
}
