package sandbox

import (
	"fmt"
	"os"
	"strings"
)

// processArgs returns the arguments of a process; proc(5).
func processArgs(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.Split(string(b), "\x00"), err
}
