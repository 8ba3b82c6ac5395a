package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// Version is the version of the protocol that this build speaks.
const Version = 1

// Magic begins every handshake message.
const Magic = "GNDLN\x01\r\n"

// Names of the virtio-serial ports.
const (
	PortControl = "gondolin.control"
	PortFS      = "gondolin.fs"
	PortIngress = "gondolin.ingress"
)

// EntropySize is the number of random bytes in a Hello.
const EntropySize = 64

// Announce is the guest's first message.
type Announce struct {
	Version int    `cbor:"1,keyasint"`
	Agent   string `cbor:"2,keyasint"`           // version of the agent, for people
	Kernel  string `cbor:"3,keyasint"`           // uname -r, for people
	Session string `cbor:"4,keyasint,omitempty"` // of an earlier Hello
}

// Hello is the host's answer.
type Hello struct {
	Version int    `cbor:"1,keyasint"`
	Session string `cbor:"2,keyasint"`
	Freshen
	Hostname  string `cbor:"5,keyasint"`
	MachineID string `cbor:"6,keyasint"` // 32 lower-case hexadecimal digits, machine-id(5)
	Processes int    `cbor:"7,keyasint"` // limit of processes and threads of all commands
}

// Freshen is what a machine lacks that stood still, or that shares its past with
// another; part of each Hello, and OpFreshen.
type Freshen struct {
	UnixNano int64  `cbor:"3,keyasint"` // wall clock of the host
	Entropy  []byte `cbor:"4,keyasint"` // EntropySize random bytes
}

// Words on the kernel's command line that are for the guest's agent.
const (
	// CmdlineRoot is followed by where writes to the root file system go.
	CmdlineRoot  = "gondolin.root="
	RootCOW      = "cow"      // to the second disk
	RootMemory   = "memory"   // to memory
	RootReadOnly = "readonly" // nowhere
	// CmdlineNet is followed by how to configure the network card: addresses with their
	// prefix lengths, gateways and name servers, each list with its members joined by commas
	// and the lists by semicolons. They are the same in every session.
	CmdlineNet = "gondolin.net="
	// CmdlineNear says that waking another processor is dear, as it is under translation.
	CmdlineNear = "gondolin.near"
	// CmdlineWarm makes the agent run what commands use first before it announces itself.
	CmdlineWarm = "gondolin.warm"
)

// Ready ends the handshake.
type Ready struct {
	Err string `cbor:"1,keyasint,omitempty"` // why the Hello could not be applied
}

// WriteReset makes the guest end a connection that it does not know to be lost:
// a port that closes and opens again quickly shows no end of file to a reader
// that waits in the kernel. The bytes fill the body of a frame that the guest
// may be waiting for and are no header of another; what is left of them is skipped.
func WriteReset(w io.Writer) error {
	_, err := w.Write(bytes.Repeat([]byte{0xff}, window+muxHeader))
	return err
}

// WriteHandshake writes one handshake message.
func WriteHandshake(w io.Writer, v any) error {
	var b bytes.Buffer
	b.WriteString(Magic)
	if err := WriteMessage(&b, v); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

// ReadHandshake skips to the next handshake message and decodes it. It reads
// no byte past the message.
func ReadHandshake(r io.Reader, v any) error {
	var win [len(Magic)]byte
	if _, err := io.ReadFull(r, win[:]); err != nil {
		return err
	}
	for skipped := 0; string(win[:]) != Magic; skipped++ {
		if skipped >= MaxSkip {
			return fmt.Errorf("no handshake within %d bytes: %w", MaxSkip, ErrProtocol)
		}
		copy(win[:], win[1:])
		if _, err := io.ReadFull(r, win[len(win)-1:]); err != nil {
			return noEOF(err)
		}
	}
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return noEOF(err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxMessage {
		return fmt.Errorf("handshake announces %d bytes: %w", n, ErrTooLarge)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return noEOF(err)
	}
	return Unmarshal(body, v)
}
