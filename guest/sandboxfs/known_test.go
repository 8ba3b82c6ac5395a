//go:build linux

package sandboxfs

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/fsport"
)

func request(op uint32, unique, node uint64, body ...byte) []byte {
	b := append(make([]byte, inHeader), body...)
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	binary.LittleEndian.PutUint32(b[4:], op)
	binary.LittleEndian.PutUint64(b[8:], unique)
	binary.LittleEndian.PutUint64(b[16:], node)
	return b
}

// note is one about node, with a size of size that is valid for seconds.
func note(node, size, seconds uint64) []byte {
	b := make([]byte, outHeader+8+fsport.AttrOut)
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	binary.LittleEndian.PutUint32(b[4:], fsport.NoteAttr)
	binary.LittleEndian.PutUint64(b[outHeader:], node)
	binary.LittleEndian.PutUint64(b[outHeader+8:], seconds)
	binary.LittleEndian.PutUint64(b[outHeader+8+16+8:], size)
	return b
}

// sizeOf is the size that k answers the kernel with, or -1.
func sizeOf(k *known, node uint64) int64 {
	r := k.answer(request(fsport.OpGetattr, 999, node, make([]byte, 16)...), make([]byte, 256))
	if r == nil {
		return -1
	}
	return int64(binary.LittleEndian.Uint64(r[outHeader+16+8:]))
}

// write is a write to node 7 that the host answers with a note.
func write(k *known, unique, size uint64) {
	k.answer(request(fsport.OpWrite, unique, 7), nil)
	k.saw(note(7, size, 10))
	k.saw(reply(unique, outHeader+8))
}

func TestAttributesThatTheHostNotedAreNotAskedFor(t *testing.T) {
	k := newKnown()
	assert.EqualValues(t, -1, sizeOf(k, 7))
	write(k, 2, 100)
	assert.EqualValues(t, 100, sizeOf(k, 7))
	assert.EqualValues(t, 100, sizeOf(k, 7), "asked again")
	assert.EqualValues(t, -1, sizeOf(k, 8), "another node")
}

func TestWhatMayHaveChangedIsAskedFor(t *testing.T) {
	for name, op := range map[string]uint32{"write": fsport.OpWrite, "setattr": fsport.OpSetattr, "read": fsport.OpRead, "unlink of something": 10, "unknown": 77} {
		k := newKnown()
		write(k, 2, 100)
		k.answer(request(op, 4, 7), nil)
		assert.EqualValues(t, -1, sizeOf(k, 7), name)
	}
	k := newKnown()
	write(k, 2, 100)
	k.answer(request(fsport.OpOpen, 4, 7, 0, 0, 0, 0), nil)
	assert.EqualValues(t, 100, sizeOf(k, 7), "open")
	k.answer(request(fsport.OpOpen, 6, 7, binary.LittleEndian.AppendUint32(nil, unix.O_TRUNC)...), nil)
	assert.EqualValues(t, -1, sizeOf(k, 7), "open that truncates")
}

func TestAChangeOnTheHostIsSeen(t *testing.T) {
	changed := func(code uint32, node uint64) []byte {
		b := reply(0, outHeader+24)
		binary.LittleEndian.PutUint32(b[4:], code)
		binary.LittleEndian.PutUint64(b[outHeader:], node)
		return b
	}
	k := newKnown()
	write(k, 2, 100)
	assert.True(t, k.saw(changed(fsport.NoteInvalInode, 8)), "the kernel has to hear of it too")
	assert.EqualValues(t, 100, sizeOf(k, 7), "another node changed")
	k.saw(changed(fsport.NoteInvalInode, 7))
	assert.EqualValues(t, -1, sizeOf(k, 7))
	write(k, 4, 100)
	k.saw(changed(99, 8))
	assert.EqualValues(t, -1, sizeOf(k, 7), "who knows what it means")
}

func TestNotesOfRequestsThatOverlapAreNotBelieved(t *testing.T) {
	k := newKnown()
	k.answer(request(fsport.OpWrite, 2, 7), nil)
	k.answer(request(fsport.OpWrite, 4, 7), nil)
	k.saw(note(7, 200, 10))
	k.saw(reply(4, outHeader+8))
	k.saw(note(7, 100, 10))
	k.saw(reply(2, outHeader+8))
	assert.EqualValues(t, -1, sizeOf(k, 7))
	write(k, 6, 300)
	assert.EqualValues(t, 300, sizeOf(k, 7), "both have ended")
}

func TestANoteHoldsAsLongAsItSays(t *testing.T) {
	k := newKnown()
	k.answer(request(fsport.OpWrite, 2, 7), nil)
	k.saw(note(7, 100, 0))
	k.saw(reply(2, outHeader+8))
	assert.EqualValues(t, -1, sizeOf(k, 7))
	write(k, 4, 100)
	r := k.answer(request(fsport.OpGetattr, 6, 7, make([]byte, 16)...), make([]byte, 256))
	assert.EqualValues(t, 9, binary.LittleEndian.Uint64(r[outHeader:]), "the kernel counts from now on")
}

func TestFileCapabilitiesAreNotAskedFor(t *testing.T) {
	k, out := newKnown(), make([]byte, 256)
	ask := func(name string) []byte {
		return k.answer(request(fsport.OpGetxattr, 2, 7, append(make([]byte, 8), name+"\x00"...)...), out)
	}
	r := ask(fsport.CapabilityXattr)
	assert.Equal(t, -int32(unix.ENODATA), int32(binary.LittleEndian.Uint32(r[4:])))
	assert.EqualValues(t, 2, binary.LittleEndian.Uint64(r[8:]))
	assert.Nil(t, ask("user.other"))
	assert.Nil(t, k.answer(request(fsport.OpGetxattr, 2, 7), out), "without a name")
}

func TestNoMoreNodesAreKnownThanTheBound(t *testing.T) {
	k := newKnown()
	for i := range uint64(3 * maxKnown) {
		k.answer(request(fsport.OpCreate, 2, i), nil)
		k.saw(note(i, 1, 10))
		k.saw(reply(2, outHeader+createOut))
		assert.LessOrEqual(t, len(k.attrs), maxKnown)
	}
	assert.Empty(t, k.changing)
}
