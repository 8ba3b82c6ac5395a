package tools

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden files anew")

// listed is a tool as a client sees it.
type listed struct {
	Name, Title, Description  string
	InputSchema, OutputSchema json.RawMessage
	Annotations               map[string]any
}

func listTools(t testing.TB, s *Server) ([]listed, []byte) {
	t.Helper()
	answer, err := json.Marshal(s.mcp.HandleMessage(context.Background(), []byte(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)))
	require.NoError(t, err)
	var m struct {
		Result struct {
			Tools json.RawMessage `json:"tools"`
		} `json:"result"`
	}
	require.NoError(t, json.Unmarshal(answer, &m))
	var all []listed
	require.NoError(t, json.Unmarshal(m.Result.Tools, &all))
	return all, m.Result.Tools
}

func TestToolSchemasAreAsTheGoldenFileSays(t *testing.T) {
	_, raw := listTools(t, New(Options{Sandboxes: newFakeBoxes(), Expose: true}))
	var b bytes.Buffer
	require.NoError(t, json.Indent(&b, raw, "", "  "))
	b.WriteByte('\n')
	file := filepath.Join("testdata", "tools.json")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(file, b.Bytes(), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, string(want), b.String(), "run go test ./tools -update if this is meant")
}

func TestSchemasHaveNoUnionsAndEveryPropertyADescription(t *testing.T) {
	all, _ := listTools(t, New(Options{Sandboxes: newFakeBoxes(), Expose: true}))
	names := []string{}
	for _, tool := range all {
		names = append(names, tool.Name)
		for _, hint := range []string{"readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"} {
			assert.IsType(t, true, tool.Annotations[hint], "%s: %s", tool.Name, hint)
		}
		assert.NotEmpty(t, tool.Title, tool.Name)
		assert.Greater(t, len(tool.Description), 40, tool.Name)
		for _, raw := range []json.RawMessage{tool.InputSchema, tool.OutputSchema} {
			var schema map[string]any
			require.NoError(t, json.Unmarshal(raw, &schema), tool.Name)
			assert.Equal(t, "object", schema["type"])
			assert.Equal(t, false, schema["additionalProperties"], tool.Name)
			walkSchema(t, tool.Name, schema)
		}
	}
	assert.ElementsMatch(t, []string{"exec", "job_output", "job_input", "job_stop", "read_file", "write_file",
		"edit_file", "list_files", "glob", "grep", "session", "policy", "expose"}, names)
}

func walkSchema(t *testing.T, at string, schema map[string]any) {
	for _, bad := range []string{"anyOf", "oneOf", "allOf", "not", "$ref"} {
		assert.NotContains(t, schema, bad, at)
	}
	assert.IsType(t, "", schema["type"], "%s: a type that is a list is a union", at)
	if props, ok := schema["properties"].(map[string]any); ok {
		for name, p := range props {
			prop := p.(map[string]any)
			assert.NotEmpty(t, prop["description"], "%s.%s", at, name)
			walkSchema(t, at+"."+name, prop)
		}
	}
	for _, inner := range []string{"items", "additionalProperties"} {
		if s, ok := schema[inner].(map[string]any); ok {
			walkSchema(t, at+"."+inner, s)
		}
	}
}

func TestAllMistakesInArgumentsAreToldAtOnce(t *testing.T) {
	c := dial(t, Options{})
	r := c.call("exec", `{"command":7,"argv":["a",1],"env":{"A":2},"timeout":"5s","timeout_ms":0,"background":"yes","max_output_bytes":1.5}`)
	assert.True(t, r.IsError)
	for _, want := range []string{
		"exec was not run",
		"`command` must be a string, not the number 7",
		"`argv` must be an array of strings; item 1 is the number 1",
		"`env` must be an object whose values are strings; the value of \"A\" is the number 2",
		"`timeout` is no argument of this tool; did you mean `timeout_ms`?",
		"`timeout_ms` must be an integer from 1 to 3600000, not 0",
		"`background` must be true or false, not the string \"yes\"",
		"`max_output_bytes` must be an integer from 0 to 30000, not the number 1.5",
	} {
		assert.Contains(t, r.text(), want)
	}
	for args, want := range map[string]string{
		`{}`:                             "`path` is missing: File to read",
		`{"path":"/f","encoding":"hex"}`: "`encoding` must be one of text, base64, not \"hex\"",
		`{"path":""}`:                    "`path` must not be empty",
		`{"file_path":"/f"}`:             "did you mean `path`?",
		`{"Path":"/f"}`:                  "did you mean `path`?",
		`{"path":"/f","zzzzzzzz":1}`:     "it has path, offset, limit, encoding, session",
		`[1]`:                            "arguments must be one JSON object, not an array",
		`"x"`:                            "not the string \"x\"",
		`{"path":["/f"]}`:                "must be a string, not an array",
		`{"path":"/f","offset":99999999999999999999}`: "must be an integer of at least 1",
	} {
		r := c.call("read_file", args)
		assert.True(t, r.IsError, args)
		assert.Contains(t, r.text(), want, args)
	}
	for args, want := range map[string]string{
		`{"cmd":"ls"}`:                   "did you mean `command`?",
		`{"working_directory":"/"}`:      "did you mean `cwd`?",
		`{"command":"ls","timeout":"1"}`: "did you mean `timeout_ms`?",
	} {
		assert.Contains(t, c.call("exec", args).text(), want, args)
	}
	// null counts as missing, and 5.0 is an integer.
	assert.False(t, c.call("exec", `{"command":"echo","argv":null,"session":null,"timeout_ms":5.0}`).IsError)
	assert.Contains(t, c.call("session", `{"action":"destroy"}`).text(), "create, list, close, reset")
	assert.Contains(t, c.call("exec", `null`).text(), "exactly one of")
}

func TestConfiguredBoundsAreInTheSchema(t *testing.T) {
	o := Options{Sandboxes: newFakeBoxes(), MaxTimeout: 60e9}
	all, _ := listTools(t, New(o))
	for _, tool := range all {
		if tool.Name == "exec" {
			assert.Contains(t, string(tool.InputSchema), `"default":60000`)
			assert.Contains(t, string(tool.InputSchema), `"maximum":60000`)
		}
	}
}

// FuzzArguments gives any JSON to any tool: it is answered with a result, and
// what our check lets pass agrees with the published schema.
func FuzzArguments(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"command":"echo hi"}`, `{"argv":["a"],"env":{"A":"b"},"timeout_ms":5}`, `{"path":"/f","offset":1,"limit":3}`,
		`{"job_id":"job-1","offset":0,"wait_ms":0}`, `{"action":"list"}`, `{"pattern":"*","path":null}`, `[]`, `null`, `1e400`,
		`{"path":"/f","content":"x","mode":"0644","encoding":"base64"}`, `{"path":"/f","old_string":"a","new_string":"b"}`,
		`{"command":"\u0000\ud800","max_output_bytes":-0}`, `{"timeout_ms":1e3,"command":"x"}`,
	} {
		for tool := range 11 {
			f.Add(tool, seed)
		}
	}
	s := New(Options{Sandboxes: newFakeBoxes()})
	m, end := s.Attach(context.Background())
	f.Cleanup(end)
	all, _ := listTools(f, s)
	schemas := make([]*jsonschema.Schema, len(all))
	for i, tool := range all {
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(tool.InputSchema))
		require.NoError(f, err)
		c := jsonschema.NewCompiler()
		require.NoError(f, c.AddResource("mem:///s.json", doc))
		schemas[i], err = c.Compile("mem:///s.json")
		require.NoError(f, err)
	}
	f.Fuzz(func(t *testing.T, n int, args string) {
		if !json.Valid([]byte(args)) {
			return
		}
		i := int(uint(n) % uint(len(all)))
		if strings.Contains(args, "wait_ms") && strings.ContainsAny(args, "123456789") {
			return // would wait as asked
		}
		answer := m.HandleMessage(context.Background(), fmt.Appendf(nil,
			`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":%q,"arguments":%s}}`, all[i].Name, args))
		data, err := json.Marshal(answer)
		require.NoError(t, err)
		var out struct {
			Result *toolResult
			Error  any
		}
		require.NoError(t, json.Unmarshal(data, &out))
		if out.Error != nil {
			// A number that no float64 holds stops mcp-go before we see the call.
			require.Contains(t, string(data), "unparsable")
			return
		}
		require.NotNil(t, out.Result, "%s", data)
		require.NotEmpty(t, out.Result.Content)
		require.NotContains(t, out.Result.text(), "mistake in this server")
		value, err := jsonschema.UnmarshalJSON(strings.NewReader(args))
		if err != nil || strings.Contains(args, "null") || strings.Contains(args, `\u`) {
			return
		}
		refused := strings.Contains(out.Result.text(), "its arguments are wrong")
		if valid := schemas[i].Validate(value) == nil; valid == refused {
			t.Errorf("%s %s: schema says %v, we said %s", all[i].Name, args, valid, out.Result.text())
		}
	})
}
