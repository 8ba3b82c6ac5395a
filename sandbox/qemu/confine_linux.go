package qemu

import (
	"crypto/rand"
	"encoding/binary"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// User ids for machines whose host program is root: a range that no
// distribution assigns (systemd's UIDS-GIDS document leaves it free).
const (
	firstUID = 0x70000000
	numUIDs  = 0x01000000
)

// confine makes QEMU end with this program and, if this program is root, run as
// a user of its own.
func confine(cmd *exec.Cmd, a Accelerator) {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setpgid:   true, // a ^C at the terminal is for the host program
	}
	if os.Geteuid() != 0 || !fullIDMap() {
		return
	}
	var b [4]byte
	_, _ = rand.Read(b[:]) // cannot fail since Go 1.24
	id := firstUID + binary.LittleEndian.Uint32(b[:])%numUIDs
	cred := &syscall.Credential{Uid: id, Gid: id}
	if a == KVM {
		st, err := os.Stat("/dev/kvm")
		if err != nil || st.Mode().Perm()&0o066 == 0 {
			return // open to root only
		}
		cred.Groups = []uint32{st.Sys().(*syscall.Stat_t).Gid}
	}
	cmd.SysProcAttr.Credential = cred
}

// fullIDMap reports whether every user id exists here; in a user namespace
// root may have a few only (user_namespaces(7)).
func fullIDMap() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && len(strings.Fields(string(b))) == 3 && strings.HasSuffix(strings.TrimSpace(string(b)), "4294967295")
}
