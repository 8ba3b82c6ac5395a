//lint:file-ignore SA1019 Roots are deprecated since 2026-07-28; clients that have them must still be served.

package tools

import (
	"context"
	"fmt"
	"path"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/mcp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

// rooted are options of a server whose sessions mount the client's roots.
func rooted(run func(context.Context, sandbox.Command) (sandbox.Exit, error)) Options {
	boxes := newFakeBoxes()
	boxes.run = run
	boxes.mounts = func(o SessionOptions) (m Mounts) {
		for _, root := range o.Roots {
			switch {
			case root == "/":
				m.Refused = append(m.Refused, "The workspace / is not mounted: it is all of the user's files.")
			case len(o.Roots) == 1:
				m.List = append(m.List, Mount{Path: RootsPath, Source: root, Guarded: true})
			default:
				m.List = append(m.List, Mount{Path: RootsPath + "/" + path.Base(root), Source: root, Guarded: true})
			}
		}
		return m
	}
	return Options{Sandboxes: boxes, Roots: true}
}

func TestTheFirstSessionHasTheClientsRootsInBothEras(t *testing.T) {
	for _, version := range []string{mcp.ProtocolVersion20251125, mcp.ProtocolVersion20260728} {
		for tool, args := range map[string]map[string]any{
			"exec": {"command": "echo hi"}, "write_file": {"path": "/f", "content": "x"}, "session": {"action": "create"},
		} {
			t.Run(version+" "+tool, func(t *testing.T) {
				o := rooted(nil)
				cl := library(t, o, version, client.WithRootsHandler(workspace{}))
				text := mcp.GetTextFromContent(callLibrary(t, cl, tool, args).Content[0])
				assert.Equal(t, []string{"/home/me/project"}, o.Sandboxes.(*fakeBoxes).made[0].Roots)
				assert.Contains(t, text, "/home/me/project")
				if tool == "exec" {
					assert.Contains(t, text, "[The user's /home/me/project is /workspace here.]")
					text = mcp.GetTextFromContent(callLibrary(t, cl, tool, args).Content[0])
					assert.NotContains(t, text, "/home/me/project", "once is enough")
				}
			})
		}
	}
}

func TestClientsAreNotAskedForRootsThatAreNotMounted(t *testing.T) {
	c := dialRooted(t, Options{})
	c.call("exec", `{"command":"echo hi"}`)
	for _, m := range c.later {
		assert.NotEqual(t, "roots/list", m.Method)
	}
}

// dialRooted is a raw client of the initialize era that has roots.
func dialRooted(t *testing.T, o Options, change ...func(*Server)) *connection {
	t.Helper()
	c := dialRaw(t, o, change...)
	c.send(`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"roots":{"listChanged":true}},"clientInfo":{"name":"raw","version":"1"}}}`)
	c.answer("1")
	c.send(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	return c
}

// tellRoots answers the server's next question.
func (c *connection) tellRoots(roots ...string) {
	c.t.Helper()
	ask := c.next()
	require.Equal(c.t, "roots/list", ask.Method)
	list := ""
	for i, r := range roots {
		if i > 0 {
			list += ","
		}
		list += fmt.Sprintf(`{"uri":%q}`, r)
	}
	c.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":{"roots":[%s]}}`, ask.ID, list))
}

func TestAClientThatNeverAnswersTheQuestionForRootsLosesNothing(t *testing.T) {
	c := dialRooted(t, rooted(nil), func(s *Server) { s.rootsWait = 20 * time.Millisecond })
	ask := c.next()
	assert.Equal(t, "roots/list", ask.Method)
	assert.False(t, c.call("exec", `{"command":"echo hi"}`).IsError)
	// An answer that is an error, and then stray ones, trouble nobody.
	for range 2 {
		c.send(`{"jsonrpc":"2.0","id":` + string(ask.ID) + `,"error":{"code":-32601,"message":"no"}}`)
	}
	c.send(`{"jsonrpc":"2.0","id":"p","method":"ping"}`)
	assert.Equal(t, `"p"`, string(c.next().ID))
}

func TestAClientIsWaitedForOnlyOnce(t *testing.T) {
	c := dialRooted(t, rooted(nil), func(s *Server) { s.rootsWait = time.Hour })
	c.s.roots.mu.Lock()
	c.s.roots.slow = true
	c.s.roots.mu.Unlock()
	assert.Equal(t, "roots/list", c.next().Method)
	assert.False(t, c.call("session", `{"action":"create"}`).IsError, "it did not wait an hour")
}

func TestAClientThatNeverSaysThatItIsReadyIsAskedAtItsFirstCall(t *testing.T) {
	o := rooted(nil)
	c := dialRaw(t, o)
	c.send(`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"roots":{}},"clientInfo":{"name":"raw","version":"1"}}}`)
	c.answer("1")
	c.begin(2, "exec", `{"command":"echo hi"}`)
	c.tellRoots("file:///w%20x")
	c.end(2)
	assert.Equal(t, []string{"/w x"}, c.boxes.made[0].Roots)
}

func TestRootsThatChangeReachTheNextSessionAndTheModelIsToldSo(t *testing.T) {
	c := dialRooted(t, rooted(nil))
	c.tellRoots("file:///a")
	r := c.call("exec", `{"command":"echo hi"}`)
	assert.Contains(t, r.text(), "The user's /a is /workspace here.")

	c.send(`{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}`)
	c.tellRoots("file:///a", "file:///b", "https://example.com/c", "file:///a")
	c.send(`{"jsonrpc":"2.0","id":"p","method":"ping"}`)
	c.answer(`"p"`)
	require.Eventually(t, func() bool { return len(c.s.roots.paths()) == 3 }, soon, time.Millisecond)
	r = c.call("read_file", `{"path":"/none"}`)
	assert.Contains(t, r.text(), "The client's workspace is another now (/a, /b, https://example.com/c). The session vm-1 was made before")
	assert.NotContains(t, c.call("exec", `{"command":"echo hi"}`).text(), "another now", "once is enough")

	made := decodeAs[SessionResult](t, c.call("session", `{"action":"reset"}`))
	assert.Equal(t, []string{"/a", "/b", "https://example.com/c"}, c.boxes.made[1].Roots)
	require.Len(t, made.Sessions[len(made.Sessions)-1].Mounts, 3)
	assert.NotContains(t, c.call("exec", `{"command":"echo hi"}`).text(), "another now")
}

func TestAStatelessClientThatIgnoresTheQuestionForRootsIsAskedOnlyOnce(t *testing.T) {
	c := dialRaw(t, rooted(nil))
	call := func(id string) message {
		c.send(`{"jsonrpc":"2.0","id":` + id + `,"method":"tools/call","params":{"name":"list_files","arguments":{},` +
			`"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"roots":{}}}}}`)
		return c.answer(id)
	}
	assert.Contains(t, string(call("1").Result), `"resultType":"input_required"`)
	assert.Contains(t, string(call("2").Result), `"resultType":"complete"`)
}
