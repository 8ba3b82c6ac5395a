package images

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// isolateMounts gives a program started by root a mount name space of its own. What it mounts then goes
// with its last process, however that ends; in ours it would stay, and whoever cleans up after a killed
// build would walk into the machine's own /dev and /proc. Where the kernel refuses name spaces it
// refuses mounts too.
func isolateMounts(cmd *exec.Cmd) {
	probe := exec.Command("true")
	probe.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	if probe.Run() == nil {
		cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS // Go also makes the copies private
	}
}

// checkUnmounted refuses a directory that has something mounted below it.
func checkUnmounted(dir string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("looking for mounts below %s: %w", dir, err)
	}
	defer f.Close()
	if resolved, err := filepath.EvalSymlinks(dir); err == nil {
		dir = resolved
	}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		point := unescapeMount(fields[4])
		if point == dir || strings.HasPrefix(point, dir+"/") {
			return fmt.Errorf("something is still mounted on %s; unmount it (`umount %s`) and try again", point, point)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("looking for mounts below %s: %w", dir, err)
	}
	return nil
}

var mountEscapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func unescapeMount(s string) string { return mountEscapes.Replace(s) }
