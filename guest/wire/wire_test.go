package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

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
	_, err = (&guard{conn: rw{strings.NewReader("\x00\x00\x00\x00\x00\x00\x00\x01" + huge)}}).Read(make([]byte, 64))
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
	g := &guard{conn: w}
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
