package vfs

import (
	"context"
	"encoding/binary"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/gondolin-go/gondolin/guest/fsport"
)

// notes are what goes to the guest's end of the port before the replies of requests
// under way (fsport.NoteAttr), by their numbers. A request makes two at most.
type notes struct {
	mu sync.Mutex
	by map[uint64][]byte
}

// note tells the guest the attributes that the request of ctx has left e with: its kernel
// knows that it does not know them any more, and is about to ask.
func (r *raw) note(ctx context.Context, e *entry, a Attr) {
	c, ok := ctx.(*call)
	if !ok || e.mount == nil {
		return
	}
	timeout := e.mount.attrTimeout(a)
	if timeout <= 0 {
		return
	}
	var out fuse.AttrOut
	out.AttrValid, out.AttrValidNsec = seconds(timeout)
	fillAttr(&out.Attr, e.mountIndex(), a)
	head := dataReply(make(frame, inHeader), nil)
	binary.LittleEndian.PutUint32(head, uint32(outHeader+8+fsport.AttrOut))
	putNotify(head, fsport.NoteAttr)
	b, err := binary.Append(binary.LittleEndian.AppendUint64(head, e.id), binary.LittleEndian, &out)
	if err != nil {
		return
	}
	r.notes.mu.Lock()
	defer r.notes.mu.Unlock()
	if r.notes.by == nil {
		r.notes.by = map[uint64][]byte{}
	}
	r.notes.by[c.unique] = append(r.notes.by[c.unique], b...)
}

// take returns the notes of a request, which has been run.
func (n *notes) take(unique uint64) []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	b := n.by[unique]
	delete(n.by, unique)
	return b
}
