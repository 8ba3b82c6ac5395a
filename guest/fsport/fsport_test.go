package fsport

import (
	"bytes"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestBothSidesFindTheBeginningBehindRemainsOfTheLastConnection(t *testing.T) {
	hostIn, guestOut := io.Pipe()
	guestIn, hostOut := io.Pipe()
	done := make(chan error, 1)
	go func() {
		nonce, err := Await(guestIn, []byte("GNDLNGNDLNFS"))
		if err != nil {
			done <- err
			return
		}
		// The end of a frame, and the answer to a host that is gone.
		_, _ = guestOut.Write(append(bytes.Repeat([]byte{7}, 100), Magic+"oldnonceGND"...))
		err = Answer(guestOut, nonce)
		_, _ = guestOut.Write([]byte("frame"))
		done <- err
	}()
	require.NoError(t, Begin(hostIn, hostOut, true))
	frame := make([]byte, 5)
	_, err := io.ReadFull(hostIn, frame)
	require.NoError(t, err)
	assert.Equal(t, "frame", string(frame))
	require.NoError(t, <-done)
}

func TestAPeerThatNeverBeginsIsGivenUp(t *testing.T) {
	_, err := Await(zeros{}, nil)
	require.ErrorIs(t, err, ErrLost)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestNeitherMagicNorResetIsAFramesLength(t *testing.T) {
	for _, b := range [][]byte{[]byte(Magic), {0xff, 0xff, 0xff, 0xff}, {15, 0, 0, 0}} {
		_, ok := FrameLen(b, 16)
		assert.False(t, ok, "%q", b)
	}
	n, ok := FrameLen([]byte{16, 0, 0, 0}, 16)
	assert.True(t, ok)
	assert.Equal(t, 16, n)
}
