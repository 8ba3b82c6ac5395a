// Package agent carries the guest binary inside host programs, so that one file
// installs both sides of the protocol at the same version.
//
// The binary is built from package guest by `make guest` (or the test runner)
// into this directory before the host program is compiled; it is not kept in
// version control. A host program that was compiled without it says so when it
// first needs it.
package agent

import (
	"embed"
	"errors"
	"io"
	"io/fs"
	"strings"
)

// The directory itself is embedded, so that the package compiles without the binary.
//
//go:embed all:bin
var files embed.FS

// ErrMissing: this program was compiled without a guest binary.
var ErrMissing = errors.New("this program was built without the guest binary: build it with `make build`")

// Digest returns the SHA-256 of the executable in hexadecimal, which `make guest` writes beside it: to
// know the executable a program need not read all of it, which would then count as its memory.
func Digest() (string, error) {
	b, err := files.ReadFile("bin/gondolin-guest.sha256")
	if errors.Is(err, fs.ErrNotExist) {
		return "", ErrMissing
	}
	return strings.TrimSpace(string(b)), err
}

// Open returns the guest's executable. Reading it takes no memory of its own.
func Open() (*io.SectionReader, error) {
	f, err := files.Open("bin/gondolin-guest")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrMissing
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(f.(io.ReaderAt), 0, st.Size()), nil // embed documents that files are
}
