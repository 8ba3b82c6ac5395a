//go:build !linux

package qemu

import (
	"os/exec"
	"syscall"
)

// confine keeps the terminal's signals from QEMU. Other systems have no signal
// for the death of a parent; the next start of the host program ends leftovers.
func confine(cmd *exec.Cmd, _ Accelerator) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}
