//go:build !linux

package images

import "os/exec"

// Only mmdebstrap mounts anything, and it runs on Linux only.
func isolateMounts(*exec.Cmd) {}

func checkUnmounted(string) error { return nil }
