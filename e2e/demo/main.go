// Command demo drives the real gondolin-mcp over stdio, as an MCP client does,
// through a short story, prints each call with its result, and ends with the
// set-up for common clients. `make demo` runs it.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"golang.org/x/term"

	"github.com/gondolin-go/gondolin/docs"
)

func main() {
	server := flag.String("server", "bin/gondolin-mcp", "path of the server")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *server); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type args = map[string]any

// step is one call of the story.
type step struct {
	say  string
	tool string
	args args
	fail bool // the call is meant to be refused or to fail
}

const program = `import json, platform, sys

def average(numbers):
    return sum(numbers) / len(numbers) + 1

print(json.dumps({"python": platform.python_version(), "average": average([1, 2, 3])}))
`

var story = []step{
	{say: "A machine of its own: the first call starts it.", tool: "exec", args: args{"command": "uname -sr; whoami; nproc; df -h / | tail -1"}},
	{say: "Write a program …", tool: "write_file", args: args{"path": "/root/app/stats.py", "content": program}},
	{say: "… run it: the average of 1, 2 and 3 is wrong.", tool: "exec", args: args{"argv": []string{"python3", "stats.py"}, "cwd": "/root/app"}},
	{say: "Find the mistake …", tool: "grep", args: args{"path": "/root/app", "pattern": `\+ 1$`}},
	{say: "… mend it …", tool: "edit_file", args: args{"path": "/root/app/stats.py", "old_string": " / len(numbers) + 1", "new_string": " / len(numbers)"}},
	{say: "… and run it again.", tool: "exec", args: args{"argv": []string{"python3", "stats.py"}, "cwd": "/root/app"}},
	{say: "A server in the background, asked by another command.", tool: "exec", args: args{"command": "exec python3 -um http.server 8000 --directory /root/app", "background": true}},
	{tool: "exec", args: args{"command": "curl -s --retry 20 --retry-connrefused --retry-delay 1 http://localhost:8000/ | grep -o 'stats.py' | head -1"}},
	{say: "A command that never ends is ended, with all that it started.", tool: "exec", args: args{"command": "echo working; sleep 1000", "timeout_ms": 1500}, fail: true},
	{say: "This machine has no network: nothing can leave.", tool: "exec", args: args{"command": "curl -sS -m 5 https://example.com"}},
	{say: "Whatever happens in there …", tool: "exec", args: args{"command": "rm -rf --no-preserve-root / 2>/dev/null; echo left: /*"}, fail: true},
	{say: "… a new machine is a call away.", tool: "session", args: args{"action": "reset"}},
	{tool: "exec", args: args{"command": "echo as new: /*"}},
}

func run(ctx context.Context, server string) error {
	path, err := filepath.Abs(server)
	if err != nil {
		return err
	}
	var log bytes.Buffer
	cmd := exec.Command(path, "serve")
	cmd.Stderr = &log
	client := mcp.NewClient(&mcp.Implementation{Name: "gondolin-demo", Version: "1"}, nil)
	session, err := client.Connect(ctx, &mcp.CommandTransport{Command: cmd}, nil)
	if err != nil {
		return fmt.Errorf("connecting to %s: %w\n%s", path, err, log.String())
	}
	defer session.Close()
	tools, err := session.ListTools(ctx, nil)
	if err != nil {
		return fmt.Errorf("listing tools: %w", err)
	}
	names := []string{}
	for _, t := range tools.Tools {
		names = append(names, t.Name)
	}
	title("Connected to %s. Its tools: %s.", filepath.Base(path), strings.Join(names, ", "))
	for _, s := range story {
		if err := tell(ctx, session, s); err != nil {
			return fmt.Errorf("%w\nlog of the server:\n%s", err, log.String())
		}
	}
	if err := session.Close(); err != nil {
		return fmt.Errorf("closing: %w", err)
	}
	setup(path)
	return nil
}

// tell makes one call and prints it with its result.
func tell(ctx context.Context, session *mcp.ClientSession, s step) error {
	if s.say != "" {
		title("%s", s.say)
	}
	var in bytes.Buffer
	enc := json.NewEncoder(&in)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s.args); err != nil {
		return err
	}
	fmt.Printf("%s %s", paint("36", "→ "+s.tool), in.String())
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	began := time.Now()
	res, err := session.CallTool(ctx, &mcp.CallToolParams{Name: s.tool, Arguments: s.args})
	if err != nil {
		return fmt.Errorf("calling %s: %w", s.tool, err)
	}
	for _, c := range res.Content {
		if t, ok := c.(*mcp.TextContent); ok {
			fmt.Println(indent(t.Text))
		}
	}
	fmt.Println(paint("2", fmt.Sprintf("  (%.2f s)", time.Since(began).Seconds())))
	if res.IsError && !s.fail {
		return fmt.Errorf("the call of %s failed", s.tool)
	}
	return nil
}

func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n  ")
}

func title(format string, a ...any) { fmt.Printf("\n%s\n", paint("1", fmt.Sprintf(format, a...))) }

func paint(code, s string) string {
	if !term.IsTerminal(int(os.Stdout.Fd())) {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// setup prints what makes a client use the server, as docs/clients.md has it.
func setup(path string) {
	title("That was it. To use it in your client:")
	for _, s := range docs.Setups(path) {
		where := s.Where
		if where == "" {
			where = "In a shell:"
		}
		fmt.Printf("  %-15s  %s\n                   %s\n", s.Client+":", where, s.Text)
	}
}
