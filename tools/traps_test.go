package tools

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

// blocking are commands that say that they run and end when told or cancelled.
type blocking struct {
	began   chan string
	release chan struct{}
	ended   chan error
}

func newBlocking() *blocking {
	return &blocking{began: make(chan string, 200), release: make(chan struct{}), ended: make(chan error, 200)}
}

func (b *blocking) run(ctx context.Context, cmd sandbox.Command) (sandbox.Exit, error) {
	b.began <- cmd.Shell
	var err error
	select {
	case <-b.release:
	case <-ctx.Done():
		err = ctx.Err()
	}
	b.ended <- err
	return sandbox.Exit{}, err
}

func TestSixtyFourSlowCallsNeverDelayAQuickOneAndOneMoreIsToldSo(t *testing.T) {
	b := newBlocking()
	c := dial(t, withRun(b.run))
	for i := range 64 {
		c.begin(i, "exec", fmt.Sprintf(`{"command":"slow %d"}`, i))
	}
	for range 64 {
		wait(t, b.began, "slow calls to begin")
	}
	// None of the slow ones can end, so whatever is answered did not wait for them.
	for range 40 {
		assert.False(t, c.call("write_file", `{"path":"/f","content":"x"}`).IsError)
	}
	assert.False(t, c.call("exec", `{"command":"bg","background":true}`).IsError)
	r := c.call("exec", `{"command":"one more"}`)
	assert.True(t, r.IsError)
	assert.Contains(t, r.text(), "too many calls under way: 64 long calls")
	close(b.release)
	for i := range 64 {
		assert.False(t, c.end(i).IsError)
	}
	assert.False(t, c.call("exec", `{"command":"again"}`).IsError)
}

func TestManyQuickCallsAtOnceAreBoundedToo(t *testing.T) {
	boxes := newFakeBoxes()
	making := make(chan struct{})
	boxes.create = func(ctx context.Context, _ SessionOptions) error {
		select {
		case <-making:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c := dial(t, Options{Sandboxes: boxes, MaxQuick: 4})
	for i := range 10 {
		c.begin(i, "write_file", `{"path":"/f","content":"x"}`)
	}
	refused := 0
	for range 6 {
		m := c.next()
		assert.Contains(t, string(m.Result), "too many calls under way")
		refused++
	}
	close(making)
	for range 4 {
		assert.NotContains(t, string(c.next().Result), "isError")
	}
	assert.Equal(t, 6, refused)
}

func TestACancelledCallIsCancelledInTheGuestAndAnsweredOnce(t *testing.T) {
	b := newBlocking()
	c := dial(t, withRun(b.run))
	c.begin(7, "exec", `{"command":"slow"}`)
	wait(t, b.began, "the call to begin")
	for range 3 {
		c.send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}`)
	}
	require.ErrorIs(t, wait(t, b.ended, "the command to end"), context.Canceled)
	r := c.end(7)
	assert.True(t, r.IsError)
	assert.Contains(t, r.text(), "cancelled")
	c.send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}`)
	c.send(`{"jsonrpc":"2.0","id":8,"method":"ping"}`)
	for _, m := range append(c.later, c.next()) {
		assert.NotEqual(t, "7", string(m.ID), "a second answer")
	}
}

func TestACallThatIsCancelledBeforeItBeginsNeverRuns(t *testing.T) {
	var ran atomic.Int32
	c := dial(t, withRun(func(context.Context, sandbox.Command) (sandbox.Exit, error) {
		ran.Add(1)
		return sandbox.Exit{}, nil
	}))
	c.call("write_file", `{"path":"/f","content":""}`) // the session is there
	// The call stands in the queue when the cancellation arrives: nothing takes it
	// from the table of requests before that.
	const key = "n:3"
	require.NoError(t, c.s.requests.add(key, 1))
	c.s.requests.cancel(key)
	answer := c.s.mcp.HandleMessage(t.Context(), []byte(`{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"exec","arguments":{"command":"x"}}}`))
	data, err := json.Marshal(answer)
	require.NoError(t, err)
	assert.Contains(t, string(data), "cancelled before it began")
	assert.True(t, c.s.requests.finish(key))
	assert.Zero(t, ran.Load())

	// Over the wire either order may win, but every call is answered exactly once
	// and a cancellation is never lost, though it always follows on the heels.
	b := newBlocking()
	c.boxes.session("vm-1").run = b.run
	for i := 100; i < 160; i++ {
		c.begin(i, "exec", `{"command":"x"}`)
		c.send(fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%d}}`, i))
	}
	seen := map[string]int{}
	for range 60 {
		m := c.next()
		seen[string(m.ID)]++
		assert.Contains(t, string(m.Result), "cancelled")
	}
	assert.Len(t, seen, 60)
}

func TestIdsOfDifferentKindsAreDifferentAndOneInUseIsRefused(t *testing.T) {
	b := newBlocking()
	c := dial(t, withRun(b.run))
	c.begin(1, "exec", `{"command":"number"}`)
	c.send(`{"jsonrpc":"2.0","id":"1","method":"tools/call","params":{"name":"exec","arguments":{"command":"string"}}}`)
	wait(t, b.began, "both")
	wait(t, b.began, "both")
	c.send(`{"jsonrpc":"2.0","id":1,"method":"ping"}`)
	m := c.answer("1")
	require.NotNil(t, m.Error)
	assert.Contains(t, m.Error.Message, "still under way")
	c.send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"1"}}`)
	assert.Contains(t, string(c.answer(`"1"`).Result), "cancelled")
	close(b.release)
	assert.False(t, c.end(1).IsError)
}

func TestReadingAResourceCanBeCancelledToo(t *testing.T) {
	c := dial(t, Options{})
	c.call("exec", `{"command":"server","background":true}`)
	mute := make(chan string, 1)
	c.boxes.session("vm-1").mute = mute
	c.send(`{"jsonrpc":"2.0","id":"r","method":"resources/read","params":{"uri":"gondolin://session/vm-1/job/job-1/output"}}`)
	wait(t, mute, "the read")
	c.send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"r"}}`)
	m := c.answer(`"r"`)
	require.NotNil(t, m.Error)
	assert.Contains(t, m.Error.Message, "canceled")
}

func TestABurstOfOutputNeverLosesTheResultAndProgressStaysRare(t *testing.T) {
	ticks := make(chan time.Time)
	proceed := make(chan struct{})
	opts := withRun(func(_ context.Context, cmd sandbox.Command) (sandbox.Exit, error) {
		for i := range 20000 {
			fmt.Fprintf(cmd.Stdout, "step %d\r\n", i)
		}
		for range 150 { // more than mcp-go's channel of notifications holds
			ticks <- time.Now()
		}
		<-proceed
		return sandbox.Exit{}, nil
	})
	var every time.Duration
	c := dial(t, opts, func(s *Server) {
		s.ticker = func(d time.Duration) (<-chan time.Time, func()) {
			every = d
			return ticks, func() {}
		}
	})
	c.send(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"exec","arguments":{"command":"x"},"_meta":{"progressToken":"tok"}}}`)
	var last float64
	for i := range 150 {
		m := c.next()
		require.Equal(t, "notifications/progress", m.Method)
		var p struct {
			ProgressToken string
			Progress      float64
			Message       string
		}
		require.NoError(t, json.Unmarshal(m.Params, &p))
		assert.Equal(t, "tok", p.ProgressToken)
		assert.Greater(t, p.Progress, last)
		assert.Contains(t, p.Message, "step 19999", i)
		last = p.Progress
	}
	close(proceed)
	m := c.next()
	assert.Equal(t, "1", string(m.ID), "the result comes after all progress")
	assert.GreaterOrEqual(t, every, 100*time.Millisecond, "at most ten a second")
}

func TestNoProgressWithoutAToken(t *testing.T) {
	c := dial(t, withRun(func(_ context.Context, cmd sandbox.Command) (sandbox.Exit, error) {
		_, _ = io.WriteString(cmd.Stdout, "x\n")
		return sandbox.Exit{}, nil
	}), func(s *Server) {
		s.ticker = func(time.Duration) (<-chan time.Time, func()) {
			t.Error("a ticker without a token")
			return nil, func() {}
		}
	})
	c.call("exec", `{"command":"x"}`)
}

func TestAPanicInAToolIsAnErrorAndLoggedAndTheServerGoesOn(t *testing.T) {
	c := dial(t, withRun(func(context.Context, sandbox.Command) (sandbox.Exit, error) { panic("boom") }))
	r := c.call("exec", `{"command":"x"}`)
	assert.True(t, r.IsError)
	assert.Contains(t, r.text(), "mistake in this server")
	assert.NotContains(t, r.text(), "boom")
	assert.Contains(t, c.log.String(), "boom")
	assert.False(t, c.call("list_files", `{}`).IsError)
}

func TestServeEndsWithItsInputAndCancelsWhatRuns(t *testing.T) {
	b := newBlocking()
	c := dial(t, withRun(b.run))
	c.begin(1, "exec", `{"command":"slow"}`)
	wait(t, b.began, "the call")
	require.NoError(t, c.in.Close())
	require.ErrorIs(t, wait(t, b.ended, "the command to end"), context.Canceled)
	assert.NoError(t, wait(t, c.done, "Serve"))
}

func TestServeEndsWithItsContextThoughTheClientNeitherWritesNorReads(t *testing.T) {
	b := newBlocking()
	c, _ := pipes(t, withRun(b.run), nil)
	c.begin(1, "exec", `{"command":"slow"}`)
	wait(t, b.began, "the call")
	c.cancel()
	require.ErrorIs(t, wait(t, b.ended, "the command to end"), context.Canceled)
	assert.ErrorIs(t, wait(t, c.done, "Serve"), context.Canceled)
}

func TestOnlyOneServeAtATime(t *testing.T) {
	c := dial(t, Options{})
	err := New(Options{Sandboxes: newFakeBoxes()}).Serve(t.Context(), strings.NewReader(""), io.Discard)
	assert.ErrorContains(t, err, "another MCP server")
	assert.False(t, c.call("list_files", `{}`).IsError)
}
