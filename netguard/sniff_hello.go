package netguard

import (
	"errors"

	"golang.org/x/crypto/cryptobyte"
)

// clientHello is what a TLS client says first (RFC 8446, 4.1.2), as far as anybody
// asks.
type clientHello struct {
	serverName string   // SNI as sent; empty if there is none
	alpn       []string // protocols offered, in the client's order
	ech        bool     // it carries an Encrypted Client Hello, real or made up (RFC 9849)
}

const (
	recordHandshake = 22
	typeClientHello = 1

	extServerName = 0
	extALPN       = 16
	extECH        = 0xfe0d
)

var errHello = errors.New("its parts do not fit")

// parseClientHello reads a ClientHello from the beginning of a stream; it may be spread
// over several records. more says that the stream so far is too short.
func parseClientHello(b []byte) (hello *clientHello, more bool, err error) {
	var msg []byte
	for need := 4; ; {
		if len(b) < 5 {
			return nil, true, checkRecord(b)
		}
		size := int(b[3])<<8 | int(b[4])
		switch {
		case checkRecord(b) != nil:
			return nil, false, checkRecord(b)
		case size == 0 || size > maxSniff:
			return nil, false, errors.New("a record of impossible length")
		}
		fragment := b[5:min(5+size, len(b))]
		msg = append(msg, fragment...)
		if len(msg) >= 4 {
			if msg[0] != typeClientHello {
				return nil, false, errors.New("another message comes first")
			}
			if need = 4 + int(msg[1])<<16 + int(msg[2])<<8 + int(msg[3]); need > maxSniff {
				return nil, false, errors.New("it is too long")
			}
			if len(msg) >= need {
				hello, err = readHello(msg[4:need])
				return hello, false, err
			}
		}
		if len(fragment) < size {
			return nil, true, nil
		}
		b = b[5+size:]
	}
}

// checkRecord judges as much of a record's header as there is.
func checkRecord(b []byte) error {
	if len(b) > 0 && b[0] != recordHandshake || len(b) > 1 && b[1] != 3 {
		return errors.New("no TLS handshake record")
	}
	return nil
}

func readHello(msg cryptobyte.String) (*clientHello, error) {
	h := &clientHello{}
	var session, suites, compression, extensions cryptobyte.String
	if !msg.Skip(2+32) || !msg.ReadUint8LengthPrefixed(&session) || !msg.ReadUint16LengthPrefixed(&suites) || !msg.ReadUint8LengthPrefixed(&compression) {
		return nil, errHello
	}
	if msg.Empty() {
		return h, nil // before TLS 1.2 extensions were optional
	}
	if !msg.ReadUint16LengthPrefixed(&extensions) || !msg.Empty() {
		return nil, errHello
	}
	seen := map[uint16]bool{}
	for !extensions.Empty() {
		var kind uint16
		var body cryptobyte.String
		if !extensions.ReadUint16(&kind) || !extensions.ReadUint16LengthPrefixed(&body) {
			return nil, errHello
		}
		if seen[kind] {
			return nil, errors.New("an extension comes twice")
		}
		seen[kind] = true
		var err error
		switch kind {
		case extServerName:
			err = h.readServerName(body)
		case extALPN:
			err = h.readALPN(body)
		case extECH:
			h.ech = true
		}
		if err != nil {
			return nil, err
		}
	}
	return h, nil
}

// readServerName takes one name and no more: with two, who knows which one the server
// goes by (RFC 6066, 3).
func (h *clientHello) readServerName(body cryptobyte.String) error {
	var list, name cryptobyte.String
	var kind uint8
	if !body.ReadUint16LengthPrefixed(&list) || !body.Empty() || !list.ReadUint8(&kind) || !list.ReadUint16LengthPrefixed(&name) {
		return errHello
	}
	if kind != 0 || !list.Empty() || len(name) == 0 {
		return errors.New("the server name is not one host name")
	}
	h.serverName = string(name)
	return nil
}

func (h *clientHello) readALPN(body cryptobyte.String) error {
	var list, name cryptobyte.String
	if !body.ReadUint16LengthPrefixed(&list) || !body.Empty() || list.Empty() {
		return errHello
	}
	for !list.Empty() {
		if !list.ReadUint8LengthPrefixed(&name) || len(name) == 0 {
			return errHello
		}
		h.alpn = append(h.alpn, string(name))
	}
	return nil
}
