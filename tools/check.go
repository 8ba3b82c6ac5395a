package tools

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/agnivade/levenshtein"
)

// maxItems bounds lists and maps in arguments.
const maxItems = 1000

// decode checks raw arguments and puts them, defaults filled in, into target.
// The problems are all that is wrong, in words for the model that sent them. A
// null counts as a missing argument: some clients send it for each optional one.
func (ps properties) decode(raw json.RawMessage, target any) (given map[string]any, problems []string) {
	given = map[string]any{}
	if raw = bytes.TrimSpace(raw); len(raw) > 0 && string(raw) != "null" {
		d := json.NewDecoder(bytes.NewReader(raw))
		d.UseNumber()
		if raw[0] != '{' || d.Decode(&given) != nil {
			return nil, []string{"arguments must be one JSON object, not " + quoteKind(raw)}
		}
	}
	clean := make(map[string]any, len(ps))
	for _, p := range ps {
		v, ok := given[p.name]
		switch {
		case !ok || v == nil:
			if p.need {
				problems = append(problems, fmt.Sprintf("`%s` is missing: %s", p.name, p.doc))
			} else if p.fallback != nil {
				clean[p.name] = p.fallback
			}
		default:
			v, wrong := p.check(v)
			problems = append(problems, wrong...)
			clean[p.name] = v
		}
	}
	problems = append(problems, ps.unknown(given)...)
	problems = append(problems, ps.misplaced(given, clean)...)
	if len(problems) > 0 {
		return nil, problems
	}
	data, err := json.Marshal(clean)
	if err == nil {
		err = json.Unmarshal(data, target)
	}
	if err != nil {
		return nil, []string{err.Error()}
	}
	return given, nil
}

// unknown names arguments that the tool does not have.
func (ps properties) unknown(given map[string]any) []string {
	var names, problems []string
	for name := range given {
		if ps.find(name) == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for i, name := range names {
		if i == 10 {
			problems = append(problems, fmt.Sprintf("and %d more unknown arguments", len(names)-i))
			break
		}
		problems = append(problems, fmt.Sprintf("`%s` is no argument of this tool%s", short(name, 60), ps.suggest(name)))
	}
	return problems
}

// misplaced names arguments that belong to other actions than the one that is asked for. One
// that says nothing, as some clients send for each optional one, is no mistake.
func (ps properties) misplaced(given, clean map[string]any) (problems []string) {
	action, _ := clean["action"].(string)
	for _, p := range ps {
		v := clean[p.name]
		if given[p.name] == nil || len(p.of) == 0 || slices.Contains(p.of, action) {
			continue
		}
		if v == nil || v == p.fallback || reflect.ValueOf(v).IsZero() {
			continue
		}
		problems = append(problems, fmt.Sprintf("`%s` goes with %s and not with %s: leave it out", p.name, strings.Join(p.of, ", "), action))
	}
	return problems
}

// otherNames are what other tools for agents call an argument, where spelling alone
// leads nowhere or astray: cmd is nearer to cwd than to command.
var otherNames = map[string][]string{
	"cmd": {"command"}, "script": {"command"}, "code": {"command"}, "shell": {"command"}, "args": {"argv"},
	"workdir": {"cwd"}, "working_directory": {"cwd"}, "working_dir": {"cwd"}, "directory": {"cwd", "path"}, "dir": {"cwd", "path"},
	"file": {"path"}, "filename": {"path"}, "folder": {"path"}, "text": {"content", "data"}, "contents": {"content"},
	"input": {"stdin", "data"}, "old": {"old_string"}, "new": {"new_string"}, "query": {"pattern"}, "regex": {"pattern"},
	"id": {"job_id", "session"}, "job": {"job_id"}, "session_id": {"session"}, "start": {"offset"}, "timeout": {"timeout_ms"},
}

// suggest names the known argument that was probably meant, or all of them.
func (ps properties) suggest(name string) string {
	for _, other := range otherNames[strings.ToLower(name)] {
		if ps.find(other) != nil {
			return fmt.Sprintf("; did you mean `%s`?", other)
		}
	}
	if len(name) <= 60 {
		best, distance := "", max(len(name)/2, 2)+1
		for _, p := range ps {
			d := levenshtein.ComputeDistance(strings.ToLower(name), p.name)
			// timeout for timeout_ms, file_path for path: one holds the other.
			if len(name) >= 4 && (strings.Contains(p.name, name) || strings.Contains(name, p.name)) {
				d = min(d, 1)
			}
			if d < distance {
				best, distance = p.name, d
			}
		}
		if best != "" {
			return fmt.Sprintf("; did you mean `%s`?", best)
		}
	}
	var all []string
	for _, p := range ps {
		all = append(all, p.name)
	}
	return "; it has " + strings.Join(all, ", ")
}

// check judges one value and returns it as Go wants to decode it.
func (p *property) check(v any) (any, []string) {
	wrong := func(format string, args ...any) (any, []string) {
		return nil, []string{fmt.Sprintf("`%s` %s", p.name, fmt.Sprintf(format, args...))}
	}
	switch p.kind {
	case "string":
		s, ok := v.(string)
		if !ok {
			return wrong("must be a string, not %s", kindOf(v))
		}
		if p.enum != nil && !slices.Contains(p.enum, s) {
			return wrong("must be one of %s, not %q", strings.Join(p.enum, ", "), short(s, 60))
		}
		n := int64(utf8.RuneCountInString(s))
		if p.min != nil && n < *p.min {
			return wrong("must not be empty")
		}
		if p.enum == nil && n > *p.max {
			return wrong("must be at most %d characters long; this one has %d", *p.max, n)
		}
		return s, nil
	case "integer":
		n, ok := integer(v)
		if !ok {
			return wrong("must be an integer%s, not %s", p.bounds(), kindOf(v))
		}
		if p.min != nil && n < *p.min || p.max != nil && n > *p.max {
			return wrong("must be an integer%s, not %d", p.bounds(), n)
		}
		return n, nil
	case "boolean":
		if _, ok := v.(bool); !ok {
			return wrong("must be true or false, not %s", kindOf(v))
		}
		return v, nil
	case "list":
		list, ok := v.([]any)
		if !ok {
			return wrong("must be an array of strings, not %s", kindOf(v))
		}
		if len(list) == 0 || len(list) > maxItems {
			return wrong("must have 1 to %d items, not %d", maxItems, len(list))
		}
		for i, item := range list {
			if _, ok := item.(string); !ok {
				return wrong("must be an array of strings; item %d is %s", i, kindOf(item))
			}
		}
		return list, nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		return wrong("must be an object whose values are strings, not %s", kindOf(v))
	}
	if len(m) > maxItems {
		return wrong("must have at most %d members, not %d", maxItems, len(m))
	}
	for name, item := range m {
		if _, ok := item.(string); !ok {
			return wrong("must be an object whose values are strings; the value of %q is %s", short(name, 60), kindOf(item))
		}
	}
	return m, nil
}

func (p *property) bounds() string {
	switch {
	case p.min != nil && p.max != nil:
		return fmt.Sprintf(" from %d to %d", *p.min, *p.max)
	case p.min != nil:
		return fmt.Sprintf(" of at least %d", *p.min)
	}
	return ""
}

// integer accepts what JSON Schema calls an integer: 5, 5.0 and 5e3.
func integer(v any) (int64, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	if i, err := n.Int64(); err == nil {
		return i, true
	}
	f, err := strconv.ParseFloat(n.String(), 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) >= 1<<53 {
		return 0, false
	}
	return int64(f), true
}

func kindOf(v any) string {
	switch v := v.(type) {
	case string:
		return fmt.Sprintf("the string %q", short(v, 40))
	case json.Number:
		return "the number " + short(v.String(), 40)
	case bool:
		return strconv.FormatBool(v)
	case []any:
		return "an array"
	case map[string]any:
		return "an object"
	}
	return "null"
}

func quoteKind(raw json.RawMessage) string {
	var v any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if d.Decode(&v) != nil {
		return "broken JSON"
	}
	return kindOf(v)
}

// short cuts a string for use in a message.
func short(s string, max int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if utf8.RuneCountInString(s) <= max {
		return s
	}
	return string([]rune(s)[:max]) + "…"
}
