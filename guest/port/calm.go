//go:build linux

package port

import (
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// Near reports whether the host says that waking another processor is dear (wire.CmdlineNear).
func Near() bool {
	line, err := os.ReadFile("/proc/cmdline")
	return err == nil && slices.Contains(strings.Fields(string(line)), wire.CmdlineNear)
}

// slack is how much later than asked the runtime's monitor may wake up, in nanoseconds. By
// itself it sleeps from 20 microseconds to 10 milliseconds.
const slack = 5_000_000

// Calm makes a program that serves a port quiet where waking a processor is dear
// (wire.CmdlineNear). It is called first in main.
//
// The monitor of Go's runtime wakes up each 20 microseconds while the program works: under
// translation that was 1.7 ms of a command, and a third of sandboxfs's work. It is the first thread
// that the runtime starts, so that it has the lowest number after the main one. If it is
// another, that one's timers are coarser, which does no harm.
func Calm() {
	if !Near() {
		return
	}
	if t := threads(); len(t) > 1 {
		_ = os.WriteFile("/proc/"+strconv.Itoa(t[1])+"/timerslack_ns", []byte(strconv.Itoa(slack)), 0) // proc_pid_timerslack_ns(5)
	}
}

// Settle keeps a program that does nothing but pass on data on the last processor, where
// waking one is dear: the programs that it works for keep theirs, and what each has translated.
// It is called before the program starts goroutines that shall stay there.
func Settle() {
	if !Near() {
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
