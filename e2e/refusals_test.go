package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What the host refuses is told in the result of the call that met it, in words that an agent
// can act on, and stands in the audit record afterwards.
func TestRefusalsAreToldWithTheirRuleThroughMCP(t *testing.T) {
	work, state := t.TempDir(), t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(work, ".git", "hooks"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(work, ".env"), []byte("SECRET=1"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(work, "main.py"), []byte("print('hello')\n"), 0o644))
	s := startServer(t, nil, "--workspace="+work, "--allow-host", "allowed.example", "--audit-dir", state)
	var run struct {
		execResult
		Denials []struct {
			What, Path, Rule, Reason string
		} `json:"denials"`
	}
	require.False(t, s.call(t, "exec", object{"command": "pwd; python3 main.py; ls -a"}, &run).IsError)
	require.Contains(t, run.Stdout, "/workspace\nhello\n")
	require.NotContains(t, run.Stdout, ".env")

	res := s.call(t, "write_file", object{"path": "/workspace/.git/hooks/pre-commit", "content": "#!/bin/sh\n"}, nil)
	require.True(t, res.IsError)
	require.Contains(t, text(res), "protected")
	require.Contains(t, text(res), ".git/hooks")
	require.NoFileExists(t, filepath.Join(work, ".git/hooks/pre-commit"))
	res = s.call(t, "read_file", object{"path": "/workspace/.env"}, nil)
	require.True(t, res.IsError)
	require.Contains(t, text(res), "hidden")

	res = s.call(t, "exec", object{"command": "curl -sS --max-time 20 https://other.example/; touch .git/hooks/x"}, &run)
	require.NotZero(t, run.ExitCode)
	var told []string
	for _, d := range run.Denials {
		told = append(told, d.What+" "+d.Path+" "+d.Rule)
	}
	require.Contains(t, strings.Join(told, "\n"), "other.example")
	require.Contains(t, strings.Join(told, "\n"), ".git/hooks")
	require.Contains(t, text(res), "other.example")

	var verdict struct {
		Allowed bool   `json:"allowed"`
		Rule    string `json:"rule"`
	}
	require.False(t, s.call(t, "policy", object{"kind": "http", "value": "https://allowed.example/"}, &verdict).IsError)
	require.True(t, verdict.Allowed)
	s.call(t, "policy", object{"kind": "http", "value": "https://other.example/"}, &verdict)
	require.False(t, verdict.Allowed)

	require.NoError(t, s.client.Close())
	path, err := filepath.Abs(serverPath)
	require.NoError(t, err)
	out, err := exec.Command(path, "audit", "verify", "--audit-dir", state).CombinedOutput()
	require.NoError(t, err, "%s", out)
	out, err = exec.Command(path, "audit", "show", "--refused", "--audit-dir", state).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "other.example")
}
