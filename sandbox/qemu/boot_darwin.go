package qemu

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// bootID names this boot of the host by its time.
func bootID() string {
	tv, err := unix.SysctlTimeval("kern.boottime")
	if err != nil {
		return ""
	}
	return strconv.FormatInt(tv.Sec, 10)
}
