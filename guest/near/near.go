//go:build linux

// Package near makes the guest quiet where waking a processor is dear, as it is under
// translation: there a sleeping processor of the guest is a sleeping thread of the host. The host says so on the
// kernel's command line (wire.CmdlineNear); without that its functions do nothing. What fails leaves the guest slower
// and is not reported.
package near

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// wanted reports whether the host asks for it.
var wanted = sync.OnceValue(func() bool {
	line, err := os.ReadFile("/proc/cmdline")
	return err == nil && slices.Contains(strings.Fields(string(line)), wire.CmdlineNear)
})

// Environment is what programs are told of a processor that is translated.
//
// OpenSSL decrypts AES-GCM with code for processors that have AVX and MOVBE, which take much longer to translate
// and to run than the code without: 9 MB/s of 40. Here it believes that there is no MOVBE (bit 54; OPENSSL_ia32cap(3)).
func Environment() []string {
	if runtime.GOARCH != "amd64" || !wanted() {
		return nil
	}
	return []string{"OPENSSL_ia32cap=~0x40000000000000:~0"}
}

// Stay lets the scheduler leave a process that was woken on the processor of its waker
// rather than wake an idle one: a request to a mount, which wakes three processes in turn, took up to
// five times as long. A kernel without the knob goes without.
func Stay() {
	if !wanted() {
		return
	}
	const debugfs = "/sys/kernel/debug"
	if unix.Mount("debugfs", debugfs, "debugfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "") != nil {
		return
	}
	_ = os.WriteFile(debugfs+"/sched/features", []byte("NO_WA_IDLE"), 0)
	_ = unix.Unmount(debugfs, 0)
}

// Online brings up the processors that the kernel was told to leave alone. It is called when
// the guest's kernel has stopped changing its own code, which it does while it boots and when the first of
// a kind is made, such as a memory cgroup. A processor that translates such code while another
// changes it can keep the breakpoint that Linux puts there meanwhile, and then runs into it for ever: QEMU before
// 8.2 hung so in one boot of 400.
func Online() {
	if !wanted() {
		return
	}
	switches, _ := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/online")
	for _, path := range switches {
		_ = os.WriteFile(path, []byte("1"), 0)
	}
}

// slack is how much later than asked the runtime's monitor may wake up, in nanoseconds. By
// itself it sleeps from 20 microseconds to 10 milliseconds.
const slack = 5_000_000

// Calm is called first in the main function of a program that works for the host.
//
// The monitor of Go's runtime wakes up each 20 microseconds while the program works: under
// translation that was 1.7 ms of a command, and a third of sandboxfs's work. It is the first thread
// that the runtime starts, so that it has the lowest number after the main one. If it is
// another, that one's timers are coarser, which does no harm.
func Calm() {
	if !wanted() {
		return
	}
	if t := threads(); len(t) > 1 {
		_ = os.WriteFile("/proc/"+strconv.Itoa(t[1])+"/timerslack_ns", []byte(strconv.Itoa(slack)), 0) // proc_pid_timerslack_ns(5)
	}
}

// Settle keeps a program that does nothing but pass on data on the last processor:
// the programs that it works for keep theirs, and what each has translated.
// It is called after Online, and before the program starts goroutines that shall stay there.
func Settle() {
	if !wanted() {
		return
	}
	var all, last unix.CPUSet
	if unix.SchedGetaffinity(0, &all) != nil || all.Count() < 2 {
		return
	}
	for cpu, left := 0, all.Count(); left > 0; cpu++ {
		if all.IsSet(cpu) {
			if left--; left == 0 {
				last.Set(cpu)
			}
		}
	}
	for _, t := range threads() { // those that come later inherit it
		_ = unix.SchedSetaffinity(t, &last)
	}
}

// threads returns the numbers of the program's threads, the main one first.
func threads() []int {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	var numbers []int
	for _, t := range tasks {
		if n, err := strconv.Atoi(t.Name()); err == nil {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers
}
