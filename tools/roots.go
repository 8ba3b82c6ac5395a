package tools

import (
	"context"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"
)

// clientRoots is what the client says its workspace is. A session gets the roots that are
// known when it is made (SessionOptions.Roots) and keeps them: a client whose roots change
// is told that a new session has the new ones.
//
// A client of the initialize era is asked in the background, when it says that it is
// ready and whenever its roots change; making a session waits for the answer, for a
// while. A client of the stateless era can only be asked by a tool's result, so its first
// call asks, once, and only if the request itself says that the client has roots. Its
// second round runs the call, with or without an answer.
type clientRoots struct {
	mu      sync.Mutex
	asking  bool
	again   bool
	asked   bool          // in either way
	slow    bool          // an answer was waited for in vain
	pending chan struct{} // closed when the answer is there; nil when none is awaited
	known   []string
}

const (
	rootsKey = "roots"
	// rootsWait is how long a session waits for the client's roots.
	rootsWait = 2 * time.Second
	// rootsMost is how many roots are taken.
	rootsMost = 32
)

// watchRoots makes the server ask clients of the initialize era.
func (s *Server) watchRoots() {
	if !s.opts.Roots {
		return
	}
	ask := func(ctx context.Context, _ mcp.JSONRPCNotification) { s.askRoots(ctx) }
	s.mcp.AddNotificationHandler("notifications/initialized", ask)
	s.mcp.AddNotificationHandler(mcp.MethodNotificationRootsListChanged, ask)
}

func (s *Server) askRoots(ctx context.Context) {
	session := server.ClientSessionFromContext(ctx)
	informed, ok := session.(server.SessionWithClientInfo)
	if !ok || informed.GetClientCapabilities().Roots == nil || server.IsModernRequest(ctx) {
		return
	}
	r := &s.roots
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asking {
		r.again = true
		return
	}
	// No deadline: who waits for the answer has one, and mcp-go answers one that
	// comes after a deadline as if it were a request.
	if s.begin(func(life context.Context) {
		ctx := s.mcp.WithContext(life, session)
		for {
			got, err := s.mcp.RequestRoots(ctx, mcp.ListRootsRequest{})
			if err != nil {
				s.log.Debug("the client did not tell its roots", "error", err)
			}
			if !r.store(got) || life.Err() != nil {
				return
			}
		}
	}) == nil {
		r.asking, r.asked = true, true
		r.pending = make(chan struct{})
	}
}

// store keeps an answer and says whether to ask once more.
func (r *clientRoots) store(got *mcp.ListRootsResult) (again bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if got != nil {
		r.set(got)
	}
	r.asking, again, r.again = r.again, r.again, false
	if !again {
		r.settle()
	}
	return again
}

// settle lets those go on who wait for the answer. The lock is held.
func (r *clientRoots) settle() {
	if r.pending != nil {
		close(r.pending)
		r.pending = nil
	}
	r.slow = false
}

func (r *clientRoots) set(got *mcp.ListRootsResult) {
	r.known = nil
	for _, root := range got.Roots {
		name := root.URI
		if u, err := url.Parse(root.URI); err == nil && u.Scheme == "file" && (u.Host == "" || u.Host == "localhost") {
			name = u.Path
		}
		if len(name) > 4096 || strings.ContainsRune(name, 0) || slices.Contains(r.known, name) {
			continue
		}
		if r.known = append(r.known, name); len(r.known) == rootsMost {
			break
		}
	}
}

// question is the result that asks a client of the stateless era, or nil.
func (r *clientRoots) question(ctx context.Context, request mcp.CallToolRequest) *mcp.CallToolResult {
	if _, ok := request.Params.InputResponses[rootsKey]; ok {
		r.mu.Lock()
		defer r.mu.Unlock()
		if got := server.RootsResponse(request.Params.InputResponses, rootsKey); got != nil {
			r.set(got)
		}
		return nil
	}
	info := server.RequestProtocolInfoFromContext(ctx)
	if info == nil || !info.Modern || info.ClientCapabilities == nil || info.ClientCapabilities.Roots == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asked || request.Params.RequestState != "" {
		return nil
	}
	r.asked = true
	return server.NewInputRequestBuilder(rootsKey).Roots(rootsKey).ToolResult()
}

// expectRoots asks a client that never said that it is ready. ctx is a call's.
func (s *Server) expectRoots(ctx context.Context) {
	if !s.opts.Roots {
		return
	}
	s.roots.mu.Lock()
	asked := s.roots.asked
	s.roots.mu.Unlock()
	if !asked {
		s.askRoots(ctx)
	}
}

// await returns the roots for a new session. It waits for an answer that is under way, but
// not again for a client that let it wait before.
func (r *clientRoots) await(ctx context.Context, most time.Duration) []string {
	r.mu.Lock()
	pending, slow := r.pending, r.slow
	r.mu.Unlock()
	if pending != nil && !slow {
		timer := time.NewTimer(most)
		defer timer.Stop()
		select {
		case <-pending:
		case <-ctx.Done():
		case <-timer.C:
			r.mu.Lock()
			r.slow = r.pending == pending
			r.mu.Unlock()
		}
	}
	return r.paths()
}

// paths are the roots as far as they are known: absolute paths of the client's machine, or
// URIs of another kind.
func (r *clientRoots) paths() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known
}

func (r *clientRoots) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settle()
	r.asking, r.again, r.asked, r.known = false, false, false, nil
}
