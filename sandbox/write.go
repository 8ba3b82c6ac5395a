package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// WriteFile writes r to a guest file; see WriteOptions. An error means that the
// old content is still there (or, appending, that only a part was added); no
// error means that the new content is.
func (s *client) WriteFile(ctx context.Context, path string, r io.Reader, o WriteOptions) (Written, error) {
	if o.Append && (o.IfSHA256 != "" || o.IfAbsent) {
		return Written{}, fmt.Errorf("writing %s: a condition on the content goes with replacing it, not with appending: %w", path, ErrInvalid)
	}
	defer s.use()()
	path = s.resolve(path)
	user := o.User
	if user == "" {
		user = s.terms().user
	}
	st, err := s.request(ctx, wire.OpWrite, path, wire.Write{
		Path: path, Mode: o.Mode, Append: o.Append, Parents: o.Parents,
		IfSHA256: o.IfSHA256, IfAbsent: o.IfAbsent, User: user,
	}, nil)
	if err != nil {
		return Written{}, err
	}
	defer st.Close()
	var done wire.Written
	sum := sha256.New() // here: translated code hashes ten times slower
	if err := send(st, io.TeeReader(r, sum), wire.SendData, &done); err != nil {
		return Written{}, err
	}
	return Written{Bytes: done.Bytes, SHA256: hex.EncodeToString(sum.Sum(nil)), Created: done.Created}, nil
}

// send writes r as frames and reads the guest's final reply, which ends the
// sending when it comes early. A failure of r is a *wire.SourceError.
func send(st *stream, r io.Reader, data func(io.Writer, io.Reader) error, reply any) error {
	answered := make(chan error, 1)
	go func() {
		err := wire.ReadReply(st, reply)
		answered <- err
		if err != nil {
			st.Close() // a blocked Write fails
		}
	}()
	sendErr := data(st, r)
	var src *wire.SourceError
	if errors.As(sendErr, &src) {
		// The guest discards what it has: this is not the end of the data.
		_ = wire.WriteEnd(st, wire.End{Err: &wire.Error{Code: wire.CodeInvalid, Msg: "the source failed"}})
		<-answered
		return src
	}
	if sendErr == nil {
		sendErr = wire.WriteEnd(st, wire.End{})
	}
	if err := <-answered; err != nil {
		return st.fail(err)
	}
	if sendErr != nil {
		return st.fail(sendErr)
	}
	return nil
}

// CopyIn copies a host file or tree into the guest directory dir, under its
// own base name, owned by the session's user.
func (s *client) CopyIn(ctx context.Context, hostPath, dir string) error {
	defer s.use()()
	dir = s.resolve(dir)
	st, err := s.request(ctx, wire.OpUnpack, dir, wire.Unpack{Path: dir, User: s.terms().user}, nil)
	if err != nil {
		return err
	}
	defer st.Close()
	r, w := io.Pipe()
	packed := make(chan struct{})
	go func() {
		defer close(packed)
		w.CloseWithError(wire.PackTree(w, hostPath))
	}()
	err = send(st, r, wire.SendData, nil)
	r.Close()
	<-packed
	return err
}
