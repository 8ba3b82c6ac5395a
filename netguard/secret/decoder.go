package secret

import "unicode/utf8"

// symbol is one byte of a decoded text and the bytes of the source that it
// stands for: [start, end), counted from the beginning of the stream.
type symbol struct {
	b          byte
	start, end int64
}

// decoder undoes one escape syntax as the bytes come. What turns out to be no
// escape passes unchanged, as lenient readers have it.
type decoder struct {
	kind    byte // '%', '\\', or 0 for none
	pending []symbol
}

// push takes a symbol and appends what can be said now to out.
func (d *decoder) push(in symbol, out []symbol) []symbol {
	switch {
	case d.kind == 0:
		return append(out, in)
	case len(d.pending) == 0:
		if in.b == d.kind {
			d.pending = append(d.pending, in)
			return out
		}
		return append(out, in)
	case d.kind == '%':
		return d.percent(in, out)
	}
	return d.json(in, out)
}

// percent continues "%" or "%4" (RFC 3986, 2.1).
func (d *decoder) percent(in symbol, out []symbol) []symbol {
	if hexValue(in.b) < 0 {
		return d.push(in, d.finish(out))
	}
	if len(d.pending) == 1 {
		d.pending = append(d.pending, in)
		return out
	}
	b := byte(hexValue(d.pending[1].b)<<4 | hexValue(in.b))
	out = append(out, symbol{b, d.pending[0].start, in.end})
	d.pending = d.pending[:0]
	return out
}

// json continues "\" or "\u00" (RFC 8259, 7). Of code points beyond the basic plane
// the two halves stay apart: no secret in ASCII needs them.
func (d *decoder) json(in symbol, out []symbol) []symbol {
	start := d.pending[0].start
	if len(d.pending) == 1 {
		b := in.b
		switch b {
		case 'u':
			d.pending = append(d.pending, in)
			return out
		case 'b':
			b = '\b'
		case 'f':
			b = '\f'
		case 'n':
			b = '\n'
		case 'r':
			b = '\r'
		case 't':
			b = '\t'
		case '"', '\\', '/':
		default:
			return d.push(in, d.finish(out))
		}
		d.pending = d.pending[:0]
		return append(out, symbol{b, start, in.end})
	}
	if hexValue(in.b) < 0 {
		return d.push(in, d.finish(out))
	}
	d.pending = append(d.pending, in)
	if len(d.pending) < len(`\u0000`) {
		return out
	}
	var r rune
	for _, s := range d.pending[2:] {
		r = r<<4 | rune(hexValue(s.b))
	}
	d.pending = d.pending[:0]
	var text [utf8.UTFMax]byte
	for i := range utf8.EncodeRune(text[:], r) {
		out = append(out, symbol{text[i], start, in.end})
	}
	return out
}

// finish lets pass what was held as the beginning of an escape.
func (d *decoder) finish(out []symbol) []symbol {
	out = append(out, d.pending...)
	d.pending = d.pending[:0]
	return out
}

func hexValue(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
