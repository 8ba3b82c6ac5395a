package vfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/gondolin-go/gondolin/guest/fsport"
)

// Operations, from include/uapi/linux/fuse.h. What is not here is answered ENOSYS.
const (
	opLookup        = fsport.OpLookup
	opForget        = fsport.OpForget
	opGetattr       = fsport.OpGetattr
	opSetattr       = fsport.OpSetattr
	opReadlink      = 5
	opSymlink       = 6
	opMknod         = 8
	opMkdir         = fsport.OpMkdir
	opUnlink        = 10
	opRmdir         = 11
	opRename        = 12
	opLink          = 13
	opOpen          = fsport.OpOpen
	opRead          = fsport.OpRead
	opWrite         = fsport.OpWrite
	opStatfs        = 17
	opRelease       = fsport.OpRelease
	opFsync         = 20
	opSetxattr      = 21
	opGetxattr      = fsport.OpGetxattr
	opListxattr     = 23
	opRemovexattr   = 24
	opFlush         = fsport.OpFlush
	opInit          = 26
	opOpendir       = 27
	opReaddir       = 28
	opReleasedir    = 29
	opFsyncdir      = 30
	opCreate        = fsport.OpCreate
	opInterrupt     = fsport.OpInterrupt
	opDestroy       = 38
	opBatchForget   = fsport.OpBatchForget
	opFallocate     = 43
	opReaddirplus   = 44
	opRename2       = 45
	opLseek         = 46
	opCopyFileRange = 47
)

const (
	inHeader    = int(unsafe.Sizeof(fuse.InHeader{}))
	outHeader   = int(unsafe.Sizeof(fuse.OutHeader{}))
	forgetOne   = 16  // struct fuse_forget_one
	initInLeast = 56  // struct fuse_init_in up to flags, after the header
	outMost     = 288 // more than any reply without data (go-fuse's largest: struct fuse_statx_out)
)

// shape is what a frame has to look like.
type shape struct {
	fixed int  // header and arguments, in bytes
	names int  // names that follow, each with a NUL
	tail  bool // more follows
}

var shapes = map[uint32]shape{
	opLookup:        {inHeader, 1, false},
	opForget:        {size[fuse.ForgetIn](), 0, false},
	opGetattr:       {size[fuse.GetAttrIn](), 0, false},
	opSetattr:       {size[fuse.SetAttrIn](), 0, false},
	opReadlink:      {inHeader, 0, false},
	opSymlink:       {inHeader, 1, true},
	opMknod:         {size[fuse.MknodIn](), 1, false},
	opMkdir:         {size[fuse.MkdirIn](), 1, false},
	opUnlink:        {inHeader, 1, false},
	opRmdir:         {inHeader, 1, false},
	opRename:        {inHeader + 8, 2, false},
	opLink:          {size[fuse.LinkIn](), 1, false},
	opOpen:          {size[fuse.OpenIn](), 0, false},
	opRead:          {size[fuse.ReadIn](), 0, false},
	opWrite:         {size[fuse.WriteIn](), 0, true},
	opStatfs:        {inHeader, 0, false},
	opRelease:       {size[fuse.ReleaseIn](), 0, false},
	opFsync:         {size[fuse.FsyncIn](), 0, false},
	opSetxattr:      {inHeader + 8, 0, true}, // without CAP_SETXATTR_EXT
	opGetxattr:      {size[fuse.GetXAttrIn](), 0, true},
	opListxattr:     {size[fuse.GetXAttrIn](), 0, false},
	opRemovexattr:   {inHeader, 0, true},
	opFlush:         {size[fuse.FlushIn](), 0, false},
	opInit:          {initInLeast, 0, true},
	opOpendir:       {size[fuse.OpenIn](), 0, false},
	opReaddir:       {size[fuse.ReadIn](), 0, false},
	opReleasedir:    {size[fuse.ReleaseIn](), 0, false},
	opFsyncdir:      {size[fuse.FsyncIn](), 0, false},
	opCreate:        {size[fuse.CreateIn](), 1, false},
	opInterrupt:     {size[fuse.InterruptIn](), 0, false},
	opDestroy:       {inHeader, 0, false},
	opBatchForget:   {inHeader + 8, 0, true},
	opFallocate:     {size[fuse.FallocateIn](), 0, false},
	opReaddirplus:   {size[fuse.ReadIn](), 0, false},
	opRename2:       {size[fuse.RenameIn](), 2, false},
	opLseek:         {size[fuse.LseekIn](), 0, false},
	opCopyFileRange: {size[fuse.CopyFileRangeIn](), 0, false},
}

func size[T any]() int {
	var v T
	return int(unsafe.Sizeof(v))
}

// frame is one request as it came from the port.
type frame []byte

func (f frame) u32(at int) uint32 { return binary.LittleEndian.Uint32(f[at:]) }
func (f frame) u64(at int) uint64 { return binary.LittleEndian.Uint64(f[at:]) }

func (f frame) opcode() uint32 { return f.u32(4) }
func (f frame) unique() uint64 { return f.u64(8) }
func (f frame) node() uint64   { return f.u64(16) }
func (f frame) extLen() uint16 { return binary.LittleEndian.Uint16(f[36:]) }

// silent reports whether a request has no reply.
func silent(op uint32) bool { return op == opForget || op == opBatchForget || op == opInterrupt }

// check decides whether go-fuse may see f: its length is right, its names are
// names, its numbers within bounds. An errno refuses the request; any other error means
// that this is no kernel's frame, and ends the connection. A request that has no reply
// can only do that.
func check(f frame) error {
	op := f.opcode()
	s, ok := shapes[op]
	if !ok {
		return syscall.ENOSYS
	}
	// A name and a node by which go-fuse answers itself, for a purpose of its own.
	if f.node() == ^uint64(0) && !silent(op) {
		return syscall.ESTALE
	}
	if f.node() == rootID && s.names > 0 && bytes.Contains(f, []byte(".go-fuse-epoll-hack\x00")) {
		return syscall.ENOENT
	}
	if err := s.check(f, op); err != nil {
		if silent(op) || op == opInit {
			return fmt.Errorf("%w: operation %d of %d bytes: %v", ErrProtocol, op, len(f), err)
		}
		return err
	}
	return nil
}

func (s shape) check(f frame, op uint32) error {
	// Extensions are negotiated, and not by us. Unique 0 is that of notifications.
	if len(f) < s.fixed || f.extLen() != 0 || f.unique() == 0 && !silent(op) {
		return syscall.EINVAL
	}
	rest := f[s.fixed:]
	for range s.names {
		name, after, ok := bytes.Cut(rest, []byte{0})
		switch {
		case !ok:
			return syscall.EINVAL
		case len(name) > MaxName:
			return syscall.ENAMETOOLONG
		case !validName(name):
			return syscall.EINVAL
		}
		rest = after
	}
	if !s.tail {
		if len(rest) != 0 {
			return syscall.EINVAL
		}
		return checkSize(f, op)
	}
	return checkTail(f, op, rest)
}

// checkSize bounds what a reply may take, and what a request may make.
func checkSize(f frame, op uint32) error {
	switch op {
	case opRead, opReaddir, opReaddirplus:
		if f.u32(inHeader+16) > fsport.MaxData {
			return syscall.EINVAL
		}
	case opListxattr:
		if f.u32(inHeader) > MaxXattr {
			return syscall.EINVAL
		}
	case opMknod:
		switch goMode(f.u32(inHeader)).Type() {
		case 0, fs.ModeNamedPipe, fs.ModeSocket:
		default:
			return syscall.EPERM
		}
	}
	return nil
}

// checkTail checks what follows the arguments and names.
func checkTail(f frame, op uint32, rest frame) error {
	switch op {
	case opInit:
		if major, minor := f.u32(inHeader), f.u32(inHeader+4); major != 7 || minor < 28 || len(f) > 4096 {
			return fmt.Errorf("FUSE version %d.%d, and 7.28 is needed at least", major, minor)
		}
	case opWrite:
		if int(f.u32(inHeader+16)) != len(rest) || len(rest) > fsport.MaxData {
			return syscall.EINVAL
		}
	case opBatchForget:
		if n := f.u32(inHeader); uint64(n)*forgetOne != uint64(len(rest)) {
			return syscall.EINVAL
		}
	case opSymlink:
		target, after, ok := bytes.Cut(rest, []byte{0})
		switch {
		case !ok || len(target) == 0 || len(after) != 0:
			return syscall.EINVAL
		case len(target) > MaxPath:
			return syscall.ENAMETOOLONG
		}
	case opSetxattr:
		name, value, ok := bytes.Cut(rest, []byte{0})
		switch {
		case !ok || len(name) == 0 || uint64(f.u32(inHeader)) != uint64(len(value)):
			return syscall.EINVAL
		case len(name) > MaxName:
			return syscall.ERANGE
		case len(value) > MaxXattr:
			return syscall.E2BIG
		}
	case opGetxattr, opRemovexattr:
		name, after, ok := bytes.Cut(rest, []byte{0})
		switch {
		case !ok || len(name) == 0 || len(after) != 0:
			return syscall.EINVAL
		case len(name) > MaxName:
			return syscall.ERANGE
		case op == opGetxattr && f.u32(inHeader) > MaxXattr:
			return syscall.EINVAL
		}
	}
	return nil
}

// replySize is the most that the reply to f, which has passed check, takes.
func replySize(f frame) int {
	n := outHeader + outMost
	switch f.opcode() {
	case opRead, opReaddir, opReaddirplus:
		n += int(f.u32(inHeader + 16))
	case opGetxattr, opListxattr:
		n += int(f.u32(inHeader))
	case opReadlink:
		n += MaxPath
	}
	return n
}

// errorReply makes the reply to f that says errno, in the first bytes of out.
func errorReply(out []byte, f frame, errno syscall.Errno) []byte {
	out = out[:outHeader]
	binary.LittleEndian.PutUint32(out, uint32(outHeader))
	binary.LittleEndian.PutUint32(out[4:], uint32(-int32(errno)))
	binary.LittleEndian.PutUint64(out[8:], f.unique())
	return out
}

// dataReply makes a reply to f that carries data.
func dataReply(f frame, data []byte) []byte {
	out := errorReply(make([]byte, outHeader, outHeader+len(data)), f, 0)
	binary.LittleEndian.PutUint32(out, uint32(outHeader+len(data)))
	return append(out, data...)
}
