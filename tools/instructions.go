package tools

import (
	"slices"
	"strings"
	"time"

	"github.com/gondolin-go/gondolin/sandbox"
)

// instructions is what a client tells its model about the server as a whole.
func instructions(o Options) string {
	lines := []string{
		"These tools work in a Linux machine (" + o.Image + ") of this conversation alone: a virtual machine, not the user's computer.",
		"It starts at the first call and is thrown away, with all files in it" + exceptMounts(o) + ", when it is closed" + lifetime(o.Limits) + " or the client ends.",
		"You are " + o.User + " in it. Install, break and rebuild what you like; nothing of it reaches the user's computer" + exceptMounts(o) + ".",
	}
	lines = append(lines, network(o.Policy.Overview())...)
	lines = append(lines, files(o)...)
	if o.Expose {
		lines = append(lines, "To show the user a server of it, such as a web page under development, call expose with its port: that gives a URL for their browser.")
	}
	return strings.Join(append(lines,
		"Run commands with exec; each is a shell of its own, so give cwd and env each time. A non-zero exit code is a result, not an error.",
		"Start servers and long work with background=true and follow them with job_output, job_input and job_stop.",
		"Prefer read_file, edit_file, write_file, list_files, glob and grep to cat, sed and ls: their results are bounded and exact.",
		"Long output keeps its beginning and end; the result says with which job_output call to read the rest.",
		"An error says what to do about it. If something stays refused or out of reach, say so and ask the user to change the configuration of gondolin-mcp.",
	), "\n")
}

func exceptMounts(o Options) string {
	if o.Roots || slices.ContainsFunc(o.Mounts, func(m Mount) bool { return !m.Memory }) {
		return " except what is in its mounts"
	}
	return ""
}

// files says what of the user's files is there.
func files(o Options) []string {
	var mounts []string
	guarded := o.Roots
	if o.Roots {
		mounts = append(mounts, "what this client names as its workspace, if anything, at "+RootsPath+" or below it (session {\"action\": \"list\"} tells)")
	}
	for _, m := range o.Mounts {
		mounts = append(mounts, m.describe())
		guarded = guarded || m.Guarded
	}
	if len(mounts) == 0 {
		return []string{"The user's files are not in it. Bring in what is needed with write_file, and report results in your answer."}
	}
	lines := []string{"Its mounts: " + strings.Join(mounts, ", ") + ". No other file of the user is in it; everything outside of them is thrown away."}
	if guarded {
		lines = append(lines, "In mounts, files that the user's own tools would run or obey (.git/hooks, .git/config, .envrc, .vscode, .mcp.json and the like) are write-protected, "+
			"and files with credentials (.env, .npmrc, keys) are hidden, unless the user configured otherwise; a refusal names its rule.")
	}
	return lines
}

// lifetime says when else a session ends, to stand between "closed" and "or".
func lifetime(l sandbox.Limits) string {
	text := ""
	if l.Idle > 0 {
		text += ", after " + span(l.Idle) + " without a call,"
	}
	if l.Wall > 0 {
		text = strings.TrimSuffix(text, ",") + ", " + span(l.Wall) + " after its start,"
	}
	return text
}

// span writes 30m0s as 30m and 1h0m0s as 1h.
func span(d time.Duration) string {
	s := d.Round(time.Millisecond).String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return s
}
