// Package wire is the protocol between the host and the guest. It is compiled
// into both sides, so there is one definition of every message.
//
// # Transport
//
// A session's VM has three virtio-serial ports, each a byte stream with one
// purpose: PortControl, PortFS and PortIngress. This package speaks on PortControl and,
// after OpServe, on PortIngress, whose streams are TCP connections into the guest.
//
// # Handshake
//
// A handshake message is Magic, a 32-bit big-endian length of at most
// MaxMessage, and a CBOR body. Whoever waits for one skips bytes until Magic:
// remains of an earlier connection on the same port do no harm, and more than
// MaxSkip of them is an error.
//
//	guest -> host  Announce   who am I, which protocol versions do I speak
//	host  -> guest Hello      session, wall clock, entropy, host settings
//	guest -> host  Ready      applied, or the reason why not
//
// The guest repeats Announce whenever the port was closed and opened again, and
// the host then repeats Hello. A host that opens the port again begins with
// WriteReset, since the guest may have missed the close. Settings are applied by the first Hello only
// (clock and entropy by each). Both sides refuse a version they do not speak.
// A version changes when a message changes its meaning; a field that may be
// absent does not change it.
//
// # Streams
//
// After Ready the port carries a yamux session in which only the host opens
// streams (see Client and Server: a peer that pings, goes away, opens a stream the wrong way
// or exceeds its window ends the session). A stream begins with a request, a length-prefixed
// CBOR message, and a reply of the same form. The Op says what follows the reply:
//
//	start, attach   guest: frames FrameStdout, FrameStderr, at last FrameEnd with Exit;
//	                host: 8-byte big-endian positions up to which it has taken output.
//	                The guest forgets output only when it is acknowledged, so that
//	                attach goes on where a lost connection stopped.
//	read, pack      guest: FrameData, at last FrameEnd with End
//	stdin, write,   host: FrameData, at last FrameEnd with End; guest: a second
//	unpack          reply, which may come before the host has sent all
//	glob, grep,
//	readdir         guest: FrameData, each a CBOR array of results, at last FrameEnd
//	serve           guest: a second reply, when the part has ended
//	dial            both: the bytes of a TCP connection
//	others          nothing
//
// The host closes a stream when it has all that it wants of it, the guest after that.
// Acknowledgements come at the latest after AckBytes and after AckFrames.
//
// A frame is one byte of kind, a 32-bit big-endian length of at most MaxFrame,
// and that many bytes.
//
// # Attaching
//
// The process that holds a session speaks the same protocol on a Unix socket, in the guest's
// place, with other programs of its user:
//
//	holder  -> program  Announce   with the session's id
//	program -> holder   Visit
//	holder  -> program  Ready      or why it is refused
//
// The streams that follow are those of above, but for freshen, mount and trust, which are
// the holder's. It completes start with the session's settings, takes up lost connections to the
// guest by itself, and ends what was started on a connection when that ends (a detached process
// and one that was left with OpDetach go on). It passes the rest on to the guest as it is.
//
// # Trust
//
// The host trusts nothing that arrives here: lengths are checked before memory
// is taken, CBOR is decoded with bounds on depth and counts and without
// duplicate keys, and unknown fields are refused in neither direction so that a
// later minor change stays readable. Any breach ends the one session it came from.
package wire
