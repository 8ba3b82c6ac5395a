package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/gondolin-go/gondolin/sandbox/qemu"
	"github.com/gondolin-go/gondolin/sandbox/template"
)

// SnapshotOptions say what a snapshot holds.
type SnapshotOptions struct {
	// Disk keeps the disk alone: smaller, and fit for another QEMU or processor, but a
	// session restored from it boots, and no process is in it.
	Disk bool
}

// Taken is a snapshot that was made just now.
type Taken struct {
	*Snapshot
	Pause time.Duration // how long the session stood still
}

// Snapshot writes the session's machine to a directory, from which Host.Restore makes any number of
// sessions, in this process or another. The session goes on. It fails with ErrBusy, and changes
// nothing, while a process uses a mount.
func (s *Session) Snapshot(ctx context.Context, name string, o SnapshotOptions) (*Taken, error) {
	ctx, cancel := s.host.within(ctx)
	defer cancel()
	m, err := s.describe(name, !o.Disk)
	if err != nil {
		return nil, err
	}
	taken := &Taken{Snapshot: m}
	err = s.host.snapshots.write(ctx, m, func(dir string) error {
		f, err := s.freeze(ctx, o.Disk, func() error { return nil })
		if err != nil {
			return err
		}
		defer f.close()
		taken.Pause = f.pause
		if err := roomFor(dir, f.bytes()); err != nil {
			return err
		}
		if o.Disk {
			disk, err := template.WriteDisk(ctx, dir, f.disk)
			m.Disk = &disk
			return err
		}
		files, err := f.Write(ctx, dir)
		m.Machine = &files
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("making snapshot %s of session %s: %w", name, s.id, err)
	}
	m.Bytes = template.DiskUsage(s.host.snapshots.Dir(name))
	s.log.Info("snapshot made", "name", name, "bytes", m.Bytes, "pause", taken.Pause.Round(time.Millisecond))
	if told := s.options().Snapshotted; told != nil {
		told(m)
	}
	return taken, nil
}

// describe is all of a snapshot's description but its files.
func (s *Session) describe(name string, memory bool) (*Snapshot, error) {
	o := s.options()
	m := &Snapshot{
		Version: snapshotVersion, Name: name, Created: time.Now().UTC().Truncate(time.Second), Memory: memory, Label: o.Label,
		Image: o.Image.ID, QEMU: s.host.qemuVersion, Accelerator: string(s.accel),
		Root: o.Root, CPUs: o.Limits.CPUs, MemoryMiB: o.Limits.MemoryMiB, DiskMiB: o.Limits.DiskMiB, Processes: o.Limits.Processes,
	}
	m.CPU, m.CPUDigest = cpuIdentity()
	for _, mount := range o.Mounts {
		m.Mounts = append(m.Mounts, path.Clean(mount.Path))
	}
	var err error
	if m.ImageKey, err = o.Image.key(); err != nil {
		return nil, err
	}
	m.Arguments, err = s.host.arguments(&o, s.accel)
	return m, err
}

// cpuIdentity names the host's processor, for people and to compare.
func cpuIdentity() (name, digest string) {
	all := hostCPU()
	sum := sha256.Sum256([]byte(all))
	name, _, _ = strings.Cut(all, "|")
	return name, hex.EncodeToString(sum[:8])
}

// key names the image's content.
func (i *Image) key() (string, error) {
	if i.Key != "" {
		return i.Key, nil
	}
	sum := sha256.New()
	for _, path := range []string{i.Kernel, i.Modules, i.RootDisk} {
		st, err := os.Stat(path)
		if err != nil {
			return "", fmt.Errorf("image %s is not complete: %w", i.ID, err)
		}
		fmt.Fprintln(sum, path, st.Size(), st.ModTime().UnixNano())
	}
	return "files-" + hex.EncodeToString(sum.Sum(nil)[:16]), nil
}

// arguments are those of a machine that must be the same in another that goes on from its state.
func (h *Host) arguments(o *Options, a qemu.Accelerator) ([]string, error) {
	c, err := h.machine("snapshot", o)
	c.Accelerator, c.Memory = a, qemu.MemoryShared
	return c.Argv(), err
}

// Snapshots are those that the host's sessions write and Restore reads.
func (h *Host) Snapshots() *Snapshots { return h.snapshots }

// Restore makes a session that goes on from a snapshot. Options say what the snapshot does not hold:
// the image, which must be the one that it was made with, environment, mounts, network and
// limits of time. Placeholders of secrets and the authority for certificates are new: programs that
// were started before the snapshot must be started again to use secrets.
func (h *Host) Restore(ctx context.Context, name string, o Options) (*Session, error) {
	m, err := h.snapshots.Get(name)
	if err != nil {
		return nil, err
	}
	o.Root = m.Root
	o.Limits.CPUs, o.Limits.MemoryMiB, o.Limits.DiskMiB, o.Limits.Processes = m.CPUs, m.MemoryMiB, m.DiskMiB, m.Processes
	if o, err = o.withDefaults(); err != nil {
		return nil, err
	}
	if err := h.fits(m, &o); err != nil {
		return nil, fmt.Errorf("snapshot %s cannot be restored here: %w", name, err)
	}
	release, err := h.reserveFor(1)
	if err != nil {
		return nil, err
	}
	defer release()
	ctx, cancel := h.within(ctx)
	defer cancel()
	newDisk := func() (*os.File, error) { return scratchFile(h.opts.CacheDir) }
	if !m.Memory {
		return h.restoreDisk(ctx, m, o, newDisk)
	}
	t, err := template.Read(ctx, h.snapshots.Dir(name), *m.Machine, newDisk)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("snapshot %s is damaged or cannot be read: %w", name, err), h.giveBack(1))
	}
	defer t.Close()
	s, err := h.revive(ctx, o, revival{frozen: &frozen{Template: t}, accel: qemu.Accelerator(m.Accelerator), origin: OriginRestored})
	if err != nil {
		return nil, fmt.Errorf("restoring snapshot %s: %w", name, err)
	}
	return s, nil
}

// restoreDisk boots a session from a disk.
func (h *Host) restoreDisk(ctx context.Context, m *Snapshot, o Options, newDisk func() (*os.File, error)) (*Session, error) {
	disk, err := newDisk()
	if err == nil {
		defer disk.Close()
		err = template.ReadDisk(ctx, h.snapshots.Dir(m.Name), *m.Disk, disk)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("snapshot %s is damaged or cannot be read: %w", m.Name, err), h.giveBack(1))
	}
	s, err := h.bootFrom(ctx, o, disk)
	if s, err = h.handOut(ctx, s, err); err != nil {
		return nil, fmt.Errorf("restoring snapshot %s: %w", m.Name, err)
	}
	return s, nil
}

// fits says why a session with these options cannot go on from a snapshot.
func (h *Host) fits(m *Snapshot, o *Options) error {
	key, err := o.Image.key()
	if err != nil {
		return err
	}
	if key != m.ImageKey {
		return fmt.Errorf("it was made with the image %s (%s), and this session would have %s (%s)", m.Image, m.ImageKey, o.Image.ID, key)
	}
	if !m.Memory {
		return nil // it boots
	}
	var errs []error
	differ := func(then, now string) {
		if then != now {
			errs = append(errs, fmt.Errorf("it was made with %s, and here is %s", then, now))
		}
	}
	differ(m.QEMU, h.qemuVersion)
	list, reason, err := qemu.Candidates(h.opts.Accelerator, qemu.LoadVerdicts(h.opts.CacheDir, h.qemuPath+" "+h.qemuVersion))
	if err != nil {
		return err
	}
	if a := qemu.Accelerator(m.Accelerator); !slices.Contains(list, a) {
		if reason != "" {
			reason = " (" + reason + ")"
		}
		errs = append(errs, fmt.Errorf("it was made with the accelerator %s, and here is %s%s", a, list[0], reason))
	}
	if name, digest := cpuIdentity(); m.Accelerator != string(qemu.TCG) && digest != m.CPUDigest {
		// Translated code has seen nothing of the host's processor.
		differ("the processor "+m.CPU+" ["+m.CPUDigest+"]", name+" ["+digest+"]")
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	args, err := h.arguments(o, qemu.Accelerator(m.Accelerator))
	if err != nil {
		return err
	}
	for i := range max(len(args), len(m.Arguments)) {
		then, now := "nothing", "nothing"
		if i < len(m.Arguments) {
			then = m.Arguments[i]
		}
		if i < len(args) {
			now = args[i]
		}
		if then != now {
			return fmt.Errorf("its machine has %q where this program's have %q: it was made by another version of it, or with other settings", then, now)
		}
	}
	return nil
}
