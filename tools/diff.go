package tools

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/pmezard/go-difflib/difflib"
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

// noMatch says what is in the file instead of one occurrence.
func noMatch(a *editFileArgs, data []byte) error {
	path := short(a.Path, 200)
	if n := bytes.Count(data, []byte(a.OldString)); n > 1 {
		return toolErrorf("nothing was changed: old_string occurs %d times in %s, in lines %s. Give more of the text around the one you mean, or set replace_all.",
			n, path, matchLines(data, a.OldString))
	}
	if hint := endingsHint(a.OldString, data); hint != "" {
		return toolErrorf("nothing was changed: old_string does not occur in %s, because line ends differ. %s", path, hint)
	}
	part := ""
	if len(data) > nearMax {
		data = data[:nearMax]
		part = fmt.Sprintf(" The first %d bytes were searched for similar lines.", nearMax)
	}
	return toolErrorf("nothing was changed: old_string does not occur in %s.%s%s", path, part, nearest(string(wholeRunes(data)), a.OldString))
}

// endingsHint says what to do where nothing but line ends keeps old from matching.
func endingsHint(old string, data []byte) string {
	plain := func(s string) string { return strings.ReplaceAll(s, "\r\n", "\n") }
	if !strings.Contains(plain(string(data)), plain(old)) {
		return ""
	}
	crlf := bytes.Count(data, []byte("\r\n"))
	switch crlf {
	case 0:
		return `The lines of the file end with \n, and old_string has \r\n: write \n in old_string and new_string.`
	case bytes.Count(data, []byte("\n")):
		return `The file has CRLF line ends: write \r\n for each line end in old_string, and in new_string to keep it so.`
	}
	return `The file has both CRLF and plain line ends: write in old_string \r\n where a line has it and \n elsewhere (exec with cat -A shows them as ^M$ and $), or edit one line at a time.`
}

// lineOf is the number of the line that holds the byte at an offset.
func lineOf(data []byte, at int) string {
	return strconv.Itoa(1 + bytes.Count(data[:at], []byte("\n")))
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
