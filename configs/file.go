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
	top     *block
	version bool // was there one
}

func (l *loader) file(name string, data []byte) {
	f := &fileLayer{loader: l, name: name, top: newBlock("", keys, Origin{})}
	if doc := f.parse(data); doc != nil {
		f.section(f.top, "", doc)
		if !f.version {
			f.bad(0, "version", "the version is missing", fmt.Sprintf("begin the file with `version: %d`", Version))
		}
	}
	l.merge(f.top.values, f.top.origins)
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

// section reads the keys of one block of text; path is "" at its top.
func (f *fileLayer) section(in *block, path string, node *yaml.Node) {
	seen := map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		k, v := node.Content[i], node.Content[i+1]
		full, ok := f.keyPath(in, path, k, seen)
		if !ok {
			continue
		}
		if v.Kind == yaml.AliasNode {
			f.bad(v.Line, in.key(full), "aliases are not understood", "write the value out")
			continue
		}
		spec := in.keys.find(full)
		switch vars := spec != nil && spec.kind == kindVars; {
		case in == f.top && full == "version":
			f.readVersion(v)
		case vars || in.keys.isSection(full):
			f.readSection(in, full, v)
		case in == f.top && path == sessionEnv:
			f.readVariable(k.Value, v)
		case spec == nil:
			f.bad(k.Line, in.key(full), "unknown key "+show(in.key(full)), in.unknownKeyHint(path, full))
		case spec.kind == kindBlocks:
			f.readBlocks(spec, v)
		case spec.kind == kindWords || spec.kind == kindPaths:
			f.readWords(in, spec, v)
		default:
			f.read(in, spec, v)
		}
	}
}

// readSection reads a block of keys, or what may stand in its place.
func (f *fileLayer) readSection(in *block, path string, v *yaml.Node) {
	short := in.keys.shortOf(path)
	switch {
	case in.keys.optional(path) && (isNull(v) || len(v.Content) == 0 && v.Kind == yaml.MappingNode):
		f.bad(v.Line, in.key(path), "it says nothing", "give it keys, or leave it out")
	case isNull(v): // a block whose keys are all commented out
	case v.Kind == yaml.MappingNode:
		f.section(in, path, v)
	case short != nil && v.Kind == yaml.SequenceNode:
		f.readWords(in, short, v)
	case short != nil:
		f.bad(v.Line, in.key(path), "want a list, or a block with "+strings.Join(in.keys.known(path), ", ")+"; got "+in.describe(v), "")
	default:
		f.bad(v.Line, in.key(path), "want a block of keys, got "+in.describe(v), "")
	}
}

// keyPath names the key k below path, and refuses what is no key or comes twice.
func (f *fileLayer) keyPath(in *block, path string, k *yaml.Node, seen map[string]int) (string, bool) {
	switch {
	case k.Kind != yaml.ScalarNode:
		f.bad(k.Line, in.key(path), "want a word as a key, got "+describe(k), "")
		return "", false
	case k.ShortTag() == "!!merge":
		f.bad(k.Line, in.key(path), "merge keys (<<) are not understood", "write the values out")
		return "", false
	}
	full := k.Value
	if path != "" {
		full = path + "." + k.Value
	}
	if first, twice := seen[k.Value]; twice {
		f.bad(k.Line, in.key(full), "duplicate key "+show(in.key(full)), fmt.Sprintf("line %d has it already", first))
		return "", false
	}
	seen[k.Value] = k.Line
	if (in != f.top || path != sessionEnv) && strings.Contains(k.Value, ".") {
		hint := in.unknownKeyHint(path, full)
		if in.keys.find(full) != nil {
			section, name, _ := strings.Cut(full, ".")
			hint = fmt.Sprintf("write `%s:` and below it, indented, `%s:`", section, name)
		}
		f.bad(k.Line, in.key(full), "unknown key "+show(in.key(full)), hint)
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
		f.top.values["version"], f.top.origins["version"] = n, f.at(v.Line)
	}
}

// read takes the value of an ordinary key.
func (f *fileLayer) read(in *block, k *key, v *yaml.Node) {
	in.origins[k.path] = f.at(v.Line)
	switch {
	case isNull(v):
		f.bad(v.Line, in.key(k.path), "it has no value", "give it one, or leave the key out")
	case v.Kind != yaml.ScalarNode || !k.takes(v):
		hint := ""
		if v.Kind == yaml.ScalarNode && (k.kind == kindText || k.kind == kindPath || k.kind == kindDir) {
			hint = "put it in quotes"
		}
		f.bad(v.Line, in.key(k.path), "want "+k.kind.words()+", got "+in.describe(v), hint)
	default:
		if value, ok := f.value(k, in.key(k.path), v.Value, f.at(v.Line)); ok {
			in.values[k.path] = value
			return
		}
	}
	in.wrong = true
}

// takes says whether the type that YAML gives a scalar goes with the key. Text
// may look like a number (`user: 1000`): taken as it is written, it is meant so.
func (k *key) takes(v *yaml.Node) bool {
	switch v.ShortTag() {
	case "!!bool":
		return k.kind == kindBool
	case "!!int":
		return k.kind != kindBool && k.kind != kindEnum
	case "!!float":
		return k.kind == kindNumber
	case "!!str":
		return k.kind != kindBool && k.kind != kindInt && k.kind != kindNumber
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
		f.top.values[path], f.top.origins[path] = v.Value, f.at(v.Line)
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
	case kindWords:
		return "a list of texts"
	case kindPaths:
		return "a list of paths"
	case kindPath:
		return "path that is absolute or begins with ~/"
	case kindNumber:
		return "a number"
	case kindBytes:
		return "an amount of data such as 10MiB"
	}
	return "text"
}

func isNull(v *yaml.Node) bool { return v.Kind == yaml.ScalarNode && v.ShortTag() == "!!null" }

// describe is the same where a value may be a secret.
func (b *block) describe(v *yaml.Node) string {
	if b.quiet {
		return "something else"
	}
	return describe(v)
}

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
