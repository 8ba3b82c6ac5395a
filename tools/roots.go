package tools

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"
)

// clientRoots is what the client says its workspace is. It only serves to name
// that workspace to the model: nothing of it is visible in the sandbox.
//
// A client of the initialize era is asked in the background, when it says that
// it is ready and whenever its roots change; no call waits for the answer. A
// client of the stateless era can only be asked by a tool's result, so the first
// exec or session call asks, once, and only if the request itself says that the
// client has roots. Its second round runs the call, with or without an answer.
type clientRoots struct {
	mu     sync.Mutex
	asking bool
	again  bool
	asked  bool // the stateless way
	known  []string
	told   bool
}

const rootsKey = "roots"

// watchRoots makes the server ask clients of the initialize era.
func (s *Server) watchRoots() {
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
	// No deadline: nobody waits for the answer, and mcp-go answers one that
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
		r.asking = true
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
	return again
}

func (r *clientRoots) set(got *mcp.ListRootsResult) {
	r.known = nil
	for _, root := range got.Roots {
		if len(r.known) == 10 {
			break
		}
		name := root.URI
		if u, err := url.Parse(root.URI); err == nil && u.Scheme == "file" {
			name = u.Path
		}
		r.known = append(r.known, short(printable(name), 200))
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

// note names the workspace, the first time that it is asked for.
func (r *clientRoots) note() (string, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.told || len(r.known) == 0 {
		return "", false
	}
	r.told = true
	return workspaceNote(r.known), true
}

// paths are the workspace's directories as far as they are known.
func (r *clientRoots) paths() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known
}

func (r *clientRoots) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asking, r.again, r.asked, r.told, r.known = false, false, false, false, nil
}

func workspaceNote(paths []string) string {
	return fmt.Sprintf("The client's workspace (%s) is not visible in this machine; copy what is needed with write_file.", strings.Join(paths, ", "))
}
