package tools

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"
)

// Server offers the tools to MCP clients. It serves one connection at a time.
type Server struct {
	opts Options
	log  *slog.Logger
	mcp  *server.MCPServer

	long, quick chan struct{} // places of the gate
	requests    *requests     // what the client waits for
	sessions    defaultSession
	roots       clientRoots
	rootsWait   time.Duration
	questions   questions
	askWait     time.Duration
	ticker      func(time.Duration) (<-chan time.Time, func())

	mu    sync.Mutex
	front *front          // while Serve runs
	life  context.Context // ends with the connection; nil outside of one
	owned sync.WaitGroup  // goroutines that outlive the call that began them
}

// errNotServing tells a call that reached the server outside of a connection.
var errNotServing = errors.New("the server is shutting down")

// serving is true while a Serve runs in this process: mcp-go keeps the state of
// its stdio session in a package variable, so two at once would mix.
var serving atomic.Bool

// New makes a server. It starts nothing.
func New(o Options) *Server {
	o = o.withDefaults()
	s := &Server{
		opts:      o,
		log:       o.Logger,
		long:      make(chan struct{}, o.MaxLong),
		quick:     make(chan struct{}, o.MaxQuick),
		requests:  newRequests(o.MaxUnderWay, 4*int64(o.MaxMessage)),
		rootsWait: rootsWait,
		askWait:   askWait,
		ticker: func(d time.Duration) (<-chan time.Time, func()) {
			t := time.NewTicker(d)
			return t.C, t.Stop
		},
	}
	hooks := &server.Hooks{}
	hooks.AddBeforeCallTool(func(_ context.Context, id any, r *mcp.CallToolRequest) {
		// The only way in mcp-go for a handler to learn the id of its request.
		r.Header.Set(requestHeader, decodedKey(id))
	})
	hooks.AddBeforeReadResource(func(_ context.Context, id any, r *mcp.ReadResourceRequest) {
		r.Header.Set(requestHeader, decodedKey(id))
	})
	s.mcp = server.NewMCPServer("gondolin", o.Version,
		server.WithTitle("Gondolin sandbox"),
		server.WithDescription("Runs commands and edits files in a virtual machine that belongs to this session alone."),
		server.WithInstructions(instructions(o)),
		server.WithToolCapabilities(false),
		server.WithResourceCapabilities(false, false),
		server.WithRecovery(),
		server.WithResourceRecovery(),
		server.WithOutputSchemaValidation(),
		server.WithHooks(hooks),
	)
	s.questions.reset()
	s.addTools()
	s.addResources()
	s.watchRoots()
	return s
}

// Attach binds the server to the life of a connection that some other transport
// serves, and returns what that transport needs. The caller calls end once,
// after the last request was answered; it waits for what the calls began.
func (s *Server) Attach(ctx context.Context) (m *server.MCPServer, end func()) {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	s.life = ctx
	s.mu.Unlock()
	return s.mcp, func() {
		cancel()
		s.mu.Lock()
		s.life = nil
		s.mu.Unlock()
		s.owned.Wait()
		s.roots.reset()
		s.questions.reset()
		s.sessions.reset()
	}
}

// Serve speaks MCP over two streams, one message a line, until stdin ends
// (then it returns nil), ctx ends, or stdout cannot be written. Calls under way
// are cancelled and waited for before it returns.
func (s *Server) Serve(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	if !serving.CompareAndSwap(false, true) {
		return errors.New("another MCP server on standard input and output runs in this process")
	}
	defer serving.Store(false)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	f := newFront(s.requests, stdin, stdout, s.opts.MaxMessage, s.log, cancel)
	s.setFront(f)
	defer s.setFront(nil)
	_, end := s.Attach(ctx)
	// Order matters: first nothing new can begin, then what runs ends, and only
	// then is the writer taken away from under late answers.
	defer f.stop()
	defer end()

	stdio := server.NewStdioServer(s.mcp)
	for _, set := range []server.StdioOption{
		server.WithErrorLogger(slog.NewLogLogger(s.log.Handler(), slog.LevelWarn)),
		server.WithWorkerPoolSize(workers),
		// Every queued call is one of the requests under way, so this is never full
		// and mcp-go never falls back to running a call in its reading loop.
		server.WithQueueSize(min(s.opts.MaxUnderWay+1, 10000)),
	} {
		set(stdio)
	}
	f.start(ctx)
	err := stdio.Listen(ctx, f.messages(), f)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func (s *Server) setFront(f *front) {
	s.mu.Lock()
	s.front = f
	s.mu.Unlock()
}

// begin runs f in a goroutine that lives as long as the connection and not only
// as long as the call that asked for it.
func (s *Server) begin(f func(ctx context.Context)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life == nil {
		return errNotServing
	}
	life := s.life
	s.owned.Go(func() { f(life) })
	return nil
}

// notify sends a notification to the client, in order with the results.
func (s *Server) notify(ctx context.Context, method string, params map[string]any) {
	s.mu.Lock()
	f := s.front
	s.mu.Unlock()
	if f == nil {
		// Another transport: its own channel, which may drop it.
		if err := s.mcp.SendNotificationToClient(ctx, method, params); err != nil {
			s.log.Debug("notification not sent", "method", method, "error", err)
		}
		return
	}
	f.notify(method, params)
}
