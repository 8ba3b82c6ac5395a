package vfs

import "log/slog"

// HostDirOptions are the options of HostDir; the zero value is useful.
type HostDirOptions struct {
	// UID and GID own every file in the guest's eyes, whoever owns it on the host.
	UID, GID uint32
	// OneFileSystem refuses to cross into file systems mounted below the directory (EXDEV).
	// Otherwise they are part of the mount. Kernel file systems (proc, sys, cgroup and
	// the like) are refused in any case: their files are not files.
	OneFileSystem bool
	// MaxHandles bounds the descriptors kept for nodes, besides those of open files.
	// 0 is an eighth of RLIMIT_NOFILE, at most 4096.
	MaxHandles int
	// MaxWatches bounds the directories watched for changes made by the host. 0 is 8192.
	MaxWatches int
	// Logger gets what an operator should know once, such as an exhausted inotify
	// limit; nil discards it.
	Logger *slog.Logger
}

// Bounds of a HostDir that are not options.
const (
	hostHandles = 4096  // MaxHandles' default at most
	hostWatches = 8192  // MaxWatches' default
	hostOwners  = 65536 // chown calls remembered; about 5 MB
	hostDepth   = 2048  // levels that a lost descriptor is looked up again through; PATH_MAX/2
)
