package wire

import (
	"bytes"
	"io"
	"testing"
)

// What the guest may send to the host, and the host to the guest.
func FuzzHandshake(f *testing.F) {
	var b bytes.Buffer
	_ = WriteHandshake(&b, Announce{Version: Version})
	f.Add(b.Bytes())
	f.Add([]byte(Magic + "\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = ReadHandshake(bytes.NewReader(data), &Announce{})
		_ = ReadHandshake(bytes.NewReader(data), &Hello{})
		_ = ReadHandshake(bytes.NewReader(data), &Ready{})
		_ = ReadHandshake(bytes.NewReader(data), &Visit{})
	})
}

func FuzzMessages(f *testing.F) {
	for _, m := range []any{Request{Op: OpStart}, Reply{Err: &Error{}}, Start{Argv: []string{"a"}}, Jobs{Jobs: []Job{{}}}} {
		b, _ := Marshal(m)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, m := range []any{
			&Request{}, &Reply{}, &Start{}, &Started{}, &Attach{}, &Exit{}, &Stdin{}, &Signal{}, &Resize{}, &Jobs{}, &Output{},
			&OutputChunk{}, &[]FileInfo{}, &Path{}, &Rename{}, &Read{}, &Write{}, &Written{}, &Glob{}, &Grep{}, &[]GrepMatch{}, &End{}, &Unpack{}, &Freshen{}, &Mounts{}, &Trust{},
		} {
			_ = Unmarshal(data, m)
		}
	})
}

func FuzzFrames(f *testing.F) {
	var b bytes.Buffer
	_ = WriteEnd(&b, Exit{})
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewFrameReader(bytes.NewReader(data))
		for {
			if _, _, err := r.Next(); err != nil {
				return
			}
		}
	})
}

// FuzzMux feeds bytes to the multiplexer as either peer could.
func FuzzMux(f *testing.F) {
	f.Add([]byte("\x00\x01\x00\x02\x00\x00\x00\x01\x00\x00\x00\x00"))
	f.Add([]byte("\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00\x03abc"))
	f.Add([]byte("\x00\x01\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		guest, err := Server(&script{Reader: bytes.NewReader(data)})
		if err != nil {
			t.Fatal(err)
		}
		for {
			s, err := guest.AcceptStream()
			if err != nil {
				break
			}
			_, _ = io.Copy(io.Discard, s)
		}
		guest.Close()
		peer := &script{Reader: bytes.NewReader(data)}
		mux, err := Client(peer)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := mux.OpenStream(); err == nil {
			_, _ = io.Copy(io.Discard, s)
		}
		mux.Close()
	})
}

// script is a peer that says what it has to say and then hangs up.
type script struct{ *bytes.Reader }

func (*script) Write(p []byte) (int, error) { return len(p), nil }
func (*script) Close() error                { return nil }
