package wire

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/fxamacker/cbor/v2"
)

// Bounds of the protocol, in bytes.
const (
	// MaxMessage bounds one CBOR message. It leaves room for the argument list
	// and environment of a command; the kernel itself takes 2 MiB of both at most.
	MaxMessage = 1 << 20
	// MaxFrame bounds the payload of a frame. With the frame's and yamux's
	// headers it fills four 32 KiB buffers, the most that Linux's virtio console
	// driver passes on in one piece (drivers/char/virtio_console.c).
	MaxFrame = 128<<10 - frameHeader - muxHeader
	// MaxSkip bounds what a handshake reader skips while it looks for Magic.
	MaxSkip = 4 << 20

	frameHeader = 5
	muxHeader   = 12
)

var (
	encMode = must(cbor.EncOptions{Sort: cbor.SortNone, Time: cbor.TimeUnixMicro}.EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		MaxNestedLevels:  8,
		MaxArrayElements: 65536,
		MaxMapPairs:      65536,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		UTF8:             cbor.UTF8DecodeInvalid, // names of files are bytes
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // options are constants; tests run this at start
	}
	return v
}

// Marshal encodes a message body.
func Marshal(v any) ([]byte, error) { return encMode.Marshal(v) }

// Unmarshal decodes a message body under the bounds of the protocol.
func Unmarshal(b []byte, v any) error {
	if err := decMode.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decoding %T: %w", v, err)
	}
	return nil
}

// WriteMessage writes v as one length-prefixed message in a single Write.
func WriteMessage(w io.Writer, v any) error {
	body, err := Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding %T: %w", v, err)
	}
	if len(body) > MaxMessage {
		return fmt.Errorf("message of %d bytes exceeds %d bytes: %w", len(body), MaxMessage, ErrTooLarge)
	}
	buf := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	_, err = w.Write(append(buf, body...))
	return err
}

// ReadMessage reads one length-prefixed message into v.
func ReadMessage(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxMessage {
		return fmt.Errorf("message announces %d bytes: %w", n, ErrTooLarge)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return noEOF(err)
	}
	return Unmarshal(body, v)
}

// noEOF turns an end of input in the middle of something into an error.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
