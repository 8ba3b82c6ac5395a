package vfs

import (
	"maps"
	"math/bits"
	"slices"
)

// memChunk is the size of the pieces that a file's content is kept in: what a
// write touches, not the file, is what it costs.
const memChunk = 64 << 10

// memData is the content of a file: chunks by their index, absent where nothing
// was written. A chunk can be shorter than memChunk; behind its end are zeros, and
// so there are in a chunk behind the end of the file.
type memData struct {
	size   int64
	bytes  int64 // sum of the chunks' capacities
	chunks map[int64][]byte
	most   int // chunks since the map was made: it never gets smaller by itself
}

// read fills p with the content at off and returns how much there was.
func (d *memData) read(p []byte, off int64) int {
	if off >= d.size {
		return 0
	}
	p = p[:min(int64(len(p)), d.size-off)]
	for done := 0; done < len(p); {
		at := off + int64(done)
		from := int(at % memChunk)
		part := p[done:min(len(p), done+memChunk-from)]
		n := 0
		if c := d.chunks[at/memChunk]; from < len(c) {
			n = copy(part, c[from:])
		}
		clear(part[n:])
		done += len(part)
	}
	return len(p)
}

// need returns how many bytes chunk i, filled up to end, takes more than now.
func (d *memData) need(i int64, end int) int64 {
	c, ok := d.chunks[i]
	n := int64(max(0, chunkCap(end)-cap(c)))
	if !ok {
		n += memChunkCost
	}
	return n
}

// chunkCap is the capacity of a chunk that is filled up to end: a power of two, so
// that a file that grows by little writes is copied seldom, and never more than a chunk of it.
func chunkCap(end int) int {
	if end <= 512 {
		return 512
	}
	return 1 << bits.Len(uint(end-1))
}

// grow makes chunk i at least end bytes long and returns it. The caller has
// charged what need said.
func (d *memData) grow(i int64, end int) []byte {
	c := d.chunks[i]
	if end > cap(c) {
		d.bytes += int64(chunkCap(end) - cap(c))
		next := make([]byte, len(c), chunkCap(end))
		copy(next, c)
		c = next
	}
	if end > len(c) {
		clear(c[len(c):end])
		c = c[:end]
	}
	if d.chunks == nil {
		d.chunks = map[int64][]byte{}
	}
	d.chunks[i] = c
	d.most = max(d.most, len(d.chunks))
	return c
}

// cost returns what a write of size bytes at off takes.
func (d *memData) cost(off, size int64) int64 {
	var sum int64
	for size > 0 {
		from := off % memChunk
		n := min(size, memChunk-from)
		sum += d.need(off/memChunk, int(from+n))
		off, size = off+n, size-n
	}
	return sum
}

// write stores p at off; its cost is charged.
func (d *memData) write(p []byte, off int64) {
	for done := 0; done < len(p); {
		at := off + int64(done)
		from := int(at % memChunk)
		n := min(len(p)-done, memChunk-from)
		copy(d.grow(at/memChunk, from+n)[from:], p[done:done+n])
		done += n
	}
	d.size = max(d.size, off+int64(len(p)))
}

// truncate sets the size and returns the bytes that became free.
func (d *memData) truncate(size int64) int64 {
	var freed int64
	if size < d.size {
		freed = d.punch(size, maxMemFile)
	}
	d.size = size
	return freed
}

// punch makes the content from off up to end zeros and returns the bytes that
// became free.
func (d *memData) punch(off, end int64) int64 {
	var freed, chunks int64
	for _, i := range d.between(off/memChunk, (end-1)/memChunk) {
		c := d.chunks[i]
		from, to := max(0, off-i*memChunk), min(int64(len(c)), end-i*memChunk)
		switch {
		case from == 0 && to == int64(len(c)):
			freed += int64(cap(c))
			chunks++
			delete(d.chunks, i)
		case from >= to:
		case to == int64(len(c)):
			d.chunks[i] = c[:from] // grow clears what it takes again
		default:
			clear(c[from:to])
		}
	}
	d.bytes -= freed
	if d.most > 64 && len(d.chunks) < d.most/4 {
		left := make(map[int64][]byte, len(d.chunks))
		maps.Copy(left, d.chunks)
		d.chunks, d.most = left, len(left)
	}
	return freed + chunks*memChunkCost
}

// between returns the indices of the chunks from first to last, in order. It goes
// over whichever is shorter, the range or the chunks: a sparse file's range can be huge.
func (d *memData) between(first, last int64) []int64 {
	var found []int64
	if last-first < int64(len(d.chunks)) {
		for i := first; i <= last; i++ {
			if _, ok := d.chunks[i]; ok {
				found = append(found, i)
			}
		}
		return found
	}
	for i := range d.chunks {
		if i >= first && i <= last {
			found = append(found, i)
		}
	}
	slices.Sort(found)
	return found
}

// seekData returns where the first data at or after off is, or -1.
func (d *memData) seekData(off int64) int64 {
	if _, ok := d.chunks[off/memChunk]; ok {
		return off
	}
	best := int64(-1)
	for i := range d.chunks {
		if at := i * memChunk; at >= off && (best < 0 || at < best) {
			best = at
		}
	}
	if best >= d.size {
		return -1
	}
	return best
}

// seekHole returns where the first hole at or after off is; the end is one.
func (d *memData) seekHole(off int64) int64 {
	for {
		if _, ok := d.chunks[off/memChunk]; !ok {
			return min(off, d.size)
		}
		off = (off/memChunk + 1) * memChunk
		if off >= d.size {
			return d.size
		}
	}
}
