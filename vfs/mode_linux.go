package vfs

import (
	"io/fs"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

var modeBits = []struct {
	go_   fs.FileMode
	linux uint32
}{
	{fs.ModeSetuid, syscall.S_ISUID}, {fs.ModeSetgid, syscall.S_ISGID}, {fs.ModeSticky, syscall.S_ISVTX},
}

var modeTypes = []struct {
	go_   fs.FileMode
	linux uint32
}{
	{0, syscall.S_IFREG}, {fs.ModeDir, syscall.S_IFDIR}, {fs.ModeSymlink, syscall.S_IFLNK},
	{fs.ModeNamedPipe, syscall.S_IFIFO}, {fs.ModeSocket, syscall.S_IFSOCK},
	{fs.ModeDevice | fs.ModeCharDevice, syscall.S_IFCHR}, {fs.ModeDevice, syscall.S_IFBLK},
}

// linuxMode is m as st_mode has it.
func linuxMode(m fs.FileMode) uint32 {
	out := uint32(m.Perm())
	for _, b := range modeBits {
		if m&b.go_ != 0 {
			out |= b.linux
		}
	}
	for _, b := range modeTypes {
		if m.Type() == b.go_ {
			out |= b.linux
		}
	}
	return out
}

// goMode is the opposite of linuxMode; an unknown type becomes fs.ModeIrregular.
func goMode(m uint32) fs.FileMode {
	out := fs.FileMode(m & 0o777)
	for _, b := range modeBits {
		if m&b.linux != 0 {
			out |= b.go_
		}
	}
	if m&syscall.S_IFMT == 0 {
		return out
	}
	for _, b := range modeTypes {
		if m&syscall.S_IFMT == b.linux {
			return out | b.go_
		}
	}
	return out | fs.ModeIrregular
}

// fillAttr writes a as the guest shall see it.
func fillAttr(out *fuse.Attr, mount uint64, a Attr) {
	out.Ino = guestIno(mount, a.Ino)
	out.Size = uint64(max(0, a.Size))
	out.Blocks = uint64(max(0, a.Blocks))
	out.Mode = linuxMode(a.Mode)
	out.Nlink = a.Nlink
	out.Uid, out.Gid = a.UID, a.GID
	out.Blksize = a.BlockSize
	out.Atime, out.Atimensec = fillTime(a.Atime)
	out.Mtime, out.Mtimensec = fillTime(a.Mtime)
	out.Ctime, out.Ctimensec = fillTime(a.Ctime)
}

func fillTime(t time.Time) (uint64, uint32) {
	if t.IsZero() {
		return 0, 0
	}
	return uint64(t.Unix()), uint32(t.Nanosecond())
}
