package configs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// fileLayer is the walk over one YAML document. It works on nodes, because they
// know their lines and because aliases in them are not followed.
type fileLayer struct {
	*loader
	name    string
	layer   map[string]any
	origins map[string]Origin
	version bool // was there one
}

func (l *loader) file(name string, data []byte) {
	f := &fileLayer{loader: l, name: name, layer: map[string]any{}, origins: map[string]Origin{}}
	if doc := f.parse(data); doc != nil {
		f.section("", doc)
		if !f.version {
			f.bad(0, "version", "the version is missing", fmt.Sprintf("begin the file with `version: %d`", Version))
		}
	}
	l.merge(f.layer, f.origins)
}

func (f *fileLayer) bad(line int, key, message, hint string) {
	f.report(Problem{Origin: f.at(line), Key: key, Message: message, Hint: hint})
}

func (f *fileLayer) at(line int) Origin { return Origin{Kind: KindFile, Name: f.name, Line: line} }

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// parse returns the mapping at the top, or nil after reporting why there is none.
func (f *fileLayer) parse(data []byte) *yaml.Node {
	if len(data) > maxFile {
		f.bad(0, "", fmt.Sprintf("the file is larger than %d KiB", maxFile>>10), "this is no configuration of gondolin-mcp")
		return nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(trimBOM(data)))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return &yaml.Node{Kind: yaml.MappingNode}
	case err != nil:
		m := yamlLine.FindStringSubmatch(err.Error())
		if m == nil {
			m = []string{"", ""}
		}
		line, _ := strconv.Atoi(m[1])
		if tab := tabbedLine(data); tab > 0 {
			f.bad(tab, "", "tabs are not allowed for indentation", "use spaces, two for each step")
			return nil
		}
		f.bad(line, "", "this is not YAML", strings.TrimPrefix(err.Error(), m[0]))
		return nil
	}
	var next yaml.Node
	if err := dec.Decode(&next); !errors.Is(err, io.EOF) {
		f.bad(next.Line, "", "a second YAML document begins here", "put everything into one")
	}
	if len(doc.Content) == 0 {
		return &yaml.Node{Kind: yaml.MappingNode}
	}
	top := doc.Content[0]
	if isNull(top) {
		return &yaml.Node{Kind: yaml.MappingNode}
	}
	if top.Kind != yaml.MappingNode {
		f.bad(top.Line, "", "want keys and values, got "+describe(top), "")
		return nil
	}
	return top
}

// tabbedLine is the first line that is indented with a tab, or 0. It is asked only
// about what is no YAML: in the text of a block a tab may well stand there.
func tabbedLine(data []byte) int {
	n := 0
	for line := range bytes.Lines(data) {
		n++
		if bytes.HasPrefix(bytes.TrimLeft(line, " "), []byte("\t")) && len(bytes.TrimSpace(line)) > 0 {
			return n
		}
	}
	return 0
}

// section reads the keys of one block; path is "" at the top.
func (f *fileLayer) section(path string, block *yaml.Node) {
	seen := map[string]int{}
	for i := 0; i+1 < len(block.Content); i += 2 {
		k, v := block.Content[i], block.Content[i+1]
		full, ok := f.keyPath(path, k, seen)
		if !ok {
			continue
		}
		if v.Kind == yaml.AliasNode {
			f.bad(v.Line, full, "aliases are not understood", "write the value out")
			continue
		}
		switch spec := findKey(full); {
		case full == "version":
			f.readVersion(v)
		case full == sessionEnv || isSection(full):
			if isNull(v) {
				continue // a block whose keys are all commented out
			}
			if v.Kind != yaml.MappingNode {
				f.bad(v.Line, full, "want a block of keys, got "+describe(v), "")
				continue
			}
			f.section(full, v)
		case path == sessionEnv:
			f.readVariable(k.Value, v)
		case spec == nil:
			f.bad(k.Line, full, "unknown key "+show(full), unknownKeyHint(path, full))
		default:
			f.read(spec, v)
		}
	}
}

// keyPath names the key k below path, and refuses what is no key or comes twice.
func (f *fileLayer) keyPath(path string, k *yaml.Node, seen map[string]int) (string, bool) {
	switch {
	case k.Kind != yaml.ScalarNode:
		f.bad(k.Line, path, "want a word as a key, got "+describe(k), "")
		return "", false
	case k.ShortTag() == "!!merge":
		f.bad(k.Line, path, "merge keys (<<) are not understood", "write the values out")
		return "", false
	}
	full := k.Value
	if path != "" {
		full = path + "." + k.Value
	}
	if first, twice := seen[k.Value]; twice {
		f.bad(k.Line, full, "duplicate key "+show(full), fmt.Sprintf("line %d has it already", first))
		return "", false
	}
	seen[k.Value] = k.Line
	if path != sessionEnv && strings.Contains(k.Value, ".") {
		hint := unknownKeyHint(path, full)
		if findKey(full) != nil {
			section, name, _ := strings.Cut(full, ".")
			hint = fmt.Sprintf("write `%s:` and below it, indented, `%s:`", section, name)
		}
		f.bad(k.Line, full, "unknown key "+show(full), hint)
		return "", false
	}
	return full, true
}

func (f *fileLayer) readVersion(v *yaml.Node) {
	f.version = true
	switch n, err := strconv.Atoi(v.Value); {
	case v.Kind != yaml.ScalarNode || v.ShortTag() != "!!int" || err != nil:
		f.bad(v.Line, "version", "want a number, got "+describe(v), fmt.Sprintf("write `version: %d`", Version))
	case n != Version:
		f.bad(v.Line, "version", fmt.Sprintf("version %d is unknown", n), fmt.Sprintf("this gondolin-mcp reads version %d", Version))
	default:
		f.layer["version"], f.origins["version"] = n, f.at(v.Line)
	}
}

// read takes the value of an ordinary key.
func (f *fileLayer) read(k *key, v *yaml.Node) {
	switch {
	case isNull(v):
		f.bad(v.Line, k.path, "it has no value", "give it one, or leave the key out")
		return
	case v.Kind != yaml.ScalarNode || !k.takes(v):
		hint := ""
		if v.Kind == yaml.ScalarNode && (k.kind == kindText || k.kind == kindPath) {
			hint = "put it in quotes"
		}
		f.bad(v.Line, k.path, "want "+k.kind.words()+", got "+describe(v), hint)
		return
	}
	if value, ok := f.value(k, v.Value, f.at(v.Line)); ok {
		f.layer[k.path], f.origins[k.path] = value, f.at(v.Line)
	}
}

// takes says whether the type that YAML gives a scalar goes with the key. Text
// may look like a number (`user: 1000`): taken as it is written, it is meant so.
func (k *key) takes(v *yaml.Node) bool {
	switch v.ShortTag() {
	case "!!bool":
		return k.kind == kindBool
	case "!!int":
		return k.kind != kindBool && k.kind != kindEnum
	case "!!str":
		return k.kind != kindBool && k.kind != kindInt
	}
	return false
}

// readVariable takes a variable of session.env. Its value is what is written,
// whatever YAML takes it for: nobody means 8080.0 by 8080.
func (f *fileLayer) readVariable(name string, v *yaml.Node) {
	switch {
	case v.Kind != yaml.ScalarNode:
		f.bad(v.Line, sessionEnv+"."+name, "want text, got "+describe(v), "")
	case isNull(v):
		f.bad(v.Line, sessionEnv+"."+name, "it has no value", `write "" for an empty one`)
	case f.variable(name, v.Value, f.at(v.Line)):
		path := sessionEnv + "." + name
		f.layer[path], f.origins[path] = v.Value, f.at(v.Line)
	}
}

func (k kind) words() string {
	switch k {
	case kindBool:
		return "true or false"
	case kindInt:
		return "a whole number"
	case kindSize:
		return "a size such as 2GiB"
	case kindDuration:
		return "a duration such as 30m"
	}
	return "text"
}

func isNull(v *yaml.Node) bool { return v.Kind == yaml.ScalarNode && v.ShortTag() == "!!null" }

// describe says what a node is, for "got …".
func describe(v *yaml.Node) string {
	switch v.Kind {
	case yaml.MappingNode:
		return "a block of keys"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	what := map[string]string{"!!str": "the text", "!!int": "the number", "!!float": "the number", "!!bool": "the truth value", "!!timestamp": "the date"}[v.ShortTag()]
	switch {
	case v.ShortTag() == "!!null":
		return "nothing"
	case what == "":
		what = "a value of the type " + show(v.ShortTag())
	}
	return what + " " + quote(v.Value)
}

// show is a name as it is, unless it holds what should not reach a terminal.
func show(s string) string {
	if len(s) > 300 {
		return quote(s)
	}
	if q := strconv.Quote(s); q != `"`+s+`"` {
		return q
	}
	return s
}
