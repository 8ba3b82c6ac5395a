package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// Kind tells what a frame carries.
type Kind uint8

// The kinds of frames.
const (
	FrameData   Kind = 1
	FrameStdout Kind = 2
	FrameStderr Kind = 3
	FrameEnd    Kind = 4 // the last frame of its direction; CBOR
)

// Chunk is a buffer with room for a frame header in front of its payload, so
// that a frame goes out in one Write without another copy.
type Chunk struct {
	buf []byte // header and payload
}

// NewChunk returns a chunk for at most size bytes of payload.
func NewChunk(size int) *Chunk { return &Chunk{buf: make([]byte, frameHeader, frameHeader+size)} }

// Space returns the unused part of the payload.
func (c *Chunk) Space() []byte { return c.buf[len(c.buf):cap(c.buf)] }

// Grow adds n bytes that were put into Space to the payload.
func (c *Chunk) Grow(n int) { c.buf = c.buf[:len(c.buf)+n] }

// Append adds as much of p as fits and returns how much that was.
func (c *Chunk) Append(p []byte) int {
	n := copy(c.Space(), p)
	c.Grow(n)
	return n
}

// Payload returns what the chunk holds.
func (c *Chunk) Payload() []byte { return c.buf[frameHeader:] }

// Reset empties the chunk.
func (c *Chunk) Reset() { c.buf = c.buf[:frameHeader] }

// WriteTo writes the chunk as a frame in a single Write.
func (c *Chunk) WriteTo(w io.Writer, kind Kind) error {
	c.buf[0] = byte(kind)
	binary.BigEndian.PutUint32(c.buf[1:frameHeader], uint32(len(c.buf)-frameHeader))
	_, err := w.Write(c.buf)
	return err
}

// WriteEnd writes v as the last frame.
func WriteEnd(w io.Writer, v any) error { return writeCBOR(w, FrameEnd, v) }

// WriteItems writes v as a FrameData of CBOR.
func WriteItems(w io.Writer, v any) error { return writeCBOR(w, FrameData, v) }

func writeCBOR(w io.Writer, kind Kind, v any) error {
	body, err := Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding %T: %w", v, err)
	}
	if len(body) > MaxFrame {
		return fmt.Errorf("frame of %d bytes: %w", len(body), ErrTooLarge)
	}
	c := NewChunk(len(body))
	c.Append(body)
	return c.WriteTo(w, kind)
}

// FrameReader reads frames from a stream.
type FrameReader struct {
	r   io.Reader
	buf [frameHeader + MaxFrame]byte
}

// NewFrameReader returns a reader of r's frames.
func NewFrameReader(r io.Reader) *FrameReader { return &FrameReader{r: r} }

// Next returns the next frame. The payload is valid until the following call.
// The end of the stream between two frames is io.ErrUnexpectedEOF too: a
// direction ends with FrameEnd, and anything else is a lost connection.
func (f *FrameReader) Next() (Kind, []byte, error) {
	if _, err := io.ReadFull(f.r, f.buf[:frameHeader]); err != nil {
		return 0, nil, noEOF(err)
	}
	kind, n := Kind(f.buf[0]), binary.BigEndian.Uint32(f.buf[1:frameHeader])
	if kind < FrameData || kind > FrameEnd {
		return 0, nil, fmt.Errorf("frame of unknown kind %d: %w", kind, ErrProtocol)
	}
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("frame announces %d bytes: %w", n, ErrTooLarge)
	}
	payload := f.buf[frameHeader : frameHeader+n]
	if _, err := io.ReadFull(f.r, payload); err != nil {
		return 0, nil, noEOF(err)
	}
	return kind, payload, nil
}

// How much output the host takes before it acknowledges at the latest.
const (
	AckBytes  = 128 << 10
	AckFrames = 256
)

// EndSeen is the acknowledgement of FrameEnd, after which the guest may forget
// the process.
const EndSeen = math.MaxInt64

// WriteAck tells the guest that output up to position n was taken.
func WriteAck(w io.Writer, n int64) error {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(n))
	_, err := w.Write(b[:])
	return err
}

// ReadAck reads what WriteAck wrote.
func ReadAck(r io.Reader) (int64, error) {
	var b [8]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, err
	}
	return int64(binary.BigEndian.Uint64(b[:])), nil
}
