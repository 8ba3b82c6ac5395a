package secret

import (
	"errors"
	"io"
	"slices"
)

// Filter passes a stream on and replaces what it finds in it, or stops with a
// [*LeakError]. It holds back only what may be the beginning of something to
// replace: never more than the longest secret, fully escaped, twice. So that a
// message that ends by chance with the first letter of a secret is not held up, up
// to three such letters pass (fewer for short secrets); no more of a secret ever
// does. A Filter is for one stream and one goroutine.
type Filter struct {
	source func() *automaton // the one to use now; it may change between calls
	// react says what to put in place of a pattern; false means that it stays.
	react func(p *pattern, escaped bool) (replacement string, replace bool, err error)
	scan  scanner
	held  []byte // what was read and not yet passed on
	mark  int64  // where held begins in the stream
	edits []edit // in held, by start, not overlapping
	err   error
}

type edit struct {
	start, end int64
	text       string
}

// Append takes the next piece of the stream and appends to dst what can be
// passed on. After an error the stream is over.
func (f *Filter) Append(dst, src []byte) ([]byte, error) {
	if f.err != nil {
		return dst, f.err
	}
	f.renew()
	f.held = append(f.held, src...)
	f.scan.scan(f.held[f.scan.pos-f.mark:])
	return f.pass(dst, f.scan.held(f.scan.a.soft))
}

// Close appends what was held back to dst. The stream is over.
func (f *Filter) Close(dst []byte) ([]byte, error) {
	if f.err != nil {
		return dst, f.err
	}
	f.renew()
	f.scan.scan(f.held[f.scan.pos-f.mark:])
	f.scan.finish()
	dst, err := f.pass(dst, f.scan.pos)
	f.err = errors.Join(err, errClosed)
	return dst, err
}

var errClosed = errors.New("the stream is closed")

// renew begins to use the latest automaton. What is held is read again: whatever has
// begun and is not complete, began within it.
func (f *Filter) renew() {
	if a := f.source(); a != f.scan.a {
		f.scan = scanner{a: a, pos: f.mark, hit: f.hit}
		f.edits = f.edits[:0]
	}
}

// hit notes what is to be replaced. Patterns that overlap are replaced together
// by what stands for the longest, so that nothing of either is left.
func (f *Filter) hit(p *pattern, start, end int64, escaped bool) {
	if f.err != nil || end <= f.mark {
		return
	}
	text, replace, err := f.react(p, escaped)
	if err != nil {
		f.err = err
		return
	}
	if !replace {
		return
	}
	if gone := f.mark - start; gone > 0 && end-start == int64(len(text)) {
		// The first letters have passed. Leaving out as many of a replacement
		// of the same length keeps the length.
		text = text[gone:]
	}
	e := edit{max(start, f.mark), end, text}
	longest := e.end - e.start
	for len(f.edits) > 0 {
		last := f.edits[len(f.edits)-1]
		if last.end <= e.start {
			break
		}
		if last.end-last.start >= longest {
			e.text, longest = last.text, last.end-last.start
		}
		e.start, e.end = min(e.start, last.start), max(e.end, last.end)
		f.edits = f.edits[:len(f.edits)-1]
	}
	f.edits = append(f.edits, e)
}

// pass appends what lies before limit, edited, to dst.
func (f *Filter) pass(dst []byte, limit int64) ([]byte, error) {
	if f.err != nil {
		f.held = nil
		return dst, f.err
	}
	limit = max(limit, f.mark)
	mark, done := f.mark, 0
	for _, e := range f.edits {
		if e.start >= limit {
			break
		}
		if e.end > limit { // it may yet grow
			limit = e.start
			break
		}
		dst = append(dst, f.held[mark-f.mark:e.start-f.mark]...)
		dst = append(dst, e.text...)
		mark = e.end
		done++
	}
	dst = append(dst, f.held[mark-f.mark:limit-f.mark]...)
	f.edits = slices.Delete(f.edits, 0, done)
	f.held = append(f.held[:0], f.held[limit-f.mark:]...)
	f.mark = limit
	return dst, nil
}

// Reader reads r through the filter. It returns what is there as soon as it is
// there.
func (f *Filter) Reader(r io.Reader) io.Reader { return &reader{f: f, r: r} }

// readSize is how much is read at once, in bytes.
const readSize = 32 << 10

type reader struct {
	f    *Filter
	r    io.Reader
	in   []byte
	out  []byte // not yet given out
	rest []byte // of out's array
	err  error
}

func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.out) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		r.fill()
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}

func (r *reader) fill() {
	if r.in == nil {
		r.in = make([]byte, readSize)
	}
	n, err := r.r.Read(r.in)
	out, ferr := r.f.Append(r.rest[:0], r.in[:n])
	if ferr == nil && errors.Is(err, io.EOF) {
		out, ferr = r.f.Close(out)
	}
	// What was held back of a stream that broke off stays back.
	r.out, r.rest = out, out
	if r.err = ferr; ferr == nil {
		r.err = err
	}
}
