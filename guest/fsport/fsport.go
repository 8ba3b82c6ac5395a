// Package fsport is what both ends of the file port (wire.PortFS) agree on: how
// a connection begins. What follows are FUSE frames as the guest's kernel makes
// and takes them; each begins with its own length, 32 bits in the guest's byte
// order, which is little-endian on every machine that gondolin runs.
//
// # Beginning
//
// A port is a byte stream without an end that both sides are sure to see: a
// host that closes and opens it again quickly leaves a guest that waits in the
// kernel none the wiser, in the middle of a frame perhaps. Therefore:
//
//	host  -> guest  Reset, when the guest may be in the middle of a frame
//	host  -> guest  Magic and a nonce of NonceSize random bytes
//	guest -> host   Magic and the same nonce, after the FUSE connection of the
//	                last host has been ended and a new one mounted
//	both            frames; the guest's first is FUSE_INIT
//
// Each side skips what it reads until it sees what it waits for. Neither Magic
// nor Reset can be taken for a frame's length: both are above MaxFrame.
//
// While no host has opened the port, a read there is at end of file at once
// and a write waits. A guest that has nothing to say yet writes one Knock and so
// sleeps until a host comes.
package fsport

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Sizes in bytes.
const (
	// MaxData is the most data that one read or write request carries: 256 pages of
	// 4 KiB, the most that a Linux kernel lets a FUSE request have by default.
	MaxData = 1 << 20
	// MaxFrame is the longest frame: the data and room for its headers (a kernel wants
	// to see MaxData and a page in the buffer that it reads requests into).
	MaxFrame = MaxData + 4096
	// NonceSize is the length of a connection's nonce.
	NonceSize = 8
	// MaxSkip is how much a side reads in search of the beginning: what a guest can have
	// under way for the last host is below it by far.
	MaxSkip = 16 << 20
)

// CapabilityXattr is the extended attribute of a program's file capabilities, which no
// file of the port has; capabilities(7).
const CapabilityXattr = "security.capability"

// Operations whose meaning both sides know; include/uapi/linux/fuse.h.
const (
	OpLookup      = 1
	OpForget      = 2
	OpGetattr     = 3
	OpSetattr     = 4
	OpMkdir       = 9
	OpOpen        = 14
	OpRead        = 15
	OpWrite       = 16
	OpRelease     = 18
	OpGetxattr    = 22
	OpFlush       = 25
	OpCreate      = 35
	OpInterrupt   = 36
	OpBatchForget = 42
)

// Notifications whose meaning both sides know; the same header.
const (
	NoteInvalInode = 2
	NoteInvalEntry = 3
)

// NoteAttr marks a frame that is for the guest's end of the port and not for its
// kernel: it stands where a notification has its code (the kernel's are below 100).
const NoteAttr = 1 << 20

// Note is what a NoteAttr frame carries behind its header: attributes of a node as the
// request left them whose reply follows, as struct fuse_attr_out.
//
// The guest may answer the next FUSE_GETATTR with it, for as long as it says, if that
// request overlapped with no other that changes anything and none that could change the
// node went out since, and if no notification about the node came.
type Note struct {
	Node uint64
	Attr [AttrOut]byte
}

// AttrOut is the size of struct fuse_attr_out: the validity in seconds (64 bits) and
// nanoseconds (32 bits) and a struct fuse_attr.
const AttrOut = 104

// Knock is the byte by which a guest waits for a host.
const Knock = 0xfe

// Magic begins a connection.
const Magic = "GNDLNFS\x01"

// ErrLost: the peer does not speak this protocol.
var ErrLost = errors.New("the file port's other side does not begin a connection")

// Begin is the host's half of the beginning. With reset the guest may be in the
// middle of a frame. What follows on r are frames: r can be a buffered reader, if
// these are read from it too. It returns when both its read and its write have ended,
// as they do when the port is closed.
func Begin(r io.Reader, w io.Writer, reset bool) error {
	hello := make([]byte, 0, len(Magic)+NonceSize)
	hello = append(hello, Magic...)
	hello = hello[:cap(hello)]
	if _, err := rand.Read(hello[len(Magic):]); err != nil {
		return err
	}
	out := hello
	if reset {
		out = append(bytes.Repeat([]byte{0xff}, MaxFrame), hello...)
	}
	// At the same time: the guest may read on only when it has got rid of the rest of a frame.
	written := make(chan error, 1)
	go func() {
		_, err := w.Write(out)
		written <- err
	}()
	err := skipTo(r, hello)
	if werr := <-written; werr != nil {
		return fmt.Errorf("beginning on the file port: %w", werr)
	}
	if err != nil {
		return fmt.Errorf("waiting for the guest on the file port: %w", err)
	}
	return nil
}

// Await reads until a host begins and returns its nonce, for Answer. seen is
// what was already read of the stream. r can be a buffered reader that is dropped
// afterwards: the host sends nothing more before it has the answer.
func Await(r io.Reader, seen []byte) ([]byte, error) {
	r = io.MultiReader(bytes.NewReader(seen), r)
	if err := skipTo(r, []byte(Magic)); err != nil {
		return nil, err
	}
	nonce := make([]byte, NonceSize)
	_, err := io.ReadFull(r, nonce)
	return nonce, err
}

// Answer is the guest's reply to a host whose nonce Await returned.
func Answer(w io.Writer, nonce []byte) error {
	_, err := w.Write(append([]byte(Magic), nonce...))
	return err
}

// skipTo reads up to and including mark and no byte more.
func skipTo(r io.Reader, mark []byte) error {
	win := make([]byte, 0, len(mark))
	for skipped := 0; ; {
		// As many as are missing at least: no byte behind the mark is read.
		have := len(win)
		win = win[:len(mark)]
		n, err := io.ReadFull(r, win[have:])
		if err != nil {
			return err
		}
		if bytes.Equal(win, mark) {
			return nil
		}
		if skipped += n; skipped > MaxSkip {
			return ErrLost
		}
		win = win[:copy(win, tail(win, mark))]
	}
}

// tail returns the longest end of win, short of all of it, that mark begins with.
func tail(win, mark []byte) []byte {
	for i := 1; i < len(win); i++ {
		if bytes.HasPrefix(mark, win[i:]) {
			return win[i:]
		}
	}
	return nil
}

// FrameLen returns the length of the frame that b begins with, and whether that
// can be one. b has at least 4 bytes; least is the size of a frame's header.
func FrameLen(b []byte, least int) (int, bool) {
	n := binary.LittleEndian.Uint32(b)
	return int(n), n >= uint32(least) && n <= MaxFrame
}
