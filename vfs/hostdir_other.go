//go:build !linux

package vfs

import (
	"errors"
	"runtime"
)

// HostDirRoot is the root Node of a host directory.
type HostDirRoot struct{ Unsupported }

// HostDir fails on this system: serving a host directory needs Linux's O_PATH handles.
func HostDir(path string, _ HostDirOptions) (*HostDirRoot, error) {
	return nil, errors.New("mounting host directory " + path + ": not supported on " + runtime.GOOS + " yet, only on Linux")
}

// Path returns nothing.
func (*HostDirRoot) Path() string { return "" }

// Close does nothing.
func (*HostDirRoot) Close() error { return nil }
