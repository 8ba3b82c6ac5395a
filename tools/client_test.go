//lint:file-ignore SA1019 Roots are deprecated since 2026-07-28; clients that have them must still be served.

package tools

import (
	"context"
	"io"
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/client/transport"
	"github.com/mark3labs/mcp-go/mcp"
	official "github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

// workspace answers a server that asks for roots.
type workspace struct{}

func (workspace) ListRoots(context.Context, mcp.ListRootsRequest) (*mcp.ListRootsResult, error) {
	return &mcp.ListRootsResult{Roots: []mcp.Root{{URI: "file:///home/me/project"}}}, nil
}

// library is mcp-go's own client, in the era of the version given.
func library(t *testing.T, o Options, version string, opts ...client.ClientOption) *client.Client {
	t.Helper()
	return libraryWith(t, o, version, nil, opts...)
}

func libraryWith(t *testing.T, o Options, version string, change func(*Server), opts ...client.ClientOption) *client.Client {
	t.Helper()
	c, out := pipes(t, o, change)
	tr := transport.NewIO(out, c.in, io.NopCloser(strings.NewReader("")))
	cl := client.NewClient(tr, opts...)
	require.NoError(t, cl.Start(t.Context()))
	t.Cleanup(func() { _ = cl.Close() })
	_, err := cl.Initialize(t.Context(), mcp.InitializeRequest{Params: mcp.InitializeParams{
		ProtocolVersion: version, ClientInfo: mcp.Implementation{Name: "test", Version: "1"},
	}})
	require.NoError(t, err)
	return cl
}

func callLibrary(t *testing.T, cl *client.Client, tool string, args map[string]any) *mcp.CallToolResult {
	t.Helper()
	r, err := cl.CallTool(t.Context(), mcp.CallToolRequest{Params: mcp.CallToolParams{Name: tool, Arguments: args}})
	require.NoError(t, err)
	return r
}

func TestBothErasOfTheProtocolWorkWithALibraryClient(t *testing.T) {
	for _, version := range []string{mcp.ProtocolVersion20250618, mcp.ProtocolVersion20251125, mcp.ProtocolVersion20260728} {
		t.Run(version, func(t *testing.T) {
			cl := library(t, Options{}, version)
			list, err := cl.ListTools(t.Context(), mcp.ListToolsRequest{})
			require.NoError(t, err)
			assert.Len(t, list.Tools, 12)
			templates, err := cl.ListResourceTemplates(t.Context(), mcp.ListResourceTemplatesRequest{})
			require.NoError(t, err)
			assert.Len(t, templates.ResourceTemplates, 1)
			r := callLibrary(t, cl, "exec", map[string]any{"command": "echo hi"})
			assert.False(t, r.IsError)
			assert.Contains(t, mcp.GetTextFromContent(r.Content[0]), "hi")
			assert.NotNil(t, r.StructuredContent)
		})
	}
}

// sdk is the client of the official SDK.
func sdk(t *testing.T, o Options, version string, opts *official.ClientOptions, roots ...*official.Root) *official.ClientSession {
	t.Helper()
	c, out := pipes(t, o, nil)
	cl := official.NewClient(&official.Implementation{Name: "official", Version: "1"}, opts)
	cl.AddRoots(roots...)
	session, err := cl.Connect(t.Context(), &official.IOTransport{Reader: io.NopCloser(out), Writer: c.in},
		&official.ClientSessionOptions{ProtocolVersion: version})
	require.NoError(t, err)
	t.Cleanup(func() { _ = session.Close() })
	return session
}

func TestTheOfficialSDKCallsHearsProgressAndCancels(t *testing.T) {
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		t.Run(version, func(t *testing.T) {
			b := newBlocking()
			heard := make(chan string, 100)
			session := sdk(t, rooted(func(ctx context.Context, cmd sandbox.Command) (sandbox.Exit, error) {
				_, _ = io.WriteString(cmd.Stdout, "compiling\n")
				return b.run(ctx, cmd)
			}), version, &official.ClientOptions{
				ProgressNotificationHandler: func(_ context.Context, r *official.ProgressNotificationClientRequest) {
					heard <- r.Params.Message
				},
			}, &official.Root{URI: "file:///w"})
			tools, err := session.ListTools(t.Context(), nil)
			require.NoError(t, err)
			assert.Len(t, tools.Tools, 12)

			params := &official.CallToolParams{Name: "exec", Arguments: map[string]any{"command": "make"}}
			params.SetProgressToken("p")
			ctx, cancel := context.WithCancel(t.Context())
			failed := make(chan error, 1)
			go func() {
				_, err := session.CallTool(ctx, params)
				failed <- err
			}()
			select {
			case <-b.began:
			case err := <-failed:
				t.Fatal("call ended early: ", err)
			}
			assert.Contains(t, wait(t, heard, "progress"), "compiling")
			cancel()
			require.ErrorIs(t, wait(t, b.ended, "the command to end"), context.Canceled)
			require.Error(t, wait(t, failed, "the call"))

			close(b.release)
			r, err := session.CallTool(t.Context(), &official.CallToolParams{Name: "exec", Arguments: map[string]any{"command": "make"}})
			require.NoError(t, err)
			assert.False(t, r.IsError)
			r, err = session.CallTool(t.Context(), &official.CallToolParams{Name: "session", Arguments: map[string]any{"action": "list"}})
			require.NoError(t, err)
			assert.Contains(t, r.Content[0].(*official.TextContent).Text, "/workspace  rw  the user's /w")
		})
	}
}
