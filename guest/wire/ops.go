package wire

import (
	"fmt"
	"io"

	"github.com/fxamacker/cbor/v2"
)

// Op names what a stream is for.
type Op string

// The operations.
const (
	OpStart   Op = "start"
	OpAttach  Op = "attach"
	OpStdin   Op = "stdin"
	OpSignal  Op = "signal"
	OpResize  Op = "resize"
	OpJobs    Op = "jobs"
	OpOutput  Op = "output"
	OpRelease Op = "release"
	OpFreshen Op = "freshen"
	OpMount   Op = "mount"
	OpTrust   Op = "trust"
	OpHold    Op = "hold"
	OpThaw    Op = "thaw"
	OpServe   Op = "serve"
	OpDial    Op = "dial" // on PortIngress

	OpStat    Op = "stat"
	OpReadDir Op = "readdir"
	OpMkdir   Op = "mkdir"
	OpRename  Op = "rename"
	OpRemove  Op = "remove"
	OpRead    Op = "read"
	OpWrite   Op = "write"
	OpGlob    Op = "glob"
	OpGrep    Op = "grep"
	OpPack    Op = "pack"
	OpUnpack  Op = "unpack"
)

// The operations that only a program attached to a session asks for, and that the process
// that holds the session answers itself.
const (
	OpDescribe Op = "describe"
	OpWatch    Op = "watch"  // the reply comes when the session ends
	OpDetach   Op = "detach" // leave a process of this connection running; ProcessRef
	OpEnd      Op = "end"
	OpSSH      Op = "ssh" // the server is there until the stream closes
	OpSnapshot Op = "snapshot"
)

// Request begins a stream.
type Request struct {
	Op   Op              `cbor:"1,keyasint"`
	Body cbor.RawMessage `cbor:"2,keyasint,omitempty"`
}

// Reply answers a request.
type Reply struct {
	Err  *Error          `cbor:"1,keyasint,omitempty"`
	Body cbor.RawMessage `cbor:"2,keyasint,omitempty"`
}

// Code classifies an Error for the host.
type Code string

// The codes.
const (
	CodeErrno   Code = "errno"   // a system call failed; Error.Errno says how
	CodeInvalid Code = "invalid" // the request is wrong
	CodeNoJob   Code = "nojob"
	CodeChanged Code = "changed"
	CodeLimit   Code = "limit"
	CodeSpawn   Code = "spawn" // the command could not be started
	CodeBusy    Code = "busy"  // what runs in the guest forbids it now
)

// Error is a failure in the guest.
type Error struct {
	Code  Code   `cbor:"1,keyasint"`
	Errno string `cbor:"2,keyasint,omitempty"` // symbolic, such as ENOENT
	Path  string `cbor:"3,keyasint,omitempty"`
	Msg   string `cbor:"4,keyasint"`
}

func (e *Error) Error() string {
	if e.Path != "" {
		return e.Path + ": " + e.Msg
	}
	return e.Msg
}

// SendRequest writes a request. A nil body is left out.
func SendRequest(w io.Writer, op Op, body any) error {
	raw, err := rawBody(body)
	if err != nil {
		return err
	}
	return WriteMessage(w, Request{Op: op, Body: raw})
}

// SendReply writes the reply to a request: err if it is not nil, else body.
func SendReply(w io.Writer, body any, err *Error) error {
	if err != nil {
		return WriteMessage(w, Reply{Err: err})
	}
	raw, merr := rawBody(body)
	if merr != nil {
		return merr
	}
	return WriteMessage(w, Reply{Body: raw})
}

// ReadReply reads a reply into body, which may be nil. A failure in the guest
// is returned as *Error.
func ReadReply(r io.Reader, body any) error {
	var rep Reply
	if err := ReadMessage(r, &rep); err != nil {
		return noEOF(err)
	}
	if rep.Err != nil {
		return rep.Err
	}
	if body == nil {
		return nil
	}
	return Unmarshal(rep.Body, body)
}

func rawBody(body any) (cbor.RawMessage, error) {
	if body == nil {
		return nil, nil
	}
	raw, err := Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", body, err)
	}
	return raw, nil
}
