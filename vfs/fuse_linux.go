package vfs

import (
	"io"
	"log"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/gondolin-go/gondolin/guest/fsport"
)

// fuseOptions are what is negotiated with the guest's kernel.
func (c *conn) fuseOptions() *fuse.MountOptions {
	return &fuse.MountOptions{
		MaxWrite:      fsport.MaxData,
		MaxBackground: 32,
		// What go-fuse has to say is about frames that check lets through only after this
		// has gone wrong, and a guest must not fill the host's log.
		Logger:       log.New(io.Discard, "", 0),
		PanicHandler: c.panicked,
		// Directories are always listed with attributes (no CAP_READDIRPLUS_AUTO): who lists
		// one mostly looks at its files next, and a round trip costs more than the attributes of all.
		ExtraCapabilities: fuse.CAP_ATOMIC_O_TRUNC |
			// Otherwise the kernel asks for security.capability before each write.
			fuse.CAP_HANDLE_KILLPRIV_V2,
		// No writeback cache: the kernel would keep writes, sizes and times to itself, and
		// then neither see what the host wrote meanwhile nor append behind it.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_NO_OPEN_SUPPORT | fuse.CAP_WRITEBACK_CACHE,
	}
}

// Buffers of frames come in classes, so that a flood of small requests does not
// hold large ones.
var bufferPools = [...]struct {
	size int
	pool *sync.Pool
}{
	{512, newPool(512)},
	{8 << 10, newPool(8 << 10)},
	{132 << 10, newPool(132 << 10)},
	{fsport.MaxFrame, newPool(fsport.MaxFrame)},
}

func newPool(n int) *sync.Pool {
	return &sync.Pool{New: func() any {
		b := make([]byte, n)
		return &b
	}}
}

// getBuffer returns a buffer of at least n bytes, which fits into MaxFrame.
func getBuffer(n int) *[]byte {
	for _, p := range bufferPools {
		if n <= p.size {
			return p.pool.Get().(*[]byte)
		}
	}
	b := make([]byte, n)
	return &b
}

func putBuffer(b *[]byte) {
	for _, p := range bufferPools {
		if len(*b) == p.size {
			p.pool.Put(b)
			return
		}
	}
}

// bufferSize is the size of the buffer that getBuffer returns.
func bufferSize(n int) int {
	for _, p := range bufferPools {
		if n <= p.size {
			return p.size
		}
	}
	return n
}
