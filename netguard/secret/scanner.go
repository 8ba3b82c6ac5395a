package secret

// A scanner reads a stream in several ways at once and reports every pattern in
// every one of them: as it stands, and with percent and JSON escapes undone, once
// and twice, in either order. As long as there is no escape all readings are the
// same and one state serves them all. A character that begins an escape starts
// another reading, which ends as soon as it agrees again with the one that it came
// from.
type scanner struct {
	a   *automaton
	hit func(p *pattern, start, end int64, escaped bool) // escaped: percent escapes were undone

	pos      int64               // bytes read
	at       uint32              // position of the plain reading in the automaton
	live     uint8               // bit i: readings[i] is going on
	readings [len(tree)]lane     // the first is the plain one; only its place is used
	symbols  [len(tree)][]symbol // scratch space of each
}

// tree lists the readings: each undoes one kind of escape in what its parent
// reads. Parents come first.
var tree = [...]struct {
	parent  int
	kind    byte
	percent bool // percent escapes have been undone, here or above
}{{}, {0, '%', true}, {0, '\\', false}, {1, '%', true}, {1, '\\', true}, {2, '%', true}, {2, '\\', false}}

// children finds the reading that an escape character starts.
var children = [len(tree)][2]int{{1, 2}, {3, 4}, {5, 6}}

// lane is one reading other than the plain one.
type lane struct {
	decoder decoder
	at      uint32
	fork    int64   // before here, a symbol is a byte
	starts  []int64 // of the symbols read since, the latest ones at least
}

// scan reads on.
func (s *scanner) scan(data []byte) {
	for i := 0; i < len(data); i++ {
		if s.live == 0 {
			i += s.fast(data[i:])
			if i == len(data) {
				return
			}
		}
		s.pos++
		s.feed(0, symbol{data[i], s.pos - 1, s.pos})
		s.settle()
	}
}

// fast reads up to an escape.
func (s *scanner) fast(data []byte) int {
	a, at := s.a, s.at
	rows, escapes := a.rows, a.escapes
	for i, b := range data {
		c := a.class[b]
		if c >= escapes {
			s.at = at
			s.pos += int64(i)
			return i
		}
		if at < uint32(len(rows)) {
			at = rows[at+uint32(c)]
		} else {
			at = a.step(at, c)
		}
		if at&flagFound != 0 {
			at &^= flagFound
			end := s.pos + int64(i) + 1
			a.ends(at, func(p *pattern) { s.hit(p, end-int64(len(p.text)), end, false) })
		}
	}
	s.at = at
	s.pos += int64(len(data))
	return len(data)
}

// place is where reading i is in the automaton.
func (s *scanner) place(i int) *uint32 {
	if i == 0 {
		return &s.at
	}
	return &s.readings[i].at
}

// feed gives one symbol to reading i and to those that come from it.
func (s *scanner) feed(i int, in symbol) {
	if in.b == '%' {
		s.begin(children[i][0], in)
	} else if in.b == '\\' {
		s.begin(children[i][1], in)
	}
	for _, c := range children[i] {
		if s.live&(1<<c) != 0 {
			s.symbols[c] = s.readings[c].decoder.push(in, s.symbols[c][:0])
			for _, out := range s.symbols[c] {
				s.feed(c, out)
			}
		}
	}
	at := s.place(i)
	*at = s.a.step(*at, s.a.class[in.b])
	if i > 0 {
		s.note(&s.readings[i], in.start)
	}
	if *at&flagFound != 0 {
		*at &^= flagFound
		s.a.ends(*at, func(p *pattern) { s.hit(p, s.start(i, len(p.text)), in.end, tree[i].percent) })
	}
}

// begin starts reading i where its parent is now, before the symbol in.
func (s *scanner) begin(i int, in symbol) {
	if i == 0 || s.live&(1<<i) != 0 {
		return
	}
	s.live |= 1 << i
	parent, l := tree[i].parent, &s.readings[i]
	l.decoder.kind, l.at = tree[i].kind, *s.place(parent)
	l.fork, l.starts = in.start, l.starts[:0]
	if parent > 0 {
		p := &s.readings[parent]
		l.fork, l.starts = p.fork, append(l.starts, p.starts...)
	}
}

func (s *scanner) note(l *lane, start int64) {
	l.starts = append(l.starts, start)
	if most := 2 * (s.a.longest + 64); len(l.starts) > most {
		l.starts = append(l.starts[:0], l.starts[len(l.starts)-s.a.longest:]...)
	}
}

// start is where in the source the last n symbols of reading i begin.
func (s *scanner) start(i, n int) int64 {
	l := &s.readings[i]
	switch have := len(l.starts); {
	case i == 0 || n == 0:
		return s.pos - int64(n)
	case n > have:
		return l.fork - int64(n-have)
	default:
		return l.starts[have-n]
	}
}

func (s *scanner) depth(i int) int { return s.a.depth(*s.place(i)) }

// settle ends the readings that agree with their parents: in the state, and in
// where what they have begun to find begins.
func (s *scanner) settle() {
	for i := len(tree) - 1; i > 0; i-- {
		if s.live&(1<<i) == 0 || len(s.readings[i].decoder.pending) > 0 {
			continue
		}
		if c := children[i]; c[0] != 0 && s.live&(1<<c[0]|1<<c[1]) != 0 {
			continue
		}
		parent := tree[i].parent
		if s.readings[i].at != *s.place(parent) {
			continue
		}
		if d := s.depth(i); d == 0 || s.start(i, d) == s.start(parent, d) {
			s.live &^= 1 << i
		}
	}
}

// finish reads on as if the stream ended: the beginning of an escape is none.
func (s *scanner) finish() {
	for i := 1; i < len(tree); i++ {
		if s.live&(1<<i) != 0 {
			for _, out := range s.readings[i].decoder.finish(nil) {
				s.feed(i, out)
			}
		}
	}
}

// held is where the earliest beginning of what may become a pattern starts.
// Beginnings of at most soft symbols do not count.
func (s *scanner) held(soft int) int64 {
	from := s.pos
	for i := range tree {
		if i > 0 && s.live&(1<<i) == 0 {
			continue
		}
		d := s.a.open(*s.place(i))
		if d > soft {
			from = min(from, s.start(i, d))
		}
		if p := s.readings[i].decoder.pending; len(p) > 0 && (d > soft || soft == 0) {
			from = min(from, p[0].start)
		}
	}
	return from
}
