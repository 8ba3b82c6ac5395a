package tools

import (
	"strings"
	"time"

	"github.com/gondolin-go/gondolin/sandbox"
)

// instructions is what a client tells its model about the server as a whole.
func instructions(o Options) string {
	return strings.Join([]string{
		"These tools work in a Linux machine (" + o.Image + ") of this conversation alone: a virtual machine, not the user's computer.",
		"It starts at the first call and is thrown away, with all files in it, when it is closed" + lifetime(o.Limits) + " or the client ends.",
		"You are " + o.User + " in it. Install, break and rebuild what you like; nothing of it reaches the user's computer.",
		o.Network,
		"The user's files are not in it. Bring in what is needed with write_file, and report results in your answer.",
		"Run commands with exec; each is a shell of its own, so give cwd and env each time. A non-zero exit code is a result, not an error.",
		"Start servers and long work with background=true and follow them with job_output, job_input and job_stop.",
		"Prefer read_file, edit_file, write_file, list_files, glob and grep to cat, sed and ls: their results are bounded and exact.",
		"Long output keeps its beginning and end; the result says with which job_output call to read the rest.",
		"An error says what to do about it. If something stays refused or out of reach, say so and ask the user to change the configuration of gondolin-mcp.",
	}, "\n")
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
