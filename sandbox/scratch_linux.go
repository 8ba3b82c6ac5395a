package sandbox

import (
	"os"

	"golang.org/x/sys/unix"
)

// unnamedFile makes a file without a name in dir; open(2), O_TMPFILE.
func unnamedFile(dir string) (*os.File, error) {
	return os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
}
