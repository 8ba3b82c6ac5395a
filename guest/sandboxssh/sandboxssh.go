//go:build linux

// Package sandboxssh is the guest's part of SSH: an SFTP server on standard input and output,
// so that scp, sftp and editors work with images that have none. The protocol itself ends on the
// host (package sandbox/sshd), which starts this as it starts any command: as the user who logged in, in a
// cgroup of its own, with that user's rights and no more.
package sandboxssh

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/pkg/sftp"
)

// Main serves SFTP on two streams until in ends.
func Main(in io.Reader, out io.WriteCloser) {
	if err := serve(streams{in, out}); err != nil {
		fmt.Fprintf(os.Stderr, "gondolin: sftp: %v\n", err)
		os.Exit(1)
	}
}

type streams struct {
	io.Reader
	io.WriteCloser
}

// serve serves one client. Relative paths begin in the working directory.
func serve(conn io.ReadWriteCloser) error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	server, err := sftp.NewServer(conn, sftp.WithServerWorkingDirectory(dir))
	if err != nil {
		return err
	}
	err = server.Serve()
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, server.Close())
}
