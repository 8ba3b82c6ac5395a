package secret

import (
	"encoding/base64"
	"strings"
)

// form is how a pattern writes a secret.
type form uint8

const (
	formRaw form = iota
	formStd      // base64, standard alphabet
	formURL      // base64, URL alphabet
)

// pattern is one way in which a text can hold a secret.
type pattern struct {
	text   string
	secret int // index of the secret
	length int // of the text that it writes, in bytes
	form   form
	align  int // base64: bytes before the text, modulo 3
}

// forms returns the patterns of a text: itself, and its base64 at the three
// alignments that it can have within a longer text, in both alphabets. A pattern
// has those characters only that the text determines alone: what stands before and
// after it shares up to 4 bits of its first and last byte.
func forms(secret int, text string) []pattern {
	list := []pattern{{text: text, secret: secret, length: len(text)}}
	if plus := strings.ReplaceAll(text, " ", "+"); plus != text { // as forms write a space
		list = append(list, pattern{text: plus, secret: secret, length: len(text)})
	}
	for align := range 3 {
		std := core(base64.RawStdEncoding, text, align)
		list = append(list, pattern{std, secret, len(text), formStd, align})
		if url := core(base64.RawURLEncoding, text, align); url != std {
			list = append(list, pattern{url, secret, len(text), formURL, align})
		}
	}
	return list
}

// core is the part of text's base64 that does not depend on its neighbours, if
// align bytes (modulo 3) come before it.
func core(enc *base64.Encoding, text string, align int) string {
	all := enc.EncodeToString(append(make([]byte, align, align+len(text)), text...))
	first := [3]int{0, 2, 3}[align]
	return all[first : (align+len(text))*8/6]
}

// automaton finds all patterns at once in time proportional to the text alone
// (Aho and Corasick, 1975). A position in it stands for the longest prefix of a
// pattern that was just read. Positions of short prefixes, where nearly all of a
// text is read, have a row in a table that says where each class of bytes leads; the many
// of long prefixes have a list of where it goes on, and where to go back to. It is immutable.
type automaton struct {
	class   [256]uint8
	width   uint32   // number of classes
	escapes uint8    // classes from here on are the characters that begin an escape
	rows    []uint32 // positions, with flagFound, by position (a multiple of width) + class
	nodes   []node   // of the positions from len(rows) on
	states  []state  // of all positions, see state
	list    []pattern
	longest int // bytes of the longest pattern
	soft    int // a prefix of so many bytes may be let through, see Filter
}

// node is a position of a long prefix.
type node struct {
	self    uint32 // its position, with flagFound
	back    uint32 // position of its longest proper suffix
	child   uint32 // position of the first that goes on, or 0
	sibling uint32 // position of the next that goes on from where this one does, or 0
	class   uint8  // that leads here
}

type state struct {
	depth   int32 // length of the prefix
	open    int32 // length of its longest suffix, itself included, with which a longer pattern goes on
	found   int32 // index of the pattern that it is, or -1
	shorter int32 // index of the state of its longest suffix that is a pattern, or -1
}

const (
	flagFound = 1 << 31
	rowDepth  = 2    // prefixes up to this length have rows,
	maxRows   = 4096 // as long as there are not more than this
)

func newAutomaton(list []pattern) *automaton {
	a := &automaton{list: list}
	a.classify()
	shortest := 1 << 20
	tree := []branch{{found: -1}}
	for i, p := range list {
		tree = insert(tree, i, p.text, &a.class)
		a.longest = max(a.longest, len(p.text))
		shortest = min(shortest, p.length)
	}
	if len(list) > 0 {
		a.soft = min(3, shortest/8)
	}
	a.build(tree)
	return a
}

// classify gives each byte that occurs in a pattern a class of its own, and one
// to all others. The escape characters come last.
func (a *automaton) classify() {
	var used [256]bool
	for _, p := range a.list {
		for i := range len(p.text) {
			used[p.text[i]] = true
		}
	}
	n := uint8(1)
	for b := range 256 {
		// Text without control characters has at most 213: see checkValue.
		if used[b] && b != '%' && b != '\\' {
			a.class[b] = n
			n++
		}
	}
	a.escapes = n
	a.class['%'], a.class['\\'] = n, n+1
	a.width = uint32(n) + 2
}

// branch is a prefix in the tree of all patterns; indices are into the tree.
type branch struct {
	child, sibling int32 // 0: none
	depth, found   int32
	class          uint8
}

func insert(tree []branch, index int, text string, class *[256]uint8) []branch {
	at := int32(0)
	for i := range len(text) {
		c := class[text[i]]
		next := tree[at].child
		for next != 0 && tree[next].class != c {
			next = tree[next].sibling
		}
		if next == 0 {
			next = int32(len(tree))
			tree = append(tree, branch{sibling: tree[at].child, depth: int32(i + 1), found: -1, class: c})
			tree[at].child = next
		}
		at = next
	}
	if tree[at].found < 0 {
		tree[at].found = int32(index)
	}
	return tree
}

// build numbers the tree breadth first, so that short prefixes come first, and
// adds the ways back.
func (a *automaton) build(tree []branch) {
	order := make([]int32, 1, len(tree))
	number := make([]uint32, len(tree)) // by branch: its place in order
	for i := 0; i < len(order); i++ {
		for c := tree[order[i]].child; c != 0; c = tree[c].sibling {
			number[c] = uint32(len(order))
			order = append(order, c)
		}
	}
	rows := 0
	for rows < len(order) && rows < maxRows && tree[order[rows]].depth <= rowDepth {
		rows++
	}
	a.rows = make([]uint32, rows*int(a.width))
	a.nodes = make([]node, len(order)-rows)
	a.states = make([]state, len(order))
	back := make([]uint32, len(order)) // positions
	for i, b := range order {
		br := &tree[b]
		suffix := a.index(back[i])
		st := state{depth: br.depth, open: br.depth, found: br.found, shorter: -1}
		if br.child == 0 {
			st.open = a.states[suffix].open // nothing comes after the whole
		}
		if i > 0 {
			if st.shorter = int32(suffix); a.states[suffix].found < 0 {
				st.shorter = a.states[suffix].shorter
			}
		}
		a.states[i] = st
		if i < rows {
			copy(a.rows[uint32(i)*a.width:][:a.width], a.rows[back[i]:][:a.width])
		} else {
			a.nodes[i-rows].back = back[i]
		}
		for c := br.child; c != 0; c = tree[c].sibling {
			child := number[c]
			if i > 0 {
				back[child] = a.step(back[i], tree[c].class) &^ flagFound
			}
			at := a.position(child)
			if int(child) >= rows {
				n := &a.nodes[int(child)-rows]
				n.self, n.class = at, tree[c].class
				if i >= rows {
					n.sibling, a.nodes[i-rows].child = a.nodes[i-rows].child, at
				}
			}
			if i < rows {
				a.rows[uint32(i)*a.width+uint32(tree[c].class)] = at
			}
		}
	}
	for i, at := range a.rows {
		a.rows[i] = a.flag(at)
	}
	for i := range a.nodes {
		a.nodes[i].self = a.flag(a.nodes[i].self)
	}
}

// flag marks a position at which a pattern ends.
func (a *automaton) flag(at uint32) uint32 {
	if st := a.states[a.index(at)]; st.found >= 0 || st.shorter >= 0 {
		return at | flagFound
	}
	return at
}

func (a *automaton) position(index uint32) uint32 {
	if rows := uint32(len(a.rows)) / a.width; index >= rows {
		return uint32(len(a.rows)) + index - rows
	}
	return index * a.width
}

// index is the place of a position in states.
func (a *automaton) index(at uint32) uint32 {
	if end := uint32(len(a.rows)); at >= end {
		return end/a.width + at - end
	}
	return at / a.width
}

// step is where a class leads from a position.
func (a *automaton) step(at uint32, class uint8) uint32 {
	end := uint32(len(a.rows))
	for at >= end {
		n := &a.nodes[at-end]
		for c := n.child; c != 0; {
			next := &a.nodes[c-end]
			if next.class == class {
				return next.self
			}
			c = next.sibling
		}
		at = n.back
	}
	return a.rows[at+uint32(class)]
}

// depth is the length of the prefix at a position.
func (a *automaton) depth(at uint32) int { return int(a.states[a.index(at)].depth) }

// open is how much of what was read at a position may yet become a pattern.
func (a *automaton) open(at uint32) int { return int(a.states[a.index(at)].open) }

// ends calls f for every pattern that ends at a position, longest first.
func (a *automaton) ends(at uint32, f func(*pattern)) {
	for s := int32(a.index(at)); s >= 0; s = a.states[s].shorter {
		if i := a.states[s].found; i >= 0 {
			f(&a.list[i])
		}
	}
}
