package netguard

import (
	"errors"
	"fmt"
)

// maxChunkExtension bounds the extension of one chunk, in bytes. No client is known
// that sends any.
const maxChunkExtension = 256

// chunkScan follows the framing of a chunked body (RFC 9112, 7.1) as the bytes
// pass, and finds its end. Every line must end with CR LF, a size has 1 to 15 hexadecimal
// digits and nothing else.
type chunkScan struct {
	state   chunkState
	size    int64 // of the chunk, what is left of it
	digits  int
	ext     int
	trailer []byte
	limit   int // of the trailer, in bytes
}

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkExt
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	chunkTrailer
	chunkEnd
)

// scan reads on and returns how many bytes of b belong to the body; it is at its
// end when the state is chunkEnd.
func (c *chunkScan) scan(b []byte) (int, error) {
	for i := 0; i < len(b); {
		if c.state == chunkData {
			n := min(int64(len(b)-i), c.size)
			c.size -= n
			i += int(n)
			if c.size == 0 {
				c.state = chunkDataCR
			}
			continue
		}
		if err := c.step(b[i]); err != nil {
			return i, err
		}
		i++
		if c.state == chunkEnd {
			return i, nil
		}
	}
	return len(b), nil
}

func (c *chunkScan) step(b byte) error {
	switch c.state {
	case chunkSize:
		if d := hexDigit(b); d >= 0 {
			if c.digits++; c.digits > 15 {
				return errors.New("the size of a chunk has more than 15 digits")
			}
			c.size = c.size<<4 | int64(d)
			return nil
		}
		switch {
		case c.digits == 0:
			return errors.New("the size of a chunk is no hexadecimal number")
		case b == ';':
			c.state, c.ext = chunkExt, 0
		case b == '\r':
			c.state = chunkSizeLF
		default:
			return fmt.Errorf("the size of a chunk is followed by the byte %#02x", b)
		}
	case chunkExt:
		c.ext++
		switch {
		case b == '\r':
			c.state = chunkSizeLF
		case isControl(rune(b)):
			return fmt.Errorf("the extension of a chunk holds the control character %#02x", b)
		case c.ext > maxChunkExtension:
			return fmt.Errorf("the extension of a chunk has more than %d bytes", maxChunkExtension)
		}
	case chunkSizeLF, chunkDataLF:
		if b != '\n' {
			return errors.New("a line of the chunked body ends with a bare CR")
		}
		switch {
		case c.state == chunkDataLF:
			c.state, c.digits = chunkSize, 0
		case c.size == 0:
			c.state = chunkTrailer
		default:
			c.state = chunkData
		}
	case chunkDataCR:
		if b != '\r' {
			return errors.New("a chunk is longer than its size says")
		}
		c.state = chunkDataLF
	case chunkTrailer:
		return c.trailerByte(b)
	}
	return nil
}

func (c *chunkScan) trailerByte(b byte) error {
	if len(c.trailer) >= c.limit {
		return fmt.Errorf("the trailer has more than %d bytes", c.limit)
	}
	c.trailer = append(c.trailer, b)
	n := len(c.trailer)
	switch before := n > 1 && c.trailer[n-2] == '\r'; {
	case b == '\n' && !before:
		return errors.New("a line of the trailer ends with a bare LF")
	case b != '\n' && before:
		return errors.New("the trailer holds a bare CR")
	case b != '\n' || n != 2 && string(c.trailer[max(n-4, 0):]) != "\r\n\r\n":
		return nil
	}
	f, err := checkFields(c.trailer)
	switch {
	case err != nil:
		return fmt.Errorf("in the trailer: %w", err)
	case len(f.host)+len(f.length)+len(f.encoding)+len(f.connection)+len(f.upgrade) > 0:
		return errors.New("the trailer holds a field that belongs into the head")
	}
	c.trailer, c.state = nil, chunkEnd
	return nil
}

func hexDigit(b byte) int {
	switch {
	case '0' <= b && b <= '9':
		return int(b - '0')
	case 'a' <= b && b <= 'f':
		return int(b-'a') + 10
	case 'A' <= b && b <= 'F':
		return int(b-'A') + 10
	}
	return -1
}
