package secret

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/semaphore"
)

const (
	// maxWindow bounds the memory of a zstd decoder, in bytes: what RFC 8878,
	// 3.1.1.1.2 recommends to support, and browsers do. That of the others is bounded
	// by their formats: 32 KiB, and 16 MiB for br.
	maxWindow = 8 << 20
	// maxCodings bounds how often a body may have been encoded.
	maxCodings = 2
	// maxDecoders bounds the memory of all decoders of a session with a large window, in bytes: four of the
	// largest, thirty of what servers usually take. More wait for decoderWait.
	maxDecoders = 128 << 20
	decoderWait = 30 * time.Second
)

var known = []string{"gzip", "deflate", "br", "zstd"}

// AcceptEncoding is what may be sent on of a request's Accept-Encoding, so that
// the answer comes in an encoding that can be looked into. An empty result means
// "identity".
func AcceptEncoding(value string) string {
	var list []string
	for item := range strings.SplitSeq(value, ",") {
		name, _, _ := strings.Cut(item, ";")
		if name = strings.ToLower(strings.TrimSpace(name)); slices.Contains(known, name) || name == "identity" {
			list = append(list, strings.TrimSpace(item))
		}
	}
	if len(list) == 0 {
		return "identity"
	}
	return strings.Join(list, ", ")
}

// decode undoes the content codings, the last first (RFC 9110, 8.4). It returns
// nil if there is none.
func (s *Set) decode(ctx context.Context, values []string, r io.Reader) (io.ReadCloser, error) {
	var codings []string
	for item := range strings.SplitSeq(strings.Join(values, ","), ",") {
		switch name := strings.ToLower(strings.TrimSpace(item)); name {
		case "", "identity":
		case "x-gzip":
			codings = append(codings, "gzip")
		default:
			if !slices.Contains(known, name) {
				return nil, fmt.Errorf("the encoding %s is unknown: what it hides cannot be looked into", quote(name))
			}
			codings = append(codings, name)
		}
	}
	if len(codings) == 0 {
		return nil, nil
	}
	if len(codings) > maxCodings {
		return nil, fmt.Errorf("the body is encoded %d times: at most %d are undone", len(codings), maxCodings)
	}
	chain := &decoders{}
	for _, c := range slices.Backward(codings) {
		d := &lazy{ctx: ctx, coding: c, src: bufio.NewReader(r), room: s.decoders}
		chain.list = append(chain.list, d)
		r = d
	}
	chain.Reader = r
	return chain, nil
}

// decoders is a chain; the outermost coding is read first.
type decoders struct {
	io.Reader
	list []*lazy
}

func (d *decoders) Close() error {
	for _, l := range d.list {
		l.close()
	}
	return nil
}

// lazy makes its decoder when the first byte is there: making one reads from the
// source, and an empty body is no error whatever its encoding.
type lazy struct {
	ctx    context.Context // of the wait for room
	coding string
	src    *bufio.Reader
	room   *semaphore.Weighted // bytes
	closed atomic.Bool

	mu   sync.Mutex // held by a Read
	held int64      // of room
	dec  io.Reader
	err  error
	free func()
}

func (l *lazy) Read(p []byte) (n int, err error) {
	l.mu.Lock()
	defer func() {
		l.mu.Unlock()
		if err != nil || l.closed.Load() {
			l.letGo()
		}
	}()
	if l.dec == nil && l.err == nil {
		if _, l.err = l.src.Peek(1); l.err == nil {
			l.dec, l.err = l.open()
		}
	}
	if l.err != nil {
		return 0, l.err
	}
	n, err = l.dec.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("decoding %s: %w", l.coding, err)
	}
	l.err = err
	return n, err
}

func (l *lazy) open() (dec io.Reader, err error) {
	switch l.coding {
	case "gzip":
		dec, err = gzip.NewReader(l.src)
	case "br":
		var window int64
		if window, err = l.brotliWindow(); err == nil {
			err = l.take(2 * window) // and as much for its output
		}
		if err == nil {
			dec = brotli.NewReader(l.src)
		}
	case "zstd":
		var z *zstd.Decoder
		if err = l.take(2 * maxWindow); err != nil {
			break
		}
		if z, err = zstd.NewReader(l.src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow)); err == nil {
			dec, l.free = z, z.Close
		}
	default:
		// Some servers send deflate without the zlib header that belongs around it.
		if head, _ := l.src.Peek(2); len(head) == 2 && head[0]&0x0f == 8 && (int(head[0])<<8|int(head[1]))%31 == 0 {
			dec, err = zlib.NewReader(l.src)
		} else {
			dec = flate.NewReader(l.src)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("decoding %s: %w", l.coding, err)
	}
	return dec, nil
}

// close lets the decoder go, or the Read that is under way does when it returns.
func (l *lazy) close() {
	l.closed.Store(true)
	l.letGo()
}

func (l *lazy) letGo() {
	if !l.mu.TryLock() {
		return
	}
	defer l.mu.Unlock()
	if l.free != nil {
		l.free()
	}
	l.room.Release(l.held)
	l.held, l.dec, l.free = 0, nil, nil
	if l.err == nil {
		l.err = io.ErrClosedPipe
	}
}

// take waits for room for a decoder.
func (l *lazy) take(bytes int64) error {
	ctx, cancel := context.WithTimeout(l.ctx, decoderWait)
	defer cancel()
	if l.room.Acquire(ctx, bytes) != nil {
		if err := context.Cause(l.ctx); err != nil {
			return err
		}
		return fmt.Errorf("no room within %v: too many compressed bodies are under way", decoderWait)
	}
	l.held = bytes
	return nil
}

// brotliWindow reads the size of the window from the head of a stream (RFC 7932, 9.1).
func (l *lazy) brotliWindow() (int64, error) {
	head, err := l.src.Peek(1)
	if err != nil {
		return 0, err
	}
	bits := 16
	switch b := head[0]; {
	case b&1 == 0:
	case b>>1&7 != 0:
		bits = 17 + int(b>>1&7)
	case b>>4&7 == 0:
		bits = 17
	default:
		bits = 8 + int(b>>4&7) // 1 is no window, which the decoder says
	}
	return 1 << bits, nil
}
