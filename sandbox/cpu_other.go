//go:build !linux

package sandbox

func hostCPU() string { return "" }
