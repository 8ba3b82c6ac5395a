package tools

import (
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/gondolin-go/gondolin/sandbox"
)

// Denial is one refusal by the host.
type Denial struct {
	Kind   string `json:"kind" jsonschema:"file or network"`
	What   string `json:"what" jsonschema:"what was tried, such as write"`
	Path   string `json:"path" jsonschema:"on what: a path, or a URL"`
	Rule   string `json:"rule,omitempty" jsonschema:"the rule that refused it"`
	Reason string `json:"reason" jsonschema:"why"`
	Remedy string `json:"remedy,omitempty" jsonschema:"what would help"`
}

// denialsShown bounds the denials of one result.
const denialsShown = 20

// cutDenials are the newest ones in the words of a result, and how many were left off.
func cutDenials(all []sandbox.Denial) (shown []Denial, more int) {
	more = max(0, len(all)-denialsShown)
	shown = make([]Denial, 0, len(all)-more)
	for _, d := range all[more:] {
		shown = append(shown, Denial{
			Kind: short(printable(d.Kind), 20), What: short(printable(d.What), 40), Path: short(printable(d.Path), 200),
			Rule: short(printable(d.Rule), 100), Reason: short(printable(d.Reason), 200), Remedy: short(printable(d.Remedy), 300),
		})
	}
	return shown, more
}

// denialLines say the same, a line each. A remedy that several have is said once.
func denialLines(shown []Denial, more int) string {
	var b strings.Builder
	for i, d := range shown {
		fmt.Fprintf(&b, "\n[refused: %s]", d.line())
		if last := i == len(shown)-1; d.Remedy != "" && (last || shown[i+1].Remedy != d.Remedy) {
			fmt.Fprintf(&b, "\n[%s]", d.Remedy)
		}
	}
	if more > 0 {
		fmt.Fprintf(&b, "\n[%d earlier ones were refused too]", more)
	}
	return b.String()
}

func (d Denial) line() string { return fmt.Sprintf("%s %s: %s", d.What, d.Path, d.Reason) }

// denialLook is how long before a call a denial of the same path may lie: for a moment
// the guest's kernel knows by itself that a hidden file is not there.
const denialLook = 2 * time.Second

// denialHint is the refusal behind the failure of an operation on a file, or nothing.
func denialHint(c *call, e *sandbox.FileError) string {
	switch e.Errno {
	case "EPERM", "EACCES", "EROFS", "ENOENT":
	default:
		return ""
	}
	var found *sandbox.Denial
	all := c.sess.Denials(c.began.Add(-denialLook))
	for i := range all {
		d := &all[i]
		switch {
		case d.Kind != "file":
		case under(e.Path, d.Path):
			found = d
		// The guest writes beside the file and renames; and a link may have another name.
		case e.Errno != "ENOENT" && d.Time.After(c.began) && (found == nil || path.Dir(d.Path) == path.Dir(e.Path)):
			found = d
		}
	}
	if found == nil {
		return ""
	}
	shown, _ := cutDenials([]sandbox.Denial{*found})
	return fmt.Sprintf("\nRefused by gondolin: %s. %s", shown[0].line(), shown[0].Remedy)
}
