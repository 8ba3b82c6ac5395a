package tools

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/mark3labs/mcp-go/mcp"
)

const (
	// resultChars bounds a result: its text blocks and its structured content
	// together, in UTF-16 units (what JavaScript clients call characters). Images
	// and the frame around them are not counted.
	resultChars = 48000
	// notesChars is kept free of that for notes about the session.
	notesChars = 2500
	// errorChars bounds the text of an error.
	errorChars = 8000
)

// Noted is part of every structured result.
type Noted struct {
	Notes []string `json:"notes,omitempty" jsonschema:"what you should know besides, such as that the machine is a new one"`
}

func (n *Noted) addNotes(notes []string) { n.Notes = append(n.Notes, notes...) }

// structured is a result that notes can be added to.
type structured interface{ addNotes([]string) }

// reply is what a tool answers.
type reply struct {
	text   string
	data   structured    // nil only in errors
	blocks []mcp.Content // more blocks, not counted in the size
	failed bool
	raw    *mcp.CallToolResult // instead of all the rest: a question to the client
}

// size is what the reply takes of resultChars.
func (r *reply) size() int {
	n := units(r.text)
	if r.data == nil {
		return n
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	// Clients show the decoded value, in which < is one character again.
	e.SetEscapeHTML(false)
	if e.Encode(r.data) != nil {
		return n
	}
	return n + units(b.String())
}

// units counts UTF-16 units.
func units(s string) int {
	n := 0
	for _, c := range s {
		n++
		if c > 0xFFFF {
			n++
		}
	}
	return n
}

// fit builds a reply with as much payload as resultChars allows: build gets the
// most bytes of payload to use. Escapes make the result of an amount
// unforeseeable, so it measures and asks again.
func fit(most int, build func(n int) *reply) *reply {
	for n := most; n > 0; {
		r := build(n)
		size := r.size()
		if size <= resultChars-notesChars {
			return r
		}
		n = min(n*9/10*(resultChars-notesChars)/size, n-1)
	}
	return build(0)
}

// result makes the MCP result, with notes in front of the text.
func (r *reply) result(notes []string) *mcp.CallToolResult {
	if r.raw != nil {
		return r.raw
	}
	text := r.text
	if len(notes) > 0 {
		joined := short(strings.Join(notes, "\n"), 1000)
		text = "[" + joined + "]\n" + text
		if r.data != nil {
			r.data.addNotes([]string{joined})
		}
	}
	out := &mcp.CallToolResult{Content: []mcp.Content{mcp.NewTextContent(text)}, IsError: r.failed}
	out.Content = append(out.Content, r.blocks...)
	if r.data != nil {
		out.StructuredContent = r.data
	}
	return out
}

// counted is a number with its noun.
func counted[N int | int64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// failure is a reply that tells what went wrong.
func failure(text string) *reply {
	return &reply{text: short(text, errorChars), failed: true}
}
