package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/adrg/xdg"

	"github.com/gondolin-go/gondolin/sandbox/template"
)

// Snapshot describes a session's machine in a directory of its own: everything that another
// session needs to go on from it, and nothing of a secret's value, of keys or of what is behind
// its mounts.
type Snapshot struct {
	Version     int       `json:"version"`
	Name        string    `json:"name"`
	Created     time.Time `json:"created"`
	Memory      bool      `json:"memory"` // with memory and processes; else the disk alone, from which a machine boots
	Label       string    `json:"label,omitempty"`
	Image       string    `json:"image"`
	ImageKey    string    `json:"image_key"` // see Image.Key
	QEMU        string    `json:"qemu"`
	Accelerator string    `json:"accelerator"`
	CPU         string    `json:"cpu"`        // the host's, by name
	CPUDigest   string    `json:"cpu_digest"` // of all that is known of it
	Arguments   []string  `json:"arguments"`  // of QEMU, without what differs between machines
	Root        RootMode  `json:"root"`
	CPUs        int       `json:"cpus"`
	MemoryMiB   int       `json:"memory_mib"`
	DiskMiB     int       `json:"disk_mib"`
	Processes   int       `json:"processes"`
	Mounts      []string  `json:"mounts,omitempty"` // paths of the guest that had one

	Machine *template.Files `json:"machine,omitempty"`
	Disk    *template.File  `json:"disk,omitempty"` // of a disk alone
	Sum     string          `json:"sum"`            // of this description without it

	Bytes int64 `json:"bytes,omitempty"` // on disk; not part of the description
}

const (
	snapshotVersion  = 1
	snapshotManifest = "snapshot.json"
	snapshotTemp     = ".tmp-"
	maxManifest      = 1 << 20
	maxSnapshots     = 64 // an agent makes them, and they lie on the user's disk
)

// ErrNoSnapshot: there is no snapshot of that name.
var ErrNoSnapshot = errors.New("no such snapshot")

var snapshotName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$`)

// Snapshots is a directory of snapshots. Several processes may use one.
type Snapshots struct{ dir string }

// OpenSnapshots returns the snapshots below a state directory; "" means DefaultStateDir.
func OpenSnapshots(stateDir string) *Snapshots {
	if stateDir == "" {
		stateDir = DefaultStateDir()
	}
	return &Snapshots{dir: filepath.Join(stateDir, "snapshots")}
}

// DefaultStateDir is where what users want to keep is, unless HostOptions say otherwise.
func DefaultStateDir() string { return filepath.Join(xdg.StateHome, "gondolin") }

// Dir is where a snapshot is.
func (s *Snapshots) Dir(name string) string { return filepath.Join(s.dir, name) }

// checkName refuses what is no name, or would be a path.
func checkName(name string) error {
	if !snapshotName.MatchString(name) {
		return fmt.Errorf("snapshot %q: use 1 to 64 letters, digits, dots, hyphens and underscores, beginning with a letter or digit: %w", name, ErrInvalid)
	}
	return nil
}

// Get reads a snapshot's description. Its files are checked when it is restored.
func (s *Snapshots) Get(name string) (*Snapshot, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(s.Dir(name), snapshotManifest))
	if errors.Is(err, fs.ErrNotExist) {
		if _, serr := os.Stat(s.Dir(name)); serr == nil {
			return nil, fmt.Errorf("snapshot %s is damaged: it has no %s", name, snapshotManifest)
		}
		return nil, s.none(name)
	}
	if err != nil {
		return nil, fmt.Errorf("reading snapshot %s: %w", name, err)
	}
	defer f.Close()
	m := &Snapshot{}
	if st, err := f.Stat(); err == nil && st.Size() <= maxManifest {
		err = json.NewDecoder(f).Decode(m)
		if err != nil {
			return nil, fmt.Errorf("snapshot %s is damaged: %s: %w", name, snapshotManifest, err)
		}
	}
	sum := m.Sum
	if m.seal(); sum != m.Sum || sum == "" {
		return nil, fmt.Errorf("snapshot %s is damaged: %s is not what was written", name, snapshotManifest)
	}
	switch {
	case m.Version != snapshotVersion:
		return nil, fmt.Errorf("snapshot %s has version %d, and this program reads %d", name, m.Version, snapshotVersion)
	case m.Name != name:
		return nil, fmt.Errorf("snapshot %s is damaged: it says to be %s", name, m.Name)
	case m.Memory != (m.Machine != nil), !m.Memory && m.Disk == nil:
		return nil, fmt.Errorf("snapshot %s is damaged: it names no files", name)
	}
	m.Bytes = template.DiskUsage(s.Dir(name))
	return m, nil
}

// none is the error of a name that no snapshot has.
func (s *Snapshots) none(name string) error {
	const most = 10
	var names []string
	entries, _ := os.ReadDir(s.dir)
	for _, e := range entries {
		if e.IsDir() && snapshotName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	switch n := len(names); {
	case n == 0:
		return fmt.Errorf("snapshot %q: %w; there is none yet", name, ErrNoSnapshot)
	case n > most:
		names = append(names[:most], fmt.Sprintf("and %d more (gondolin-mcp snapshot list)", n-most))
	}
	return fmt.Errorf("snapshot %q: %w; there are %s", name, ErrNoSnapshot, strings.Join(names, ", "))
}

// seal sets the sum of the description.
func (m *Snapshot) seal() {
	plain := *m
	plain.Sum, plain.Bytes = "", 0
	b, _ := json.Marshal(plain) // it has no values that could fail
	sum := sha256.Sum256(b)
	m.Sum = hex.EncodeToString(sum[:])
}

// List returns the snapshots, newest first, and what is wrong with those that cannot be read.
func (s *Snapshots) List() ([]*Snapshot, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing snapshots: %w", err)
	}
	var list []*Snapshot
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		m, err := s.Get(e.Name())
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b *Snapshot) int { return b.Created.Compare(a.Created) })
	return list, errors.Join(errs...)
}

// Remove removes a snapshot, also a damaged one, and returns how many bytes of disk that freed.
// Sessions that were restored from it go on.
func (s *Snapshots) Remove(name string) (int64, error) {
	if err := checkName(name); err != nil {
		return 0, err
	}
	freed := template.DiskUsage(s.Dir(name))
	// At once for whoever looks, however long it takes.
	temp := filepath.Join(s.dir, snapshotTemp+newID())
	if err := os.Rename(s.Dir(name), temp); errors.Is(err, fs.ErrNotExist) {
		return 0, s.none(name)
	} else if err != nil {
		return 0, fmt.Errorf("removing snapshot %s: %w", name, err)
	}
	if err := os.RemoveAll(temp); err != nil {
		return 0, fmt.Errorf("removing snapshot %s: %w", name, err)
	}
	return freed, nil
}

// collect removes what writers left that are dead, and says what that is. With dry it only says.
func (s *Snapshots) collect(dry bool, log *slog.Logger) ([]Leftover, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return nil, err
	}
	var gone []Leftover
	var errs []error
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), snapshotTemp) && !strings.HasPrefix(e.Name(), youngPrefix) {
			continue
		}
		dead, err := collectOne(filepath.Join(s.dir, e.Name()), dry, log)
		errs = append(errs, err)
		if dead {
			gone = append(gone, Leftover{Kind: "snapshot", Name: e.Name()})
		}
	}
	return gone, errors.Join(errs...)
}

// write makes a snapshot of what fill writes into a directory, which appears whole or not at all.
func (s *Snapshots) write(ctx context.Context, m *Snapshot, fill func(dir string) error) error {
	taken := fmt.Errorf("snapshot %q exists: choose another name, or let the user remove it (gondolin-mcp snapshot remove %s): %w", m.Name, m.Name, ErrInvalid)
	if err := checkName(m.Name); err != nil {
		return err
	}
	if _, err := os.Lstat(s.Dir(m.Name)); err == nil {
		return taken
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("making the directory of snapshots: %w", err)
	}
	if entries, err := os.ReadDir(s.dir); err == nil && len(entries) >= maxSnapshots {
		return fmt.Errorf("there are %d snapshots in %s, the most that are kept; the user can remove some (gondolin-mcp snapshot list, and remove NAME): %w", len(entries), s.dir, ErrLimit)
	}
	if err := enoughRoom(s.dir); err != nil {
		return err
	}
	temp, err := newRunDir(s.dir, snapshotTemp+newID())
	if err != nil {
		return err
	}
	err = fill(temp.path)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		m.seal()
		err = m.save(temp.path)
	}
	if err == nil {
		// Fails on a directory that is not empty, so that of two writers one loses.
		if err = os.Rename(temp.path, s.Dir(m.Name)); errors.Is(err, fs.ErrExist) {
			err = taken
		}
	}
	if err != nil {
		return errors.Join(err, temp.remove())
	}
	// Until here a collector had to see that somebody lives.
	return errors.Join(os.Remove(filepath.Join(s.Dir(m.Name), lockName)), temp.lock.Close(), syncDir(s.dir))
}

func (m *Snapshot) save(dir string) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, snapshotManifest), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	return errors.Join(err, f.Sync(), f.Close(), syncDir(dir))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
