package sandbox

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// WriteFile writes r to a guest file; see WriteOptions. An error means that the
// old content is still there (or, appending, that only a part was added); no
// error means that the new content is.
func (s *Session) WriteFile(ctx context.Context, path string, r io.Reader, o WriteOptions) (Written, error) {
	if o.Append && (o.IfSHA256 != "" || o.IfAbsent) {
		return Written{}, fmt.Errorf("writing %s: a condition on the content goes with replacing it, not with appending: %w", path, ErrInvalid)
	}
	defer s.use()()
	path = s.resolve(path)
	user := o.User
	if user == "" {
		user = s.opts.User
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
	if err := send(st, io.TeeReader(r, sum), &done); err != nil {
		return Written{}, err
	}
	return Written{Bytes: done.Bytes, SHA256: hex.EncodeToString(sum.Sum(nil)), Created: done.Created}, nil
}

// send writes r as frames and reads the guest's final reply, which ends the
// sending when it comes early.
func send(st *stream, r io.Reader, reply any) error {
	answered := make(chan error, 1)
	go func() {
		err := wire.ReadReply(st, reply)
		answered <- err
		if err != nil {
			st.Close() // a blocked Write fails
		}
	}()
	sendErr := sendFrames(st, r)
	var src *sourceError
	if errors.As(sendErr, &src) {
		// The guest discards what it has: this is not the end of the data.
		_ = wire.WriteEnd(st, wire.End{Err: &wire.Error{Code: wire.CodeInvalid, Msg: "the source failed"}})
		<-answered
		return src.err
	}
	if err := <-answered; err != nil {
		return st.fail(err)
	}
	if sendErr != nil {
		return st.fail(sendErr)
	}
	return nil
}

// sourceError is a failure of the reader that is being sent.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }

func sendFrames(w io.Writer, r io.Reader) error {
	c := wire.NewChunk(wire.MaxFrame)
	for {
		c.Reset()
		n, err := io.ReadFull(r, c.Space())
		c.Grow(n)
		if n > 0 {
			if werr := c.WriteTo(w, wire.FrameData); werr != nil {
				return werr
			}
		}
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return wire.WriteEnd(w, wire.End{})
		case err != nil:
			return &sourceError{err}
		}
	}
}

// CopyIn copies a host file or tree into the guest directory dir, under its
// own base name, owned by the session's user.
func (s *Session) CopyIn(ctx context.Context, hostPath, dir string) error {
	defer s.use()()
	dir = s.resolve(dir)
	st, err := s.request(ctx, wire.OpUnpack, dir, wire.Unpack{Path: dir, User: s.opts.User}, nil)
	if err != nil {
		return err
	}
	defer st.Close()
	r, w := io.Pipe()
	packed := make(chan struct{})
	go func() {
		defer close(packed)
		w.CloseWithError(packHost(w, hostPath))
	}()
	err = send(st, r, nil)
	r.Close()
	<-packed
	return err
}

// packHost writes a host file or tree as tar. Links are copied as links.
func packHost(w io.Writer, path string) error {
	tw := tar.NewWriter(w)
	base := filepath.Dir(filepath.Clean(path))
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() && !info.IsDir() && info.Mode()&fs.ModeSymlink == 0 {
			return nil // devices, pipes and sockets mean nothing elsewhere
		}
		name, err := filepath.Rel(base, p)
		if err != nil {
			return err
		}
		return packHostFile(tw, p, name, info)
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

func packHostFile(tw *tar.Writer, path, name string, info fs.FileInfo) error {
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		var err error
		if link, err = os.Readlink(path); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	h.Name, h.Format, h.Uname, h.Gname = filepath.ToSlash(name), tar.FormatPAX, "", ""
	if err := tw.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(tw, f, h.Size); err != nil {
		return fmt.Errorf("%s changed while it was read: %w", path, err)
	}
	return nil
}
