package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"

	"github.com/gondolin-go/gondolin/configs"
)

// hostMemory is how much memory the machine has and how much of it new programs
// can have; /proc/meminfo.
func hostMemory() (total, free configs.Size, known bool) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, false
	}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		var name string
		var kib int64
		if n, _ := fmt.Sscan(lines.Text(), &name, &kib); n != 2 {
			continue
		}
		switch name {
		case "MemTotal:":
			total = configs.Size(kib >> 10)
		case "MemAvailable:":
			free = configs.Size(kib >> 10)
		}
	}
	return total, free, total > 0 && free > 0
}
