package tools

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/pmezard/go-difflib/difflib"

	"github.com/gondolin-go/gondolin/sandbox"
)

const (
	diffContext  = 3
	diffMaxLines = 2000    // of the changed region; difflib takes quadratic time
	nearMax      = 1 << 20 // bytes of a file that are searched for similar lines
	nearLines    = 20000
)

// unifiedDiff compares two versions of a file. Only what lies between the first
// and the last difference is given to difflib.
func unifiedDiff(path string, before, after []byte) string {
	a, b := splitLines(before), splitLines(after)
	head := 0
	for head < min(len(a), len(b)) && a[head] == b[head] {
		head++
	}
	tail := 0
	for tail < min(len(a), len(b))-head && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	head, tail = max(head-diffContext, 0), max(tail-diffContext, 0)
	a, b = a[head:len(a)-tail], b[head:len(b)-tail]
	if len(a)+len(b) > 2*diffMaxLines {
		return fmt.Sprintf("[lines %d to %d changed; too much to be compared]\n", head+1, head+len(a))
	}
	text, err := difflib.GetUnifiedDiffString(difflib.UnifiedDiff{
		A: a, B: b, FromFile: path, ToFile: path, Context: diffContext,
	})
	if err != nil {
		return "[no diff: " + err.Error() + "]\n"
	}
	text, _ = validUTF8([]byte(text))
	return shiftHunks(text, head)
}

// splitLines keeps line ends; a last line without one gets a mark.
func splitLines(data []byte) []string {
	lines := strings.SplitAfter(string(data), "\n")
	if last := len(lines) - 1; lines[last] == "" {
		lines = lines[:last]
	} else {
		lines[last] += "\n\\ No newline at end of file\n"
	}
	return lines
}

var hunk = regexp.MustCompile(`(?m)^@@ -(\d+)(,\d+)? \+(\d+)(,\d+)? @@$`)

// shiftHunks adds the lines that were left out before the first hunk.
func shiftHunks(diff string, by int) string {
	return hunk.ReplaceAllStringFunc(diff, func(s string) string {
		m := hunk.FindStringSubmatch(s)
		from, _ := strconv.Atoi(m[1])
		to, _ := strconv.Atoi(m[3])
		return fmt.Sprintf("@@ -%d%s +%d%s @@", from+by, m[2], to+by, m[4])
	})
}

// editError says what is in the file instead of one occurrence.
func editError(ctx context.Context, sess Session, a *editFileArgs, err error) error {
	if !errors.Is(err, sandbox.ErrNoMatch) {
		return err
	}
	data, info, readErr := readRange(ctx, sess, a.Path, 0, nearMax)
	if readErr != nil {
		return fmt.Errorf("%w; the file could not be searched for similar lines: %w", err, readErr)
	}
	part := ""
	if info.Size > nearMax {
		part = fmt.Sprintf(" (looking at its first %d bytes)", nearMax)
	}
	if n := bytes.Count(data, []byte(a.OldString)); n > 1 {
		return toolErrorf("nothing was changed: old_string occurs %d times in %s%s, in lines %s. Give more of the text around the one you mean, or set replace_all.",
			n, short(a.Path, 200), part, matchLines(data, a.OldString))
	}
	text, _ := validUTF8(data)
	return toolErrorf("nothing was changed: old_string does not occur in %s%s.%s", short(a.Path, 200), part, nearest(text, a.OldString))
}

// matchLines lists the lines in which matches begin.
func matchLines(data []byte, old string) string {
	var lines []string
	line, at := 1, 0
	for {
		i := bytes.Index(data[at:], []byte(old))
		if i < 0 {
			return strings.Join(lines, ", ")
		}
		line += bytes.Count(data[at:at+i], []byte("\n"))
		if len(lines) == 20 {
			return strings.Join(lines, ", ") + ", …"
		}
		lines = append(lines, strconv.Itoa(line))
		line += strings.Count(old, "\n")
		at += i + len(old)
	}
}

type nearLine struct {
	number, distance int
	text             string
}

// nearest shows the lines that are most like the first line of what was sought.
func nearest(text, old string) string {
	want := ""
	for line := range strings.Lines(old) {
		if want = squeeze(line); want != "" {
			break
		}
	}
	if want == "" {
		return " It is only white space; give the text around it."
	}
	want = short(want, 200)
	var best []nearLine
	for i, line := range slices.Collect(strings.Lines(text)) {
		if i == nearLines {
			break
		}
		got := short(squeeze(line), 200)
		// The lengths alone are a lower bound that spares most comparisons.
		if got == "" || abs(len(got)-len(want)) > len(want)/2 {
			continue
		}
		d := levenshtein.ComputeDistance(got, want)
		if d > len(want)/2 {
			continue
		}
		best = append(best, nearLine{i + 1, d, short(strings.TrimRight(line, "\r\n"), 200)})
		if len(best) > 64 {
			best = closest(best)
		}
	}
	best = closest(best)
	if len(best) == 0 {
		return " No line is similar to its first one; read the file again."
	}
	var b strings.Builder
	b.WriteString(" The lines most like its first one are:\n")
	for _, l := range best {
		fmt.Fprintf(&b, "%6d\t%s\n", l.number, l.text)
	}
	if best[0].distance == 0 {
		b.WriteString("The first of them differs at most in white space, or what follows it differs. ")
	}
	b.WriteString("Copy the text from the file exactly, tabs and spaces too.")
	return b.String()
}

func closest(lines []nearLine) []nearLine {
	slices.SortStableFunc(lines, func(a, b nearLine) int { return a.distance - b.distance })
	return lines[:min(len(lines), 3)]
}

func squeeze(line string) string { return strings.Join(strings.Fields(line), " ") }

func abs(n int) int { return max(n, -n) }
