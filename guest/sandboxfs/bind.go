//go:build linux

package sandboxfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Mount says where in the guest one of the file port's directories belongs.
type Mount struct {
	Name     string // of the directory below Dir
	Path     string // absolute, made if it does not exist
	ReadOnly bool   // enforced by the guest's kernel; the host does it itself when it matters
}

// bindWait is how long Bind waits for the host to serve the file port.
const bindWait = 10 * time.Second

// Bind puts the mounts at their paths. It is called in the session's root, after
// /run was moved there, and while the host serves the file port. It may be called
// again, after the port was lost: a mount that is dead is replaced, one that lives stays.
// Processes whose working directory is in a dead mount stay there.
func Bind(mounts []Mount) error { return BindAt(Dir, mounts) }

// BindAt is Bind for a file system that is not mounted at Dir.
func BindAt(dir string, mounts []Mount) error {
	if len(mounts) == 0 {
		return nil
	}
	if err := waitMounted(dir); err != nil {
		return err
	}
	for _, m := range mounts {
		if err := bindOne(filepath.Join(dir, m.Name), m); err != nil {
			return fmt.Errorf("mounting %s at %s: %w", m.Name, m.Path, err)
		}
	}
	return nil
}

// waitMounted waits until something is mounted at dir and answers. There is no
// event for that which costs less than looking.
func waitMounted(dir string) error {
	deadline := time.Now().Add(bindWait)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		var up, st unix.Stat_t
		err := unix.Stat(filepath.Dir(dir), &up)
		if err == nil {
			err = unix.Stat(dir, &st)
		}
		if err == nil && st.Dev != up.Dev {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the host's files did not appear at %s within %v: %w", dir, bindWait, err)
		}
		<-tick.C
	}
}

func bindOne(source string, m Mount) error {
	if !filepath.IsAbs(m.Path) || filepath.Clean(m.Path) == "/" {
		return fmt.Errorf("%q is no absolute path below /", m.Path)
	}
	if err := dropDead(m.Path); err != nil {
		return err
	}
	if err := os.MkdirAll(m.Path, 0o755); err != nil {
		return fmt.Errorf("making the mount point: %w", err)
	}
	var src, dst unix.Stat_t
	if err := unix.Stat(source, &src); err != nil {
		return err
	}
	if err := unix.Stat(m.Path, &dst); err == nil && src.Dev == dst.Dev && src.Ino == dst.Ino {
		return nil
	}
	if err := unix.Mount(source, m.Path, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND | unix.MS_NOSUID | unix.MS_NODEV)
	if m.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount("", m.Path, "", flags, ""); err != nil {
		return errors.Join(err, unix.Unmount(m.Path, unix.MNT_DETACH))
	}
	return nil
}

// dropDead unmounts what an earlier connection left at path.
func dropDead(path string) error {
	var st unix.Statfs_t
	for {
		// Not stat(2): the kernel may still believe the attributes it knows.
		err := unix.Statfs(path, &st)
		if err != unix.ENOTCONN && err != unix.ECONNABORTED {
			return nil
		}
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmounting what the lost connection left: %w", err)
		}
	}
}

// Device is the number of the file system at Dir, if one is mounted there.
func Device() (dev uint64, mounted bool) {
	var up, st unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, filepath.Dir(Dir), 0, 0, &up) != nil ||
		unix.Statx(unix.AT_FDCWD, Dir, unix.AT_STATX_DONT_SYNC, 0, &st) != nil {
		return 0, false
	}
	dev = unix.Mkdev(st.Dev_major, st.Dev_minor)
	return dev, dev != unix.Mkdev(up.Dev_major, up.Dev_minor)
}

// Detach unmounts what Bind put at paths, and the file system at Dir, without asking it anything:
// its host may be gone without that the port has shown it. Who waits in it gets an error.
func Detach(paths []string) error {
	dev, mounted := Device()
	if !mounted {
		return nil
	}
	// The file system itself comes last: it tells what is its own.
	for _, path := range append(slices.Clone(paths), Dir) {
		for onDevice(path, dev) {
			if err := unix.Unmount(path, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unmounting %s: %w", path, err)
			}
		}
	}
	return nil
}

func onDevice(path string, dev uint64) bool {
	var st unix.Statx_t
	return unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, 0, &st) == nil && unix.Mkdev(st.Dev_major, st.Dev_minor) == dev
}
