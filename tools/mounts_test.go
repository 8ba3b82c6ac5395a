package tools

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

var someMounts = Mounts{
	List: []Mount{
		{Path: "/workspace", Source: "/home/me/p", Guarded: true},
		{Path: "/data", ReadOnly: true},
		{Path: "/workspace/tmp", Memory: true},
	},
	Refused: []string{"The client's root / is not mounted: it is the whole file system."},
}

func TestTheInstructionsNameTheMountsAndThatAllElseIsThrownAway(t *testing.T) {
	text := instructions(Options{Mounts: someMounts.List}.withDefaults())
	assert.Contains(t, text, "Its mounts: /workspace (the user's /home/me/p), /data (a directory of the user's, read-only), /workspace/tmp (memory, gone with the machine).")
	assert.Contains(t, text, "everything outside of them is thrown away")
	assert.Contains(t, text, "write-protected")
	assert.Contains(t, text, "hidden")

	text = instructions(Options{Roots: true}.withDefaults())
	assert.Contains(t, text, "what this client names as its workspace, if anything, at /workspace or below it")

	text = instructions(Options{Mounts: []Mount{{Path: "/m", Memory: true}}}.withDefaults())
	assert.NotContains(t, text, "except what is in its mounts", "memory is lost like the rest")
	assert.NotContains(t, text, "write-protected")

	text = instructions(Options{}.withDefaults())
	assert.Contains(t, text, "The user's files are not in it.")
	assert.NotContains(t, text, "mounts")
}

func TestSessionsShowTheirMountsAndWhatWasNotMounted(t *testing.T) {
	boxes := newFakeBoxes()
	boxes.mounts = func(SessionOptions) Mounts { return someMounts }
	c := dial(t, Options{Sandboxes: boxes})
	for _, action := range []string{"create", "list"} {
		r := c.call("session", `{"action":"`+action+`"}`)
		assert.Contains(t, r.text(), "/workspace  rw  the user's /home/me/p\n    /data  ro\n    /workspace/tmp  rw  memory\n    The client's root / is not mounted")
		info := decodeAs[SessionResult](t, r).Sessions[0]
		assert.Equal(t, []MountInfo{
			{Path: "/workspace", Mode: "rw", Source: "/home/me/p"}, {Path: "/data", Mode: "ro"}, {Path: "/workspace/tmp", Mode: "rw", Memory: true},
		}, info.Mounts)
		assert.Equal(t, someMounts.Refused, info.NotMounted)
	}
	r := c.call("exec", `{"command":"echo hi"}`)
	assert.Contains(t, r.text(), "The user's /home/me/p is /workspace here. The client's root / is not mounted")
	assert.Contains(t, c.call("session", `{"action":"close"}`).text(), "Its processes are gone, and its files but those in mounts.")
}

func (s *fakeSession) Mounts() Mounts { return s.mounts }

func (s *fakeSession) Denials(since time.Time) []sandbox.Denial {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []sandbox.Denial
	for _, d := range s.denials {
		if d.Time.After(since) {
			all = append(all, d)
		}
	}
	return all
}

// deny notes denials as of now.
func (s *fakeSession) deny(list ...sandbox.Denial) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range list {
		d.Time = time.Now()
		s.denials = append(s.denials, d)
	}
}

func refusal(what, path string) sandbox.Denial {
	return sandbox.Denial{Kind: "file", What: what, Path: path, Rule: ".envrc", Reason: `protected by the rule ".envrc"`, Remedy: "Ask the user."}
}

func TestExecTellsWhatTheHostRefusedMeanwhile(t *testing.T) {
	boxes := newFakeBoxes()
	c := dial(t, Options{Sandboxes: boxes})
	c.call("list_files", `{}`)
	sess := boxes.session("vm-1")
	sess.deny(refusal("write", "/before"))
	n := 2
	sess.run = func(_ context.Context, cmd sandbox.Command) (sandbox.Exit, error) {
		for i := range n {
			sess.deny(refusal("write", fmt.Sprintf("/w/%d/.envrc", i)))
		}
		_, err := io.WriteString(cmd.Stdout, "done\n")
		return sandbox.Exit{Code: 1}, err
	}
	r := c.call("exec", `{"command":"x"}`)
	assert.False(t, r.IsError)
	assert.True(t, strings.HasSuffix(r.text(), "[refused: write /w/0/.envrc: protected by the rule \".envrc\"]\n"+
		"[refused: write /w/1/.envrc: protected by the rule \".envrc\"]\n[Ask the user.]"), r.text())
	got := decodeAs[ExecResult](t, r)
	require.Len(t, got.Denials, 2)
	assert.Equal(t, Denial{
		Kind: "file", What: "write", Path: "/w/0/.envrc", Rule: ".envrc", Reason: `protected by the rule ".envrc"`, Remedy: "Ask the user.",
	}, got.Denials[0])

	n = 100
	r = c.call("exec", `{"command":"x"}`)
	got = decodeAs[ExecResult](t, r)
	assert.Len(t, got.Denials, 20)
	assert.Equal(t, 80, got.DenialsMore)
	assert.Equal(t, "/w/99/.envrc", got.Denials[19].Path, "the newest")
	assert.Contains(t, r.text(), "[80 earlier ones were refused too]")
	assert.Equal(t, 20, strings.Count(r.text(), "[refused: "))

	n = 0
	assert.NotContains(t, c.call("exec", `{"command":"x"}`).text(), "refused")
}

func TestDenialsOfAnyLengthLeaveRoomForTheOutput(t *testing.T) {
	boxes := newFakeBoxes()
	c := dial(t, Options{Sandboxes: boxes})
	c.call("list_files", `{}`)
	sess := boxes.session("vm-1")
	long := strings.Repeat("\x01<界", 5000)
	sess.run = func(_ context.Context, cmd sandbox.Command) (sandbox.Exit, error) {
		for range 300 {
			sess.deny(sandbox.Denial{Kind: long, What: long, Path: long, Rule: long, Reason: long, Remedy: long})
		}
		_, err := io.WriteString(cmd.Stdout, strings.Repeat("y", 100000))
		return sandbox.Exit{}, err
	}
	r := c.call("exec", `{"command":"x"}`)
	require.False(t, r.IsError, r.text())
	assert.Greater(t, strings.Count(r.text(), "y"), 1000)
}

func TestAFileToolThatIsRefusedNamesTheRuleAndTheRemedy(t *testing.T) {
	for _, tt := range []struct{ name, errno, path, denied, want string }{
		{"protected file", "EPERM", "/w/.envrc", "/w/.envrc", `Refused by gondolin: write /w/.envrc: protected by the rule ".envrc". Ask the user.`},
		{"below a protected directory", "EACCES", "/w/.git/hooks/x", "/w/.git/hooks", "Refused by gondolin: write /w/.git/hooks: "},
		{"temporary name beside it", "EACCES", "/w/.env", "/w/.env.tmp1", "Refused by gondolin: write /w/.env.tmp1: "},
		{"hidden file", "ENOENT", "/w/.env", "/w/.env", "Refused by gondolin: "},
		{"some other file that is not there", "ENOENT", "/w/main.go", "/w/.env", "list_files and glob show what is there"},
		{"file of the client", "ENOENT", "/home/me/p/a.go", "/x", "That is a path of the user's computer; in this machine it is /workspace/a.go."},
		{"read-only mount", "EROFS", "/data/x", "", "/data is mounted read-only."},
		{"quota", "EDQUOT", "/data/x", "", "The quota of the mount /data is used up"},
		{"read-only elsewhere", "EROFS", "/etc/x", "", "/tmp can be written"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			boxes := newFakeBoxes()
			boxes.mounts = func(SessionOptions) Mounts { return someMounts }
			c := dial(t, Options{Sandboxes: boxes})
			c.call("list_files", `{}`)
			sess := boxes.session("vm-1")
			sess.onFile = func() error {
				if tt.denied != "" {
					sess.deny(refusal("write", tt.denied))
				}
				return &sandbox.FileError{Op: "writing", Path: tt.path, Errno: tt.errno, Msg: "no"}
			}
			r := c.call("write_file", `{"path":"x","content":"y"}`)
			assert.True(t, r.IsError)
			assert.Contains(t, r.text(), tt.want)
		})
	}
}
