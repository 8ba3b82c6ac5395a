package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Errors that callers branch on.
var (
	// ErrClosed: the session has ended. The error that wraps it says why.
	ErrClosed = errors.New("session is closed")
	// ErrLimit: a limit was reached. The error that wraps it names the limit,
	// its value and what to do.
	ErrLimit = errors.New("limit reached")
	// ErrChanged: WriteOptions.IfSHA256 does not match the file's content.
	ErrChanged = errors.New("file changed")
	// ErrNoMatch: EditFile found no occurrence, or more than one without ReplaceAll.
	ErrNoMatch = errors.New("no unique match")
	// ErrNoJob: no running or retained process has this id.
	ErrNoJob = errors.New("no such process")
	// ErrDetached: Process.Detach left the process running.
	ErrDetached = errors.New("detached")
	// ErrUnknown: no session answers to this name, or more than one.
	ErrUnknown = errors.New("unknown session")
	// ErrBusy: what runs in the session forbids it now; the message names it.
	ErrBusy = errors.New("in use")
	// ErrInvalid: an argument is wrong; the message says which and how to mend it.
	ErrInvalid = errors.New("invalid argument")
)

// unknownError is an ErrUnknown in whole words.
type unknownError string

func (e unknownError) Error() string        { return string(e) }
func (e unknownError) Is(target error) bool { return target == ErrUnknown }

func unknown(format string, args ...any) error {
	return unknownError(fmt.Sprintf(format, args...))
}

// FileError is what a failed operation on a guest path returns. errors.Is
// compares it with fs.ErrNotExist, fs.ErrExist and fs.ErrPermission by Errno.
type FileError struct {
	Op    string
	Path  string
	Errno string // "ENOENT", …; empty when the failure has none
	Msg   string
}

func (e *FileError) Error() string {
	return fmt.Sprintf("%s %s: %s", e.Op, e.Path, e.Msg)
}

// Is implements the comparison for errors.Is.
func (e *FileError) Is(target error) bool {
	switch target {
	case fs.ErrNotExist:
		return e.Errno == "ENOENT"
	case fs.ErrExist:
		return e.Errno == "EEXIST"
	case fs.ErrPermission:
		return e.Errno == "EACCES" || e.Errno == "EPERM"
	}
	return false
}

// maxGuestText bounds a text that the guest chose and that goes into an error or a result, in bytes.
const maxGuestText = 1000

// printable makes a text that the guest chose fit for a terminal, a log and an
// error: bounded, valid, without control characters.
func printable(s string) string {
	if len(s) > maxGuestText {
		s = s[:maxGuestText] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
