package configs

import (
	"fmt"
	"strings"

	"github.com/knadh/koanf/maps"
	"go.yaml.in/yaml/v3"
)

// list describes a key whose value is a list of blocks. Layers do not replace each
// other's blocks: those of a later one are added.
type list struct {
	keys  table
	quiet bool // no value in the blocks appears in a message
	flags []listFlag
	// whole reports what is wrong between blocks, or between them and other keys. It
	// may change values. Nil: nothing.
	whole func(l *loader, blocks []*block)
}

// listFlag is a flag that adds a block.
type listFlag struct {
	name string // without hyphens
	form kind   // how its value is written, for the help
	help string
	// parse takes the value apart into texts for keys of the block; more than one are for
	// a list.
	parse func(text string) (map[string][]string, error)
}

// flagged is a list with one of its flags.
type flagged struct {
	*key
	flag *listFlag
}

// listFlagsNamed finds the lists to which a flag adds a block.
func listFlagsNamed(name string) (all []flagged) {
	for _, k := range keys {
		if k.kind != kindBlocks {
			continue
		}
		for i := range k.list.flags {
			if f := &k.list.flags[i]; f.name == name {
				all = append(all, flagged{k, f})
			}
		}
	}
	return all
}

// flagNames says which flags add to the list.
func (l *list) flagNames() string {
	var names []string
	for _, f := range l.flags {
		names = append(names, "--"+f.name)
	}
	switch n := len(names) - 1; {
	case n < 0:
		return ""
	case n > 0:
		names = []string{strings.Join(names[:n], ", "), names[n]}
	}
	return ", or with " + strings.Join(names, " and ")
}

// add begins a new block of a list.
func (l *loader) add(k *key, at Origin) *block {
	b := newBlock(fmt.Sprintf("%s[%d]", k.path, len(l.blocks[k.path])), k.list.keys, at)
	b.quiet = k.list.quiet
	l.blocks[k.path] = append(l.blocks[k.path], b)
	return b
}

// flagBlock adds the block that a flag's value describes, and says whether it can be read.
func (l *loader) flagBlock(k *key, f *listFlag, text string, o Origin) bool {
	texts, err := f.parse(text)
	if err != nil {
		l.report(Problem{Origin: o, Key: k.path, Message: err.Error(), Hint: "write --" + f.name + " " + string(f.form)})
		return false
	}
	b := l.add(k, o)
	for _, item := range b.keys {
		words, given := texts[item.path]
		if !given {
			continue
		}
		b.origins[item.path] = o
		if item.kind == kindWords {
			b.values[item.path] = words
			continue
		}
		if v, ok := l.value(item, b.key(item.path), words[0], o); ok {
			b.values[item.path] = v
		} else {
			b.wrong = true
		}
	}
	return true
}

// readBlocks reads the blocks of a list in a file.
func (f *fileLayer) readBlocks(k *key, v *yaml.Node) {
	f.top.origins[k.path] = f.at(v.Line)
	if isNull(v) {
		return // blocks that are all commented out
	}
	if v.Kind != yaml.SequenceNode {
		f.bad(v.Line, k.path, "want a list of blocks, each beginning with a hyphen; got "+(&block{quiet: k.list.quiet}).describe(v), "")
		return
	}
	for _, item := range v.Content {
		b := f.add(k, f.at(item.Line))
		switch item.Kind {
		case yaml.MappingNode:
			before := len(f.problems) + f.more
			f.section(b, "", item)
			b.wrong = b.wrong || len(f.problems)+f.more > before
			continue
		case yaml.AliasNode:
			f.bad(item.Line, b.name, "aliases are not understood", "write the block out")
		default:
			f.bad(item.Line, b.name, "want a block of keys, got "+b.describe(item), "")
		}
		b.wrong = true
	}
}

// readWords reads a list of texts.
func (f *fileLayer) readWords(in *block, k *key, v *yaml.Node) {
	if _, twice := in.origins[k.path]; twice {
		f.bad(v.Line, in.key(k.path), "it is given twice", "")
		return
	}
	in.origins[k.path] = f.at(v.Line)
	words := []string{}
	before := len(f.problems) + f.more
	switch {
	case isNull(v):
		f.bad(v.Line, in.key(k.path), "it has no value", "give it one, or leave the key out")
	case v.Kind != yaml.SequenceNode:
		f.bad(v.Line, in.key(k.path), "want "+k.kind.words()+", got "+in.describe(v), "")
	case k.optional && len(v.Content) == 0:
		f.bad(v.Line, in.key(k.path), "the list is empty", "name something, or leave the key out")
	}
	for i, item := range v.Content {
		if v.Kind != yaml.SequenceNode {
			break
		}
		name := fmt.Sprintf("%s[%d]", in.key(k.path), i)
		switch {
		case item.Kind != yaml.ScalarNode:
			f.bad(item.Line, name, "want text, got "+in.describe(item), "")
		case isNull(item):
			f.bad(item.Line, name, "it is empty", "put it in quotes")
		case strings.ContainsRune(item.Value, 0):
			f.bad(item.Line, name, "it contains a NUL", "")
		default:
			// Mistakes that are found later stand in this line too.
			f.origins[name] = f.at(item.Line)
			words = append(words, f.word(k, name, item))
		}
	}
	if len(f.problems)+f.more > before {
		in.wrong = true
		return
	}
	in.values[k.path] = words
}

// word reads one item of a list of texts or paths.
func (f *fileLayer) word(k *key, name string, item *yaml.Node) string {
	text, problem := item.Value, ""
	if k.kind == kindPaths {
		var err error
		if text, err = f.dir(item.Value, f.at(item.Line)); err != nil {
			problem = err.Error()
		}
	} else if k.check != nil {
		problem = k.check(text, text)
	}
	if problem != "" {
		f.bad(item.Line, name, problem, "")
	}
	return text
}

// finishLists fills the blocks of all layers in and judges them together.
func (l *loader) finishLists() {
	layer, origins := map[string]any{}, map[string]Origin{}
	for _, k := range keys {
		if k.kind != kindBlocks {
			continue
		}
		blocks := l.blocks[k.path]
		items := make([]any, 0, len(blocks))
		for _, b := range blocks {
			origins[b.name] = b.at
			l.fill(b, origins)
		}
		if k.list.whole != nil {
			k.list.whole(l, blocks)
		}
		for _, b := range blocks {
			items = append(items, maps.Unflatten(b.values, "."))
		}
		layer[k.path] = items
		if _, given := l.origins[k.path]; !given {
			origins[k.path] = Origin{Kind: KindDefault}
			if len(blocks) > 0 {
				origins[k.path] = blocks[0].at
			}
		}
	}
	l.merge(layer, origins)
}

// fill puts defaults into a block, and reports what is missing or out of place.
func (l *loader) fill(b *block, origins map[string]Origin) {
	for _, k := range b.keys {
		o, given := b.origins[k.path]
		if k.applies != nil {
			if problem := k.applies(b); problem != "" {
				if given {
					l.report(Problem{Origin: o, Key: b.key(k.path), Message: problem})
				}
				continue
			}
		}
		switch {
		case given:
			origins[b.key(k.path)] = o
		case k.optional:
		case !k.need:
			b.values[k.path], origins[b.key(k.path)] = k.def, Origin{Kind: KindDefault}
		case !b.wrong: // else it may only seem to be missing
			l.report(Problem{Origin: b.at, Key: b.key(k.path), Message: "it is missing", Hint: k.help})
		}
	}
}
