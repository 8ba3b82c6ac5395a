package tools

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
)

// patience is how long the end of a connection waits for a stream that does not
// move before it gives the stream up.
const patience = 2 * time.Second

// front stands between the client's two streams and mcp-go. See the package doc
// for why it exists.
type front struct {
	requests *requests
	in       io.Reader
	out      io.Writer
	maxLine  int
	log      *slog.Logger
	fail     context.CancelCauseFunc // ends the connection

	toServer *io.PipeWriter
	server   *io.PipeReader

	lines    chan outLine
	gone     chan struct{} // closed when answers have nowhere to go any more
	giveUp   sync.Once
	timer    *time.Timer // closes gone some time after the end began
	timerMu  sync.Mutex
	readDone chan struct{}
	disarm   func() bool // forgets the end of ctx
	writers  sync.WaitGroup

	askedMu sync.Mutex
	asked   map[string]bool // requests of ours that the client has not answered
}

type outLine struct {
	data []byte
	done chan error
}

var errGone = errors.New("the client reads no more")

func newFront(r *requests, in io.Reader, out io.Writer, maxLine int, log *slog.Logger, fail context.CancelCauseFunc) *front {
	f := &front{
		requests: r, in: in, out: out, maxLine: maxLine, log: log, fail: fail,
		lines:    make(chan outLine),
		gone:     make(chan struct{}),
		readDone: make(chan struct{}),
		asked:    make(map[string]bool),
	}
	f.server, f.toServer = io.Pipe()
	return f
}

// messages is what mcp-go reads: the client's lines that passed.
func (f *front) messages() io.Reader { return f.server }

// start begins to read and to write. stop ends both.
func (f *front) start(ctx context.Context) {
	f.writers.Go(f.writeLines)
	go func() {
		defer close(f.readDone)
		err := f.readLines()
		f.beginEnd()
		f.toServer.CloseWithError(err)
	}()
	f.disarm = context.AfterFunc(ctx, func() {
		f.beginEnd()
		// mcp-go leaves a goroutine in a read of this pipe when ctx ends.
		f.server.CloseWithError(io.EOF)
		unblock(f.in)
	})
}

// beginEnd starts the clock for a client that neither writes nor reads.
func (f *front) beginEnd() {
	f.timerMu.Lock()
	defer f.timerMu.Unlock()
	if f.timer == nil {
		f.timer = time.AfterFunc(patience, f.abandon)
	}
}

func (f *front) abandon() { f.giveUp.Do(func() { close(f.gone) }) }

// stop returns when both loops have ended or have been given up.
func (f *front) stop() {
	f.disarm()
	f.beginEnd()
	f.server.CloseWithError(io.EOF)
	select {
	case <-f.readDone:
	default:
		unblock(f.in)
		select {
		case <-f.readDone:
		case <-f.gone:
		}
	}
	f.abandon()
	f.timerMu.Lock()
	f.timer.Stop()
	f.timerMu.Unlock()
	f.requests.clear()

	written := make(chan struct{})
	go func() { f.writers.Wait(); close(written) }()
	select {
	case <-written:
	case <-time.After(patience):
		unblock(f.out)
	}
}

// unblock ends a blocked read or write where the stream allows it.
func unblock(stream any) {
	if d, ok := stream.(interface{ SetDeadline(time.Time) error }); ok && d.SetDeadline(time.Unix(1, 0)) == nil {
		return
	}
	if c, ok := stream.(io.Closer); ok {
		_ = c.Close()
	}
}

// readLines passes the client's messages on until the input ends.
func (f *front) readLines() error {
	r := bufio.NewReaderSize(f.in, 64<<10)
	for {
		line, long, err := readLine(r, f.maxLine)
		switch {
		case long:
			f.refuse(idOfCut(line), mcp.INVALID_REQUEST, "message is longer than the most that this server reads; send large content in parts")
		case len(line) > 0:
			if line = bytes.TrimSpace(line); len(line) > 0 && f.admit(line) {
				if _, err := f.toServer.Write(append(line, '\n')); err != nil {
					return io.EOF // mcp-go has stopped
				}
			}
		}
		if err != nil {
			return err
		}
	}
}

// envelope is what front looks at in a message of either direction.
type envelope struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
	Result json.RawMessage `json:"result"`
	Error  json.RawMessage `json:"error"`
	Params json.RawMessage `json:"params"`
}

// admit judges one line and says whether mcp-go gets to see it.
func (f *front) admit(line []byte) bool {
	if !json.Valid(line) {
		f.refuse(nil, mcp.PARSE_ERROR, "not a JSON text; send one JSON-RPC message a line")
		return false
	}
	if line[0] != '{' {
		f.refuse(nil, mcp.INVALID_REQUEST, "not a JSON object; send one JSON-RPC message a line, no batches")
		return false
	}
	var m envelope
	// Fields of a wrong type stay empty; mcp-go finds the words for them.
	_ = json.Unmarshal(line, &m)
	hasID := len(m.ID) > 0
	if m.Method == "" {
		if hasID && (len(m.Result) > 0 || len(m.Error) > 0) {
			return f.answered(m.ID)
		}
		f.refuse(m.ID, mcp.INVALID_REQUEST, "method must be a non-empty string")
		return false
	}
	if !hasID {
		return f.noted(m)
	}
	key, err := rawKey(m.ID)
	if err != nil {
		f.refuse(m.ID, mcp.INVALID_REQUEST, err.Error())
		return false
	}
	if err := f.requests.add(key, len(line)); err != nil {
		f.refuse(m.ID, mcp.INVALID_REQUEST, err.Error())
		return false
	}
	return true
}

// noted deals with a notification. mcp-go would answer one that it cannot read,
// and takes "1" for 1 when it cancels: cancellations end here, since all that
// can take time has its context from the table of requests.
func (f *front) noted(m envelope) bool {
	if len(m.Params) > 0 && m.Params[0] != '{' && string(m.Params) != "null" {
		f.log.Warn("notification without readable params", "method", short(m.Method, 60))
		return false
	}
	if m.Method == string(mcp.MethodNotificationCancelled) {
		var p struct {
			RequestID json.RawMessage `json:"requestId"`
		}
		_ = json.Unmarshal(m.Params, &p)
		if key, err := rawKey(p.RequestID); err == nil {
			f.requests.cancel(key)
		}
		return false
	}
	return true
}

// answered says whether the client's response answers a request of ours.
// mcp-go would answer a stray one, under an id that may be the client's own.
func (f *front) answered(id json.RawMessage) bool {
	f.askedMu.Lock()
	defer f.askedMu.Unlock()
	if !f.asked[string(id)] {
		f.log.Debug("response to no request", "id", string(id[:min(len(id), 64)]))
		return false
	}
	delete(f.asked, string(id))
	return true
}
