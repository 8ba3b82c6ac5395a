//go:build linux

package sandboxfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/fsport"
)

// mounter mounts at one directory, again and again. It reaches all that it needs by
// handles from the beginning, since the process keeps the initramfs as its root when /run,
// /dev and /sys are moved away from there.
type mounter struct {
	parent *os.File // of the directory
	name   string   // of the directory in parent
	dev    *os.File // /dev
	bdi    *os.File // /sys/class/bdi, nil if the kernel has none
}

func newMounter(dir string) (*mounter, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	m := &mounter{name: filepath.Base(dir)}
	var err error
	if m.parent, err = os.Open(filepath.Dir(dir)); err != nil {
		return nil, err
	}
	if m.dev, err = os.Open("/dev"); err != nil {
		return nil, errors.Join(err, m.parent.Close())
	}
	m.bdi, _ = os.Open("/sys/class/bdi")
	// mount(2) knows no directory handles, but it knows the working directory.
	if err := m.parent.Chdir(); err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

func (m *mounter) close() error {
	err := errors.Join(m.parent.Close(), m.dev.Close())
	if m.bdi != nil {
		err = errors.Join(err, m.bdi.Close())
	}
	return err
}

// mount mounts and returns the FUSE connection. The kernel checks permissions by
// what the host says of owners and modes.
func (m *mounter) mount() (int, error) {
	fd, err := unix.Openat(int(m.dev.Fd()), "fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening /dev/fuse (is the fuse module loaded?): %w", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read=%d", fd, fsport.MaxData)
	if err := unix.Mount("gondolin", m.name, "fuse.gondolin", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		return -1, errors.Join(fmt.Errorf("mounting %s: %w", m.name, err), unix.Close(fd))
	}
	return fd, nil
}

// abort ends the FUSE connection: whoever waits in it gets an error, the process
// that serves it among them. What is bound elsewhere stays, dead.
func (m *mounter) abort() error {
	// EINVAL: somebody has unmounted it, which aborts it as well when it was the last.
	if err := unix.Unmount(m.name, unix.MNT_FORCE|unix.MNT_DETACH); err != nil && err != unix.EINVAL {
		return fmt.Errorf("unmounting %s: %w", m.name, err)
	}
	return nil
}

// readAhead lets the kernel read as far ahead as one request can carry. FUSE
// starts with 128 KiB, which makes eight round trips of one. It waits until the
// connection is up, since the kernel sets its own value then.
func (m *mounter) readAhead() {
	var st unix.Stat_t
	if m.bdi == nil || unix.Fstatat(int(m.parent.Fd()), m.name, &st, 0) != nil {
		return
	}
	name := fmt.Sprintf("%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	fd, err := unix.Openat(int(m.bdi.Fd()), name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	_, _ = unix.Write(fd, fmt.Appendf(nil, "%d", fsport.MaxData>>10))
}
