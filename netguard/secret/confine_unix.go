//go:build unix

package secret

import (
	"os/exec"
	"syscall"
)

// confine gives a command a process group of its own, and ends it as a whole.
func confine(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
