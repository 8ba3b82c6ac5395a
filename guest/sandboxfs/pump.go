//go:build linux

package sandboxfs

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/fsport"
	"github.com/gondolin-go/gondolin/guest/port"
)

// outHeader is the size of struct fuse_out_header: length, error, unique.
const outHeader = 16

// maxNotes is how many notifications wait for the kernel. More are dropped: the
// kernel's timeouts do what they would have done.
const maxNotes = 4096

// requests carries the kernel's requests to the port until either ends, but for those that
// k knows the answer to.
func requests(fuse int, p *port.Port, k *known) {
	buf := make([]byte, fsport.MaxFrame)
	var out [outHeader + fsport.AttrOut]byte
	for {
		n, err := unix.Read(fuse, buf)
		switch err {
		case nil:
		case unix.EINTR, unix.EAGAIN, unix.ENOENT: // ENOENT: the request was taken back
			continue
		default:
			return // ENODEV: aborted
		}
		if r := k.answer(buf[:n], out[:]); r != nil {
			if put(fuse, r) == unix.ENODEV {
				return
			}
			continue
		}
		if _, err := p.Write(buf[:n]); err != nil {
			return
		}
	}
}

// replies carries the host's frames to the kernel until the port or the FUSE
// connection ends, and returns what is no frame: a next host's beginning.
func replies(fuse int, p *port.Port, k *known, notes chan<- []byte) []byte {
	// Room for a frame and the beginning of the next: a read never has to stop short.
	buf := make([]byte, fsport.MaxFrame+64<<10)
	at, have := 0, 0 // the unused part of buf
	for {
		if room := len(buf) - have; room < 4096 || at == have {
			have, at = copy(buf, buf[at:have]), 0
		}
		n, err := p.Read(buf[have:])
		if err != nil {
			return nil
		}
		have += n
		for have-at >= outHeader {
			size, ok := fsport.FrameLen(buf[at:], outHeader)
			if !ok {
				return bytes.Clone(buf[at:have])
			}
			if have-at < size {
				break
			}
			frame := buf[at : at+size]
			at += size
			if !k.saw(frame) {
				continue
			}
			if binary.LittleEndian.Uint64(frame[8:]) == 0 {
				select {
				case notes <- bytes.Clone(frame):
				default:
				}
			} else if put(fuse, frame) == unix.ENODEV {
				return nil
			}
		}
	}
}

// put gives the kernel a frame. It refuses one whose request has ended meanwhile, or
// that makes no sense: neither is worth more than that.
func put(fuse int, frame []byte) error {
	for {
		_, err := unix.Write(fuse, frame)
		if err != unix.EINTR && err != unix.EAGAIN {
			return err
		}
	}
}
