package wire

import (
	"fmt"
	"io"
)

// DataReader reads what a peer sends as FrameData up to FrameEnd, which must
// carry no error.
type DataReader struct {
	frames *FrameReader
	rest   []byte
	end    *End
}

// NewDataReader returns a reader of r's data.
func NewDataReader(r io.Reader) *DataReader { return &DataReader{frames: NewFrameReader(r)} }

// End returns what FrameEnd said, or nil before it came.
func (d *DataReader) End() *End { return d.end }

// Next returns the next frame's payload, valid until the following call; io.EOF
// after FrameEnd, and the *Error that it carried.
func (d *DataReader) Next() ([]byte, error) {
	if d.end != nil {
		return nil, io.EOF
	}
	kind, payload, err := d.frames.Next()
	if err != nil {
		return nil, err
	}
	switch kind {
	case FrameData:
		return payload, nil
	case FrameEnd:
		var end End
		if err := Unmarshal(payload, &end); err != nil {
			return nil, fmt.Errorf("%w: %w", err, ErrProtocol)
		}
		if end.Err != nil {
			return nil, end.Err
		}
		d.end = &end
		return nil, io.EOF
	}
	return nil, fmt.Errorf("frame of kind %d among data: %w", kind, ErrProtocol)
}

func (d *DataReader) Read(p []byte) (int, error) {
	for len(d.rest) == 0 {
		var err error
		if d.rest, err = d.Next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

// WriteTo writes whole frames; io.Copy would cut them into small pieces.
func (d *DataReader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		n, err := w.Write(d.rest)
		total += int64(n)
		if err != nil {
			return total, err
		}
		if d.rest, err = d.Next(); err == io.EOF {
			return total, nil
		} else if err != nil {
			return total, err
		}
	}
}

// SourceError is a failure of the reader that SendData sends.
type SourceError struct{ Err error }

func (e *SourceError) Error() string { return e.Err.Error() }
func (e *SourceError) Unwrap() error { return e.Err }

// SendData sends r to its end as FrameData, without FrameEnd. It reads each
// frame full, so that short reads do not become short frames. The error is a
// *SourceError when r failed and otherwise w's.
func SendData(w io.Writer, r io.Reader) error { return sendData(w, r, io.ReadFull) }

// SendLive is SendData for a source that may pause: each read is sent at once.
func SendLive(w io.Writer, r io.Reader) error {
	return sendData(w, r, func(r io.Reader, p []byte) (int, error) { return io.ReadAtLeast(r, p, 1) })
}

func sendData(w io.Writer, r io.Reader, read func(io.Reader, []byte) (int, error)) error {
	c := NewChunk(MaxFrame)
	for {
		c.Reset()
		n, err := read(r, c.Space())
		c.Grow(n)
		if n > 0 {
			if werr := c.WriteTo(w, FrameData); werr != nil {
				return werr
			}
		}
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return nil
		case err != nil:
			return &SourceError{err}
		}
	}
}
