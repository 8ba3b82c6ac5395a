package vfs

// The open(2) flags of Linux that wrappers look at. The guest runs Linux whatever the host runs, so
// they are not the syscall package's. From asm-generic/fcntl.h, which amd64 and arm64 share.
const (
	openAccess = 0o3 // O_ACCMODE
	openWrOnly = 0o1
	openExcl   = 0o200
	openTrunc  = 0o1000
	openAppend = 0o2000
)

// writes reports whether an open with flags can change the file.
func writes(flags int) bool { return flags&openAccess != 0 || flags&openTrunc != 0 }
