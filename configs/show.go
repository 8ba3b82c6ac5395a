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
// session.env by name.
func (c *Config) Entries() []Entry {
	var tree map[string]any
	if b, err := json.Marshal(c); err != nil || json.Unmarshal(b, &tree) != nil {
		return nil // cannot happen: a Config is plain data
	}
	list := []Entry{{Key: "version", Value: c.Version, Origin: c.origins["version"]}}
	for _, k := range keys {
		section, name, _ := strings.Cut(k.path, ".")
		value := tree[section].(map[string]any)[name]
		if k.kind != kindVars {
			list = append(list, Entry{Key: k.path, Value: value, Origin: c.origins[k.path]})
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(c.Session.Env)) {
			path := sessionEnv + "." + name
			list = append(list, Entry{Key: path, Value: c.Session.Env[name], Origin: c.origins[path]})
		}
	}
	return list
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
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		full := strings.TrimPrefix(path+"."+k.Value, ".")
		if o, ok := c.origins[full]; ok {
			v.LineComment = show(o.String())
		}
		c.comment(v, full)
	}
}
