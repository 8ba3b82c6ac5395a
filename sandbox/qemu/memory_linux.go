package qemu

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const (
	pagePresent = 1 << 63
	pageSwapped = 1 << 62
	pageOfFile  = 1 << 61
)

// maxRun is how much is copied at once, in bytes.
const maxRun = 4 << 20

// CopyPrivate copies to dst what a machine of MemoryClone that stands still has changed of its
// memory, at the same offsets: the pages that are its own. What it has not changed is in
// base, which is its Options.Memory. The rest is not even looked at: reading a page that the
// template lacks would make one there.
func (vm *VM) CopyPrivate(ctx context.Context, base, dst *os.File) error {
	areas, err := mappings(vm.PID(), base)
	if err != nil {
		return err
	}
	if len(areas) == 0 {
		return errors.New("the machine's memory was not found in QEMU's")
	}
	proc := fmt.Sprintf("/proc/%d/", vm.PID())
	pages, err := os.Open(proc + "pagemap")
	if err != nil {
		return notAllowed(err)
	}
	defer pages.Close()
	mem, err := os.Open(proc + "mem")
	if err != nil {
		return notAllowed(err)
	}
	defer mem.Close()
	st, err := dst.Stat()
	if err != nil {
		return err
	}
	into, err := unix.Mmap(int(dst.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mapping the copy of the memory: %w", err)
	}
	defer func() { _ = unix.Munmap(into) }()
	for _, a := range areas {
		if err := a.copy(ctx, pages, mem, into); err != nil {
			return err
		}
	}
	return nil
}

func notAllowed(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("this process may not look into the memory of its own QEMU (it needs CAP_SYS_PTRACE when it is root, or not to be root): %w", err)
	}
	return fmt.Errorf("looking into QEMU's memory: %w", err)
}

// area is a part of a process's memory that maps a file.
type area struct {
	start, end uint64
	offset     int64 // in the file
}

// mappings returns where a process maps a file; proc_pid_maps(5).
func mappings(pid int, file *os.File) ([]area, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return nil, err
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, notAllowed(err)
	}
	defer f.Close()
	inode := strconv.FormatUint(st.Ino, 10)
	device := fmt.Sprintf("%02x:%02x", unix.Major(st.Dev), unix.Minor(st.Dev))
	var areas []area
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		w := strings.Fields(lines.Text())
		if len(w) < 5 || w[3] != device || w[4] != inode {
			continue
		}
		var a area
		if _, err := fmt.Sscanf(w[0]+" "+w[2], "%x-%x %x", &a.start, &a.end, &a.offset); err != nil {
			return nil, fmt.Errorf("a line of /proc/%d/maps: %w", pid, err)
		}
		areas = append(areas, a)
	}
	return areas, lines.Err()
}

// copy copies the area's private pages.
func (a area) copy(ctx context.Context, pages, mem *os.File, into []byte) error {
	size := uint64(os.Getpagesize())
	const at = 64 << 10 // entries looked at at once
	entries := make([]byte, 8*at)
	for first := a.start; first < a.end; first += at * size {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(at, (a.end-first)/size)
		if _, err := pages.ReadAt(entries[:8*n], int64(first/size*8)); err != nil {
			return fmt.Errorf("reading which pages a machine has changed: %w", err)
		}
		for i := uint64(0); i < n; i++ {
			run := i
			for run < n && (run-i)*size < maxRun && private(binary.NativeEndian.Uint64(entries[8*run:])) {
				run++
			}
			if run == i {
				continue
			}
			from, to := first+i*size, a.offset+int64(first-a.start+i*size)
			length := int64((run - i) * size)
			if to+length > int64(len(into)) {
				return fmt.Errorf("a page at %d of a memory of %d bytes", to, len(into))
			}
			if _, err := mem.ReadAt(into[to:to+length], int64(from)); err != nil {
				return fmt.Errorf("reading a machine's memory: %w", err)
			}
			i = run - 1
		}
	}
	return nil
}

// private reports whether a page of a private mapping is the process's own.
func private(entry uint64) bool {
	return entry&pageSwapped != 0 || entry&pagePresent != 0 && entry&pageOfFile == 0
}

// unread returns how many bytes wait in a Unix socket for each of its ends; unix(7), SIOCINQ and SIOCOUTQ.
func unread(conn net.Conn) (here, there uint64) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, 0
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0
	}
	_ = raw.Control(func(fd uintptr) { // of one that is closed nothing moves
		in, _ := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		out, _ := unix.IoctlGetInt(int(fd), unix.TIOCOUTQ)
		here, there = uint64(max(in, 0)), uint64(max(out, 0))
	})
	return here, there
}
