package secret

import (
	"bytes"
	"io"
	"net/http"
	"testing"
	"testing/iotest"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// brotliOf is text in a stream with a window of 1<<bits bytes.
func brotliOf(t *testing.T, bits int, text string) []byte {
	var b bytes.Buffer
	w := brotli.NewWriterOptions(&b, brotli.WriterOptions{Quality: 5, LGWin: bits})
	_, err := io.WriteString(w, text)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.Bytes()
}

func TestWindowOfABrotliStreamIsRead(t *testing.T) {
	for bits := 10; bits <= 24; bits++ {
		got, err := newSet(t).bodyOf(t, bits).brotliWindow()
		require.NoError(t, err)
		assert.EqualValues(t, 1<<bits, got)
	}
}

func (s *Set) bodyOf(t *testing.T, bits int) *lazy {
	d, err := s.decode(t.Context(), []string{"br"}, bytes.NewReader(brotliOf(t, bits, "hello")))
	require.NoError(t, err)
	return d.(*decoders).list[0]
}

// A few dozen bytes make a decoder take 16 MiB: many bodies that stand still share a bound.
func TestDecodersOfASessionShareABound(t *testing.T) {
	s := newSet(t)
	header := http.Header{"Content-Encoding": {"br"}}
	stream := brotliOf(t, 24, "hello")
	body := func() *Body {
		// Standing still after the first bytes, as far as the decoder can tell.
		b, err := s.RequestBody(t.Context(), Target{Host: "api.test", Port: 443, TLS: true}, header,
			io.MultiReader(bytes.NewReader(stream[:1]), iotest.ErrReader(io.ErrNoProgress)))
		require.NoError(t, err)
		return b
	}
	var held []*lazy
	for range 4 {
		l := s.bodyOf(t, 24)
		require.NoError(t, l.take(32<<20))
		held = append(held, l)
	}
	read := make(chan error, 1)
	go func() {
		_, err := io.ReadAll(body())
		read <- err
	}()
	select {
	case err := <-read:
		t.Fatalf("a fifth decoder was made: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	held[0].close()
	require.ErrorContains(t, <-read, "br", "it goes on, and ends as the stream does")
	for _, l := range held[1:] {
		l.close()
	}
	require.True(t, s.decoders.TryAcquire(maxDecoders), "all was given back")
}

func TestDecodedBodyIsWholeAndGivesItsMemoryBack(t *testing.T) {
	s := newSet(t)
	for range 20 {
		b, err := s.RequestBody(t.Context(), Target{Host: "api.test", Port: 443, TLS: true},
			http.Header{"Content-Encoding": {"br"}}, bytes.NewReader(brotliOf(t, 24, "hello")))
		require.NoError(t, err)
		got, err := io.ReadAll(b)
		require.NoError(t, err)
		require.Equal(t, "hello", string(got))
		require.NoError(t, b.Close())
	}
	require.True(t, s.decoders.TryAcquire(maxDecoders))
}
