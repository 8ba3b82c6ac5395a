package configs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Entry is one key with its value and where that comes from.
type Entry struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Origin Origin `json:"origin"`
}

// Entries lists every key in the order of the file, with the variables of
// session.env by name and the blocks of lists by number.
func (c *Config) Entries() []Entry {
	var tree map[string]any
	if b, err := json.Marshal(c); err != nil || json.Unmarshal(b, &tree) != nil {
		return nil // cannot happen: a Config is plain data
	}
	entries := []Entry{{Key: "version", Value: c.Version, Origin: c.origins["version"]}}
	add := func(path string, value any) {
		entries = append(entries, Entry{Key: path, Value: value, Origin: c.origins[path]})
	}
	for _, k := range keys {
		value, _ := at(tree, k.path)
		switch k.kind {
		case kindVars:
			for _, name := range slices.Sorted(maps.Keys(c.Session.Env)) {
				add(sessionEnv+"."+name, c.Session.Env[name])
			}
		case kindBlocks:
			blocks, _ := value.([]any)
			if len(blocks) == 0 {
				add(k.path, value)
			}
			for i, b := range blocks {
				for _, item := range k.list.keys {
					if value, there := at(b, item.path); there {
						add(fmt.Sprintf("%s[%d].%s", k.path, i, item.path), value)
					}
				}
			}
		default:
			add(k.path, value)
		}
	}
	return entries
}

// at walks a path of keys down.
func at(tree any, path string) (value any, there bool) {
	for name := range strings.SplitSeq(path, ".") {
		m, _ := tree.(map[string]any)
		if tree, there = m[name]; !there {
			return nil, false
		}
	}
	return tree, true
}

// YAML is the configuration as a file that Load reads again. With origins, each
// value has a comment that says where it comes from.
func (c *Config) YAML(origins bool) ([]byte, error) {
	var doc yaml.Node
	if err := doc.Encode(c); err != nil {
		return nil, fmt.Errorf("printing the configuration: %w", err)
	}
	if origins {
		c.comment(&doc, "")
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return nil, fmt.Errorf("printing the configuration: %w", err)
	}
	return b.Bytes(), enc.Close()
}

func (c *Config) comment(n *yaml.Node, path string) {
	if n.Kind == yaml.SequenceNode {
		for i, item := range n.Content {
			c.comment(item, fmt.Sprintf("%s[%d]", path, i))
		}
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		full := strings.TrimPrefix(path+"."+k.Value, ".")
		// A comment at a list of blocks would stand after all of them.
		if o, ok := c.origins[full]; ok && (v.Kind != yaml.SequenceNode || v.Style == yaml.FlowStyle) {
			v.LineComment = show(o.String())
		}
		c.comment(v, full)
	}
}
