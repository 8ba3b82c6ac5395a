package configs

import (
	"slices"
	"strings"
)

// table is a set of keys: those of a configuration, or those of each block of a list.
type table []*key

func (t table) find(path string) *key {
	if i := slices.IndexFunc(t, func(k *key) bool { return k.path == path }); i >= 0 {
		return t[i]
	}
	return nil
}

// dir is the section that the key is in, or "".
func (k *key) dir() string { return k.path[:max(0, strings.LastIndex(k.path, "."))] }

// isSection reports whether a path is that of a block of keys.
func (t table) isSection(path string) bool {
	return slices.ContainsFunc(t, func(k *key) bool { return k.dir() == path && path != "" })
}

// sections are the blocks of keys.
func (t table) sections() []string {
	var list []string
	for _, k := range t {
		if d := k.dir(); d != "" && !slices.Contains(list, d) {
			list = append(list, d)
		}
	}
	return list
}

// optional says whether all keys of a section of a block are, so that it is only there
// if something is in it.
func (t table) optional(section string) bool {
	return t.isSection(section) && !slices.ContainsFunc(t, func(k *key) bool { return k.dir() == section && !k.optional })
}

// shortOf is the key that a list in the place of a section stands for, or nil.
func (t table) shortOf(section string) *key {
	if i := slices.IndexFunc(t, func(k *key) bool { return k.short && k.dir() == section }); i >= 0 {
		return t[i]
	}
	return nil
}

// block is what one layer says of the keys of one table: the whole configuration,
// or one block of a list.
type block struct {
	name    string // "mounts[1]"; "" for a whole configuration
	keys    table
	at      Origin            // where it begins
	values  map[string]any    // by path
	origins map[string]Origin // of every key that was given, also of those whose value is wrong
	wrong   bool              // something is, and has been reported
	quiet   bool              // its values appear in no message
}

func newBlock(name string, keys table, at Origin) *block {
	return &block{name: name, keys: keys, at: at, values: map[string]any{}, origins: map[string]Origin{}}
}

// key names a path below the block.
func (b *block) key(path string) string {
	switch {
	case b.name == "":
		return path
	case path == "":
		return b.name
	}
	return b.name + "." + path
}

// text is a value that is text, or "" when there is none.
func (b *block) text(path string) string {
	s, _ := b.values[path].(string)
	return s
}
