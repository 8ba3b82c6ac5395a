package vfs

// Numbers of the guest's system calls, which is Linux whatever the host is.
const (
	RenameNoReplace = 1 // renameat2(2)
	RenameExchange  = 2

	XattrCreate  = 1 // setxattr(2)
	XattrReplace = 2

	SeekData = 3 // lseek(2)
	SeekHole = 4

	FallocKeepSize  = 0x01 // fallocate(2)
	FallocPunchHole = 0x02
	FallocZeroRange = 0x10
)
