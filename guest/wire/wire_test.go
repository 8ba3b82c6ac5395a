package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestHandshakeIsFoundBehindRemainsOfAnEarlierConnection(t *testing.T) {
	var b bytes.Buffer
	b.WriteString("half a frame " + Magic[:5] + "\x00\x01")
	require.NoError(t, WriteHandshake(&b, Announce{Version: 7, Agent: "a", Kernel: "k"}))
	b.WriteString("next")
	var got Announce
	require.NoError(t, ReadHandshake(&b, &got))
	require.Equal(t, Announce{Version: 7, Agent: "a", Kernel: "k"}, got)
	require.Equal(t, "next", b.String(), "no byte past the message is taken")
}

func TestHandshakeGivesUpOnAnEndlessStreamOfGarbage(t *testing.T) {
	err := ReadHandshake(io.LimitReader(zeros{}, 64<<20), &Announce{})
	require.ErrorIs(t, err, ErrProtocol)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestLengthsAreCheckedBeforeMemoryIsTaken(t *testing.T) {
	huge := "\xff\xff\xff\xff"
	require.ErrorIs(t, ReadMessage(strings.NewReader(huge), &Request{}), ErrTooLarge)
	require.ErrorIs(t, ReadHandshake(strings.NewReader(Magic+huge), &Announce{}), ErrTooLarge)
	_, _, err := NewFrameReader(strings.NewReader("\x01" + huge)).Next()
	require.ErrorIs(t, err, ErrTooLarge)
	_, err = newGuard(rw{strings.NewReader("\x00\x00\x00\x00\x00\x00\x00\x01" + huge)}).Read(make([]byte, 64))
	require.ErrorIs(t, err, ErrProtocol)
}

type rw struct{ io.Reader }

func (rw) Write(p []byte) (int, error) { return len(p), nil }
func (rw) Close() error                { return nil }

func TestMessagesAboveTheBoundAreRefusedBeforeTheyAreSent(t *testing.T) {
	var b bytes.Buffer
	err := SendRequest(&b, OpStart, Start{Argv: []string{strings.Repeat("x", MaxMessage)}})
	require.ErrorIs(t, err, ErrTooLarge)
	require.Zero(t, b.Len())
}

func TestFramesSurviveAnySplitting(t *testing.T) {
	var b bytes.Buffer
	c := NewChunk(MaxFrame)
	c.Append([]byte("hello"))
	require.NoError(t, c.WriteTo(&b, FrameStdout))
	require.NoError(t, WriteEnd(&b, Exit{Code: 3, Signal: "SIGTERM"}))
	r := NewFrameReader(iotestOneByte{&b})
	kind, p, err := r.Next()
	require.NoError(t, err)
	require.Equal(t, FrameStdout, kind)
	require.Equal(t, "hello", string(p))
	kind, p, err = r.Next()
	require.NoError(t, err)
	require.Equal(t, FrameEnd, kind)
	var exit Exit
	require.NoError(t, Unmarshal(p, &exit))
	require.Equal(t, Exit{Code: 3, Signal: "SIGTERM"}, exit)
	_, _, err = r.Next()
	require.ErrorIs(t, err, io.ErrUnexpectedEOF, "a direction ends with FrameEnd only")
}

type iotestOneByte struct{ r io.Reader }

func (o iotestOneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(len(p), 1)]) }

// The multiplexer would answer each ping with a goroutine and queue each stream.
func TestGuestCannotPingOrOpenStreams(t *testing.T) {
	for name, head := range map[string]string{
		"ping":               "\x00\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00\x07",
		"opened stream":      "\x00\x01\x00\x01\x00\x00\x00\x02\x00\x00\x00\x00",
		"opened with data":   "\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x01x",
		"unknown frame type": "\x00\x09\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			mux, err := Client(ours)
			require.NoError(t, err)
			defer mux.Close()
			go func() { _, _ = theirs.Write([]byte(head)) }()
			go func() { _, _ = io.Copy(io.Discard, theirs) }()
			<-mux.CloseChan()
		})
	}
}

func TestHeaderAndBodyOfAFrameGoOutInOneWrite(t *testing.T) {
	w := &writes{}
	g := newGuard(w)
	head := "\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x05"
	for _, part := range []string{head, "he", "llo", "\x00\x01\x00\x00\x00\x00\x00\x01\x00\x00\x01\x00"} {
		n, err := g.Write([]byte(part))
		require.NoError(t, err)
		require.Equal(t, len(part), n)
	}
	require.Equal(t, []string{head + "hello", "\x00\x01\x00\x00\x00\x00\x00\x01\x00\x00\x01\x00"}, w.all)
}

type writes struct {
	rw
	all []string
}

func (w *writes) Write(p []byte) (int, error) { w.all = append(w.all, string(p)); return len(p), nil }

func TestErrorsCrossTheWire(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, SendReply(&b, nil, &Error{Code: CodeErrno, Errno: "ENOENT", Path: "/x", Msg: "gone"}))
	err := ReadReply(&b, nil)
	var werr *Error
	require.True(t, errors.As(err, &werr))
	require.Equal(t, "ENOENT", werr.Errno)
	require.Equal(t, "/x: gone", err.Error())
}

func TestNamesThatAreNotUTF8Survive(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, WriteItems(&b, []FileInfo{{Name: "a\xff\xfeb"}}))
	_, p, err := NewFrameReader(&b).Next()
	require.NoError(t, err)
	var got []FileInfo
	require.NoError(t, Unmarshal(p, &got))
	require.Equal(t, "a\xff\xfeb", got[0].Name)
}

// yamux reads a frame's body with the stream locked: a guest that sends half a
// frame would hold whoever reads the stream beyond his deadline.
func TestHalfAFrameHoldsNoReaderBeyondItsDeadline(t *testing.T) {
	here, there := net.Pipe()
	mux, err := Client(here)
	require.NoError(t, err)
	arrived := make(chan struct{})
	go func() { // the peer takes what comes and sends half a frame for stream 1
		_, _ = there.Write([]byte{0, muxData, 0, 0, 0, 0, 0, 1, 0, 6, 0, 0, 'h', 'a', 'l', 'f'})
		close(arrived) // a pipe's write ends when all of it was read
		_, _ = io.Copy(io.Discard, there)
	}()
	s, err := mux.OpenStream()
	require.NoError(t, err)
	answered := make(chan error, 1)
	go func() {
		_, err := s.Read(make([]byte, 10))
		answered <- err
	}()
	<-arrived
	require.NoError(t, s.SetDeadline(time.Unix(1, 0)))
	select {
	case err := <-answered:
		require.Error(t, err)
	case <-time.After(5 * time.Second):
		t.Error("the reader waits for the rest of the frame")
	}
	there.Close()
	mux.Close()
}

func TestPeerThatGoesAwayWithoutEndingBreaksTheProtocol(t *testing.T) {
	_, err := newGuard(rw{strings.NewReader("\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")}).Read(make([]byte, 64))
	require.ErrorIs(t, err, ErrProtocol)
}

func TestLiveDataIsSentAsItComes(t *testing.T) {
	source, sink := io.Pipe()
	out, in := io.Pipe()
	go func() { _ = SendLive(in, source); in.Close() }()
	r := NewDataReader(out)
	for _, word := range []string{"one", "two"} {
		go func() { _, _ = sink.Write([]byte(word)) }()
		got, err := r.Next()
		require.NoError(t, err)
		require.Equal(t, word, string(got))
	}
	sink.Close()
}
