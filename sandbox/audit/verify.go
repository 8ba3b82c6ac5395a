package audit

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"
)

// State is how the record of a session ends.
type State string

// The states.
const (
	StateClosed     State = "closed"
	StateRunning    State = "running"
	StateUnfinished State = "unfinished" // the process was killed, or the end was cut off
)

// Result is what Verify found of one session.
type Result struct {
	Session string    `json:"session"`
	State   State     `json:"state"`
	Files   int       `json:"files"`
	Records uint64    `json:"records"`           // that are there
	Removed uint64    `json:"removed,omitempty"` // that were removed to make room, as the record says
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Hash    string    `json:"hash"`              // of the last line
	Problem string    `json:"problem,omitempty"` // where the chain is broken; empty when it holds
}

// Verify checks every record in dir. Its error is that they cannot be read; what is wrong with
// one is in its Result.
func Verify(dir string) ([]Result, error) {
	all, err := list(dir)
	if err != nil {
		return nil, err
	}
	var results []Result
	for _, s := range all {
		results = append(results, s.verify(dir))
	}
	return results, nil
}

// checker walks along one chain.
type checker struct {
	Result
	started bool
	seq     uint64
	head    string
	from    Removed            // what the first line that is there says of the one before it
	removed map[uint64]Removed // parts that were removed, by their last line
	ended   bool
}

func (s *stored) verify(dir string) Result {
	c := &checker{Result: Result{Session: s.session, State: StateUnfinished, Files: len(s.numbers)}, removed: map[uint64]Removed{}}
	running := s.running(dir)
	for i, n := range s.numbers {
		name := fileName(s.session, n)
		number := 0
		_, torn, err := eachLine(filepath.Join(dir, name), 0, func(line []byte) error {
			number++
			if problem := c.line(line); problem != "" {
				return fmt.Errorf("%s:%d: %s", name, number, problem)
			}
			return nil
		})
		if err == nil && torn && (i < len(s.numbers)-1 || !running) {
			err = fmt.Errorf("%s:%d: the line is cut off", name, number+1)
		}
		if err != nil {
			c.Problem = err.Error()
			return c.Result
		}
	}
	if c.from.Seq > 0 {
		if r, ok := c.removed[c.from.Seq]; !ok || r.Hash != c.from.Hash {
			c.Problem = fmt.Sprintf("the first %d records are missing, and nothing says that they were removed to make room", c.from.Seq)
			return c.Result
		}
		c.Removed = c.from.Seq
	}
	switch {
	case c.ended:
		c.State = StateClosed
	case running:
		c.State = StateRunning
	}
	return c.Result
}

// line checks one line, or says what is wrong.
func (c *checker) line(line []byte) string {
	var r Record
	if err := json.Unmarshal(line, &r); err != nil {
		return "this is no audit record"
	}
	if !c.started {
		c.started, c.First = true, r.Time
		if r.Seq > 1 {
			c.from = Removed{Seq: r.Seq - 1, Hash: r.Prev}
		} else if r.Prev != genesis {
			return "the first record refers to another one before it"
		}
		c.seq, c.head = max(r.Seq, 1)-1, r.Prev
	}
	switch {
	case c.ended:
		return "a record follows the end"
	case r.Session != c.Session:
		return "the record is of another session"
	case r.Seq != c.seq+1:
		return fmt.Sprintf("the record has the number %d, and %d should follow: records are missing or were put in", r.Seq, c.seq+1)
	case r.Prev != c.head:
		return fmt.Sprintf("the record %d before it is not the one that was written", c.seq)
	}
	if r.Removed != nil {
		c.removed[r.Removed.Seq] = *r.Removed
	}
	c.seq, c.head = r.Seq, hash(line)
	c.Records, c.Last, c.Hash = c.Records+1, r.Time, c.head
	c.ended = r.Kind == KindLog && r.Detail == detailEnd
	return ""
}
