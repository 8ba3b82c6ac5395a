package sandbox

import (
	"os"
	"strings"
)

// hostCPU names the processor, whose features a template's guest has seen.
func hostCPU() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "model name", "flags", "microcode", "Features", "CPU part":
			names = append(names, strings.TrimSpace(value))
		case "":
			return strings.Join(names, "|") // the first processor speaks for all
		}
	}
	return strings.Join(names, "|")
}
