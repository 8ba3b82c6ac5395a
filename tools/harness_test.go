package tools

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Longest time that a test waits for something that must happen.
const soon = 20 * time.Second

// connection is a client made of raw lines.
type connection struct {
	t      *testing.T
	s      *Server
	boxes  *fakeBoxes
	log    *syncBuffer
	in     io.WriteCloser
	got    chan message
	cancel context.CancelFunc
	done   chan error
	later  []message // read while something else was awaited
}

// message is any line from the server.
type message struct {
	JSONRPC string          `json:"jsonrpc"`
	ID      json.RawMessage `json:"id"`
	Method  string          `json:"method"`
	Params  json.RawMessage `json:"params"`
	Result  json.RawMessage `json:"result"`
	Error   *struct {
		Code    int
		Message string
	} `json:"error"`
}

// toolResult is the result of a call.
type toolResult struct {
	Content []struct {
		Type, Text, Data, MimeType, URI string
	}
	Structured json.RawMessage `json:"structuredContent"`
	IsError    bool
	ResultType string
}

func (r toolResult) text() string { return r.Content[0].Text }

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// pipes starts a server and gives the client's ends of its streams.
func pipes(t *testing.T, o Options, change func(*Server)) (*connection, io.Reader) {
	t.Helper()
	c := &connection{t: t, log: &syncBuffer{}, done: make(chan error, 1), got: make(chan message, 10000)}
	if o.Sandboxes == nil {
		o.Sandboxes = newFakeBoxes()
	}
	c.boxes = o.Sandboxes.(*fakeBoxes)
	o.Logger = slog.New(slog.NewTextHandler(c.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c.s = New(o)
	if change != nil {
		change(c.s)
	}
	stdin, in := io.Pipe()
	out, stdout := io.Pipe()
	c.in = in
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	go func() {
		err := c.s.Serve(ctx, stdin, stdout)
		_ = stdout.Close()
		c.done <- err
		close(c.done)
	}()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the server's log:\n%s", c.log)
		}
		_ = in.Close()
		cancel()
		select {
		case <-c.done:
		case <-time.After(soon):
			t.Error("Serve did not return")
		}
	})
	return c, out
}

// dial starts a server and a raw client that has been initialized.
func dial(t *testing.T, o Options, change ...func(*Server)) *connection {
	t.Helper()
	c := dialRaw(t, o, change...)
	c.send(`{"jsonrpc":"2.0","id":"init","method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`)
	require.Nil(t, c.answer(`"init"`).Error)
	c.send(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	return c
}

func dialRaw(t *testing.T, o Options, change ...func(*Server)) *connection {
	t.Helper()
	c, out := pipes(t, o, func(s *Server) {
		for _, f := range change {
			f(s)
		}
	})
	go func() {
		defer close(c.got)
		r := bufio.NewReader(out)
		for {
			line, err := r.ReadBytes('\n')
			if err != nil {
				return
			}
			var m message
			if err := json.Unmarshal(line, &m); err != nil || m.JSONRPC != "2.0" {
				t.Errorf("stdout carries something else than MCP: %q", short(string(line), 200))
			}
			c.got <- m
		}
	}()
	return c
}

func (c *connection) send(line string) {
	c.t.Helper()
	_, err := io.WriteString(c.in, line+"\n")
	require.NoError(c.t, err)
}

func (c *connection) next() message {
	c.t.Helper()
	select {
	case m, ok := <-c.got:
		require.True(c.t, ok, "the server closed its output")
		return m
	case <-time.After(soon):
		c.t.Fatalf("no message from the server; log:\n%s", c.log)
	}
	return message{}
}

// answer waits for the answer to a request and keeps what comes before it.
func (c *connection) answer(id string) message {
	c.t.Helper()
	for i, m := range c.later {
		if string(m.ID) == id && m.Method == "" {
			c.later = append(c.later[:i:i], c.later[i+1:]...)
			return m
		}
	}
	for {
		m := c.next()
		if string(m.ID) == id && m.Method == "" {
			return m
		}
		c.later = append(c.later, m)
	}
}

// begin sends a call without waiting.
func (c *connection) begin(id int, tool, args string) {
	c.t.Helper()
	c.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":%q,"arguments":%s}}`, id, tool, args))
}

func (c *connection) end(id int) toolResult {
	c.t.Helper()
	m := c.answer(fmt.Sprint(id))
	require.Nil(c.t, m.Error, "JSON-RPC error")
	var r toolResult
	require.NoError(c.t, json.Unmarshal(m.Result, &r))
	require.NotEmpty(c.t, r.Content)
	return r
}

var callIDs = 1000

// call makes a call and waits for its result.
func (c *connection) call(tool, args string) toolResult {
	c.t.Helper()
	callIDs++
	c.begin(callIDs, tool, args)
	return c.end(callIDs)
}

func decodeAs[T any](t *testing.T, r toolResult) T {
	t.Helper()
	var v T
	require.NoError(t, json.Unmarshal(r.Structured, &v), "structured content")
	return v
}

// quote makes a JSON string.
func quote(s string) string {
	data, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(data)
}

// wait fails the test when ch stays silent.
func wait[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(soon):
		t.Fatalf("waited too long for %s", what)
	}
	panic("unreachable")
}

var discardLog = slog.New(slog.DiscardHandler)
