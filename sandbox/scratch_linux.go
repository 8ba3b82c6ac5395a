package sandbox

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// unnamedFile makes a file without a name in dir; open(2), O_TMPFILE. Not every
// file system can.
func unnamedFile(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		return unlinkedFile(dir)
	}
	return f, err
}

// reflink makes an empty file share another's data; ioctl_ficlone(2).
func reflink(dst, src *os.File) error { return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) }
