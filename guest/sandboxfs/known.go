//go:build linux

package sandboxfs

import (
	"bytes"
	"encoding/binary"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/fsport"
)

// inHeader is the size of struct fuse_in_header: length, operation, unique, node and
// 16 bytes more.
const inHeader = 40

// Replies that begin with a node: struct fuse_entry_out, and a struct fuse_open_out after it.
const (
	entryOut  = 128
	createOut = entryOut + 16
)

// maxKnown is how many nodes' attributes are kept. One more, and all are forgotten.
const maxKnown = 4096

// known are the attributes that the host has noted (fsport.Note), for the kernel's next
// question about each.
type known struct {
	mu    sync.Mutex
	attrs map[uint64]attr

	// Requests under way that may change something, by their numbers. A note counts only
	// if its request was the only one from beginning to end: of two at the same time nobody
	// here knows which was first.
	changing map[uint64]struct{}
	mixed    bool // there were two, and not yet none
}

type attr struct {
	out   [fsport.AttrOut]byte
	until time.Time
}

func newKnown() *known {
	return &known{attrs: map[uint64]attr{}, changing: map[uint64]struct{}{}}
}

// answer returns the reply to a request that the host need not see, in out, or nil.
// What it returns nil for is on its way to the host.
func (k *known) answer(req, out []byte) []byte {
	if len(req) < inHeader {
		return nil
	}
	op, unique, node := binary.LittleEndian.Uint32(req[4:]), binary.LittleEndian.Uint64(req[8:]), binary.LittleEndian.Uint64(req[16:])
	switch op {
	case fsport.OpLookup, fsport.OpForget, fsport.OpBatchForget, fsport.OpInterrupt, fsport.OpRelease, fsport.OpFlush:
		return nil
	case fsport.OpGetxattr:
		if name, _, _ := bytes.Cut(req[min(len(req), inHeader+8):], []byte{0}); string(name) == fsport.CapabilityXattr {
			return replyTo(out, unique, unix.ENODATA, nil)
		}
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch op {
	case fsport.OpGetattr:
		a, ok := k.attrs[node]
		left := time.Until(a.until)
		if !ok || left <= 0 {
			return nil
		}
		binary.LittleEndian.PutUint64(a.out[:], uint64(left/time.Second))
		binary.LittleEndian.PutUint32(a.out[8:], uint32(left%time.Second))
		return replyTo(out, unique, 0, a.out[:])
	case fsport.OpOpen:
		if len(req) < inHeader+4 || binary.LittleEndian.Uint32(req[inHeader:])&unix.O_TRUNC == 0 {
			return nil
		}
		delete(k.attrs, node)
	case fsport.OpRead, fsport.OpWrite, fsport.OpSetattr, fsport.OpCreate, fsport.OpMkdir:
		delete(k.attrs, node)
	default:
		clear(k.attrs) // it may be about other nodes too
	}
	k.mixed = k.mixed || len(k.changing) > 0
	k.changing[unique] = struct{}{}
	return nil
}

// saw looks at a frame of the host and says whether it is for the kernel.
func (k *known) saw(frame []byte) bool {
	unique, code := binary.LittleEndian.Uint64(frame[8:]), binary.LittleEndian.Uint32(frame[4:])
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case unique != 0:
		delete(k.changing, unique)
		k.mixed = k.mixed && len(k.changing) > 0
		if n := len(frame) - outHeader; n == entryOut || n == createOut {
			delete(k.attrs, binary.LittleEndian.Uint64(frame[outHeader:])) // the kernel hears newer ones
		}
		return true
	case code == fsport.NoteInvalInode || code == fsport.NoteInvalEntry:
		// The host's files have changed: this node, or a name in this directory.
		if len(frame) >= outHeader+8 {
			delete(k.attrs, binary.LittleEndian.Uint64(frame[outHeader:]))
		}
		return true
	case code != fsport.NoteAttr:
		clear(k.attrs)
		return true
	case len(frame) != outHeader+8+fsport.AttrOut || k.mixed || len(k.changing) != 1:
		return false
	}
	if len(k.attrs) >= maxKnown {
		clear(k.attrs)
	}
	a := attr{out: [fsport.AttrOut]byte(frame[outHeader+8:])}
	valid := time.Duration(min(binary.LittleEndian.Uint64(a.out[:]), 3600))*time.Second + time.Duration(binary.LittleEndian.Uint32(a.out[8:]))
	a.until = time.Now().Add(valid)
	k.attrs[binary.LittleEndian.Uint64(frame[outHeader:])] = a
	return false
}

// replyTo makes the reply to the request unique, in out.
func replyTo(out []byte, unique uint64, errno unix.Errno, data []byte) []byte {
	out = out[:outHeader+len(data)]
	binary.LittleEndian.PutUint32(out, uint32(len(out)))
	binary.LittleEndian.PutUint32(out[4:], uint32(-int32(errno)))
	binary.LittleEndian.PutUint64(out[8:], unique)
	copy(out[outHeader:], data)
	return out
}
