package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// minFree is the free space below which no session starts, in bytes: it would
// run into a full disk at once.
const minFree = 256 << 20

// newScratch returns an empty ext4 file system of the given size in a file
// without a name: it is gone when the last descriptor closes, whatever happens.
// It costs the space that is written to it.
func newScratch(ctx context.Context, cacheDir string, mib int) (*os.File, error) {
	dir := filepath.Join(cacheDir, "scratch")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the scratch directory: %w", err)
	}
	empty, err := openEmpty(ctx, dir, mib)
	if err != nil {
		return nil, err
	}
	defer empty.Close()
	return cloneScratch(cacheDir, empty)
}

// cloneScratch returns a copy of a scratch disk.
func cloneScratch(cacheDir string, from *os.File) (*os.File, error) {
	f, err := scratchFile(cacheDir)
	if err != nil {
		return nil, err
	}
	if err := copySparse(f, from); err != nil {
		f.Close()
		return nil, fmt.Errorf("copying a scratch disk below %s: %w", cacheDir, err)
	}
	return f, nil
}

// scratchFile returns an empty file for a scratch disk.
func scratchFile(cacheDir string) (*os.File, error) {
	dir := filepath.Join(cacheDir, "scratch")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the scratch directory: %w", err)
	}
	if err := enoughRoom(dir); err != nil {
		return nil, fmt.Errorf("%w, or use root mode memory", err)
	}
	f, err := unnamedFile(dir)
	if err != nil {
		return nil, fmt.Errorf("making a scratch disk in %s: %w", dir, err)
	}
	return f, nil
}

// enoughRoom refuses a directory in which nothing could be written for long.
func enoughRoom(dir string) error { return roomFor(dir, 0) }

// roomFor is enoughRoom after so many bytes have been written there.
func roomFor(dir string, bytes int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil // what is written there fails by itself
	}
	free, need := int64(st.Bavail)*int64(st.Bsize), bytes+minFree
	if free < need {
		return fmt.Errorf("only %d MiB are free in %s and %d are needed: make room", free>>20, dir, need>>20)
	}
	return nil
}

// spare is how many bytes may be written below dir such that its file system keeps a twentieth of
// its room, or minFree if that is less.
func spare(dir string) int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return math.MaxInt64 // what is written there fails by itself
	}
	unit := int64(st.Bsize)
	return max(int64(st.Bavail)*unit-min(int64(st.Blocks)*unit/20, minFree), 0)
}

// diskUsage is how much of a file is not a hole, in bytes.
func diskUsage(f *os.File) int64 {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return 0
	}
	return st.Blocks * 512
}

// openEmpty opens the empty file system of a size, made once with mke2fs.
func openEmpty(ctx context.Context, dir string, mib int) (*os.File, error) {
	path := filepath.Join(dir, fmt.Sprintf("empty-%d.ext4", mib))
	if f, err := os.Open(path); err == nil || !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	temp, err := os.CreateTemp(dir, "empty-*.tmp")
	if err != nil {
		return nil, fmt.Errorf("formatting a scratch disk: %w", err)
	}
	defer os.Remove(temp.Name())
	defer temp.Close()
	if err := temp.Truncate(int64(mib) << 20); err != nil {
		return nil, fmt.Errorf("formatting a scratch disk: %w", err)
	}
	mke2fs, err := findMke2fs()
	if err != nil {
		return nil, err
	}
	// No journal: the disk dies with the session. The inode tables are zeros already, and the guest does not write them again.
	cmd := exec.CommandContext(ctx, mke2fs, "-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal,^resize_inode",
		"-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", temp.Name())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("formatting a scratch disk with %s: %w: %s", mke2fs, err, bytes.TrimSpace(out.Bytes()))
	}
	if err := temp.Sync(); err != nil {
		return nil, fmt.Errorf("formatting a scratch disk: %w", err)
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return nil, fmt.Errorf("formatting a scratch disk: %w", err)
	}
	return os.Open(path)
}

func findMke2fs() (string, error) {
	for _, name := range []string{"mke2fs", "/sbin/mke2fs", "/usr/sbin/mke2fs", "/opt/homebrew/opt/e2fsprogs/sbin/mke2fs", "/usr/local/opt/e2fsprogs/sbin/mke2fs"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("mke2fs not found: install e2fsprogs (Debian, Ubuntu: apt-get install e2fsprogs; macOS: brew install e2fsprogs), or use root mode memory")
}

// copySparse copies the parts of src that hold data, and its size; lseek(2). Where the file
// system can, both share the data until one is written to.
func copySparse(dst, src *os.File) error {
	if reflink(dst, src) == nil {
		return nil
	}
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if err := dst.Truncate(st.Size()); err != nil {
		return err
	}
	for pos := int64(0); ; {
		data, err := unix.Seek(int(src.Fd()), pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(int(src.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := dst.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.Copy(dst, io.NewSectionReader(src, data, hole-data)); err != nil {
			return err
		}
		pos = hole
	}
}

// unlinkedFile makes a file in dir and takes its name away.
func unlinkedFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "scratch-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// reopen returns another descriptor of f, for an owner of its own.
func reopen(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicating a descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
