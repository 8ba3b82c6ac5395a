//go:build !linux

package sandbox

import (
	"os/exec"
	"strconv"
	"strings"
)

// processArgs returns the arguments of a process; ps(1).
func processArgs(pid int) ([]string, error) {
	b, err := exec.Command("ps", "-ww", "-o", "args=", "-p", strconv.Itoa(pid)).Output()
	return strings.Fields(string(b)), err
}
