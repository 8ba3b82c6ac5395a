package tools

import (
	"bufio"
	"bytes"
	"encoding/json"
	"regexp"
)

// cutKeep is how much of both ends of a line that is too long is kept, to find
// the id in it.
const cutKeep = 1024

// readLine reads up to and including the next newline. A line of more than max
// bytes is read to its end and comes back cut, as its first and last bytes, with
// long set. Memory stays below twice max.
func readLine(r *bufio.Reader, max int) (line []byte, long bool, err error) {
	var tail []byte
	for {
		part, err := r.ReadSlice('\n')
		switch {
		case long:
			tail = lastBytes(append(tail, part...), cutKeep)
		case len(line)+len(part) > max+1:
			long = true
			line = append(line, part...)
			tail = bytes.Clone(lastBytes(line, cutKeep))
			line = bytes.Clone(line[:min(len(line), cutKeep)])
		default:
			line = append(line, part...)
		}
		if err != bufio.ErrBufferFull {
			return append(line, tail...), long, err
		}
	}
}

func lastBytes(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

var (
	idFirst = regexp.MustCompile(`^\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(-?\d{1,15}|"[^"\\]{0,256}")\s*,`)
	idLast  = regexp.MustCompile(`"id"\s*:\s*(-?\d{1,15}|"[^"\\]{0,256}")\s*\}\s*$`)
)

// idOfCut finds the id in a message that was cut, where clients put it: among
// the first members or as the very last. Nil when it is nowhere there. An id
// that closes an inner object is followed by two braces and does not match.
func idOfCut(line []byte) json.RawMessage {
	for _, re := range []*regexp.Regexp{idFirst, idLast} {
		if m := re.FindSubmatch(line); m != nil {
			return m[1]
		}
	}
	return nil
}
