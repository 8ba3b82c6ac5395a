package docs

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

type server struct {
	Type    string            `json:"type"`
	Command string            `json:"command"`
	Args    []string          `json:"args"`
	Env     map[string]string `json:"env"`
}

// Each client has its own word for the servers, and what is below it has one form.
func TestEverySetUpOfAClientIsWhatThatClientReads(t *testing.T) {
	key := map[string]string{"Claude Code": "mcpServers", "Claude Desktop": "mcpServers", "Cursor": "mcpServers", "VS Code": "servers", "Zed": "context_servers"}
	const path = `/home/me/my "tools"/gondolin-mcp`
	found := map[string]bool{}
	for _, s := range Setups(path) {
		found[s.Client] = true
		require.NotContains(t, s.Text, placeholder)
		if s.Form == "sh" {
			require.Empty(t, s.Where)
			if _, arg, ok := strings.Cut(s.Text, "--add-mcp '"); ok {
				var one struct {
					Name string
					server
				}
				strict(t, strings.TrimSuffix(arg, "'"), &one)
				require.Equal(t, "gondolin", one.Name)
				require.Equal(t, path, one.Command)
			} else {
				require.Equal(t, `claude mcp add gondolin -- '/home/me/my "tools"/gondolin-mcp' serve`, s.Text)
			}
			continue
		}
		require.NotEmpty(t, s.Where, s.Client)
		var all map[string]map[string]server
		strict(t, s.Text, &all)
		one, ok := all[key[s.Client]]["gondolin"]
		require.True(t, ok, "%s: %s", s.Client, s.Text)
		assert.Equal(t, path, one.Command)
		require.NotEmpty(t, one.Args)
		assert.Equal(t, "serve", one.Args[0])
	}
	for client := range key {
		require.True(t, found[client], client)
	}
}

func strict(t *testing.T, text string, v any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	require.NoError(t, d.Decode(v), text)
}
