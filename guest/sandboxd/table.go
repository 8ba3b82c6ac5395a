//go:build linux

package sandboxd

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// Bounds of the process table.
const (
	maxRunning  = 1024
	maxEnded    = 64       // ended processes that are kept for their output
	maxEndedMem = 64 << 20 // bytes of output that they keep
)

// table holds the processes that run and the ended ones whose output may still
// be asked for.
type table struct {
	groups  cgroups
	trusted atomic.Pointer[[]string] // trustEnv, once there is a session's authority
	door    door

	mu    sync.Mutex
	next  uint64
	procs map[uint64]*process
	ended []*process // oldest first
}

func newTable() *table { return &table{procs: map[uint64]*process{}} }

// start spawns a process and enters it.
func (t *table) start(req *wire.Start) (*process, *wire.Error) {
	if req.Detach && !req.Retain {
		return nil, &wire.Error{Code: wire.CodeInvalid, Msg: "a detached process must be retained"}
	}
	t.mu.Lock()
	running := len(t.procs) - len(t.ended)
	t.mu.Unlock()
	if running >= maxRunning {
		return nil, &wire.Error{Code: wire.CodeLimit, Msg: fmt.Sprintf("%d commands run already; wait for some or stop them", running)}
	}
	if env := t.trusted.Load(); env != nil {
		req.Env = append(slices.Clone(*env), req.Env...)
	}
	p, werr := t.spawn(req)
	if werr != nil {
		return nil, werr
	}
	t.mu.Lock()
	t.next++
	p.id = t.next
	t.procs[p.id] = p
	t.mu.Unlock()
	go t.retire(p)
	return p, nil
}

// spawn starts a process as soon as the door is open.
func (t *table) spawn(req *wire.Start) (*process, *wire.Error) {
	if !t.door.enter() {
		return nil, badRequest("the session was copied before the command began; it runs in the one that was asked")
	}
	defer t.door.leave()
	return spawn(req, &t.groups)
}

// retire moves a process to the ended ones and lets the oldest of these go.
func (t *table) retire(p *process) {
	<-p.done
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.procs[p.id] == nil {
		return
	}
	t.ended = append(t.ended, p)
	var mem int64
	for _, e := range t.ended {
		mem += e.spool.held()
	}
	for len(t.ended) > 1 && (len(t.ended) > maxEnded || mem > maxEndedMem) {
		mem -= t.ended[0].spool.held()
		t.forgetLocked(t.ended[0])
	}
}

// forget removes a process; one that runs goes on without a reader.
func (t *table) forget(p *process) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forgetLocked(p)
}

func (t *table) forgetLocked(p *process) {
	delete(t.procs, p.id)
	t.ended = slices.DeleteFunc(t.ended, func(e *process) bool { return e == p })
	p.spool.abandon()
}

func (t *table) get(id uint64) (*process, *wire.Error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.procs[id]; p != nil {
		return p, nil
	}
	return nil, &wire.Error{Code: wire.CodeNoJob, Msg: fmt.Sprintf("no process %d: it ended and was not retained, or newer ended ones pushed it out", id)}
}

func (t *table) list() []wire.Job {
	t.mu.Lock()
	defer t.mu.Unlock()
	jobs := make([]wire.Job, 0, len(t.procs))
	for _, p := range t.procs {
		jobs = append(jobs, p.job())
	}
	slices.SortFunc(jobs, func(a, b wire.Job) int { return int(int64(a.ID) - int64(b.ID)) })
	return jobs
}

func (p *process) job() wire.Job {
	j := wire.Job{ID: p.id, Command: p.label, StartedUS: p.started.UnixMicro(), Output: p.spool.position(), Retained: p.retain}
	select {
	case <-p.done:
		exit := p.exit
		j.Exit = &exit
	default:
	}
	return j
}

// attach sends a process's output from offset on to the stream and at last its
// exit. A second attach of the same process waits for the first to end, which
// it does at the latest when its connection breaks.
func (t *table) attach(p *process, offset int64, stream net.Conn) {
	stop, seen := make(chan struct{}), false
	go func() {
		defer close(stop)
		for {
			n, err := wire.ReadAck(stream)
			if err != nil {
				return
			}
			if n == wire.EndSeen {
				seen = true
				return
			}
			p.spool.ack(n)
		}
	}()
	select {
	case p.attached <- struct{}{}:
		defer func() { <-p.attached }()
	case <-stop:
		return
	}
	pos := offset
	for {
		e := p.spool.next(pos, stop)
		if e == nil {
			break
		}
		chunk := e.chunk
		if skip := max(pos-e.off, 0); skip > 0 {
			chunk = wire.NewChunk(len(e.chunk.Payload()))
			chunk.Append(e.chunk.Payload()[skip:])
		}
		pos = e.end()
		if chunk.WriteTo(stream, e.kind) != nil {
			return
		}
	}
	select {
	case <-stop:
		return
	case <-p.done:
	}
	if wire.WriteEnd(stream, p.exit) != nil {
		return
	}
	<-stop
	if seen && !p.retain {
		t.forget(p)
	}
}

// output answers wire.Output.
func (p *process) output(req *wire.Output, stop <-chan struct{}) wire.OutputChunk {
	limit := min(max(req.Max, 1), wire.MaxOutput)
	data, first := p.spool.copyFrom(req.Offset, limit, time.Duration(max(req.WaitMS, 0))*time.Millisecond, stop)
	return wire.OutputChunk{Data: data, Offset: first, Job: p.job()}
}
