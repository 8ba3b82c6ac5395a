// Package audit keeps an append-only record of what sessions did and what their network
// was allowed and refused.
//
// # Files
//
// A session's record is the files SESSION.000001.jsonl, SESSION.000002.jsonl and so on in one
// directory, of mode 0600 in a directory of mode 0700. A line is one [Record] in JSON. When a
// file has reached [Options].FileSize the next one begins; when there are more than
// [Options].Files, the oldest is removed, and a line says so. So a session that does
// a great deal fills no disk, and its latest deeds stay.
//
// # Chain
//
// Each line carries its number and the SHA-256 of the line before it, without the line break;
// the first one carries zeros. A line that is changed, taken out or put in breaks the
// chain, which [Verify] tells. A record that was closed ends with a line that says so; one
// without it belongs to a session that runs, that was killed, or whose end was cut off. The
// chain has no key: whoever can write the files can make a new one altogether. To guard against
// that too, note the last hash that Verify gives somewhere else.
//
// # Durability
//
// Each line is written at once and whole, so that the end of the process loses nothing. It
// is on the disk itself (fsync) when the file is full, when the record is closed, and with the
// first line that is a second or more after the last time. A host that loses power may
// lose the lines of that second.
//
// # Errors
//
// [Log.Record] returns an error when the line was not written, and takes back what of it
// may have been. What cannot be recorded must be refused: that is the caller's part. If it cannot
// even be taken back, every later Record fails.
//
// # What it holds
//
// Texts come from the guest. They are cut at 4096 bytes, and JSON escapes what is not
// printable. No value of a secret gets here, only names; paths have no query.
//
// The package starts no goroutine. A Log is safe for concurrent use.
package audit
