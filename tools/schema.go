package tools

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// property describes one argument of a tool. It is read from the tags of the
// struct that the tool takes:
//
//	Path  string `json:"path" doc:"What it is." need:"yes"`
//	Limit int    `json:"limit" doc:"…" default:"100" min:"1" max:"1000"`
//	Mode  string `json:"mode" max:"16" doc:"…" enum:"a,b"`
//	Count int    `json:"count" of:"fork" doc:"…"`
//
// What of names are the values of the argument action that this one belongs to; its description begins with them.
// The same properties make the published schema and the check of arguments.
// There is no kind that would need a union in the schema.
type property struct {
	name, kind, doc string // kind: string, integer, boolean, list (of strings), map (of strings)
	need            bool
	fallback        any // taken when the argument is missing
	min, max        *int64
	enum            []string
	of              []string // actions; none: all
}

// properties are a tool's arguments in the order of the struct.
type properties []*property

// maxString bounds strings that say nothing else, as the kernel bounds one
// argument of a program.
const maxString = 131071

// propertiesOf reads the tags of T. It panics on a mistake in them, which every
// test of the package would meet.
func propertiesOf[T any]() properties {
	var ps properties
	for _, f := range reflect.VisibleFields(reflect.TypeFor[T]()) {
		if f.Anonymous {
			continue
		}
		p := &property{name: f.Tag.Get("json"), doc: f.Tag.Get("doc"), need: f.Tag.Get("need") == "yes"}
		switch f.Type.Kind() {
		case reflect.String:
			p.kind = "string"
			p.max = ptr(int64(maxString))
		case reflect.Int, reflect.Int64:
			p.kind = "integer"
		case reflect.Bool:
			p.kind = "boolean"
		case reflect.Slice:
			p.kind = "list"
		case reflect.Map:
			p.kind = "map"
		default:
			panic(fmt.Sprintf("tools: field %s has no schema", f.Name))
		}
		if v, ok := f.Tag.Lookup("min"); ok {
			p.min = ptr(mustInt(v))
		}
		if v, ok := f.Tag.Lookup("max"); ok {
			p.max = ptr(mustInt(v))
		}
		if v, ok := f.Tag.Lookup("enum"); ok {
			p.enum = strings.Split(v, ",")
		}
		if v, ok := f.Tag.Lookup("of"); ok {
			p.of = strings.Split(v, ",")
			p.doc = strings.Join(p.of, ", ") + ": " + p.doc
		}
		if v, ok := f.Tag.Lookup("default"); ok {
			switch p.kind {
			case "integer":
				p.fallback = mustInt(v)
			case "boolean":
				p.fallback = v == "true"
			default:
				p.fallback = v
			}
		}
		ps = append(ps, p)
	}
	return ps
}

func (ps properties) find(name string) *property {
	for _, p := range ps {
		if p.name == name {
			return p
		}
	}
	return nil
}

// atMost lowers or sets the maximum of an argument from the configuration.
func (ps properties) atMost(name string, max int64) {
	if p := ps.find(name); max > 0 {
		p.max = &max
		if n, ok := p.fallback.(int64); ok && n > max {
			p.fallback = max
		}
	}
}

// schema is the JSON Schema that clients see.
func (ps properties) schema() json.RawMessage {
	all := make(map[string]any, len(ps))
	need := []string{}
	for _, p := range ps {
		all[p.name] = p.schema()
		if p.need {
			need = append(need, p.name)
		}
	}
	data, err := json.Marshal(map[string]any{
		"type": "object", "properties": all, "required": need, "additionalProperties": false,
	})
	if err != nil {
		panic(err)
	}
	return data
}

func (p *property) schema() map[string]any {
	m := map[string]any{"type": p.kind, "description": p.doc}
	text := map[string]any{"type": "string"}
	switch p.kind {
	case "list":
		m["type"], m["items"] = "array", text
		m["minItems"], m["maxItems"] = 1, maxItems
	case "map":
		m["type"], m["additionalProperties"] = "object", text
		m["maxProperties"] = maxItems
	}
	low, high := "minimum", "maximum"
	if p.kind == "string" {
		low, high = "minLength", "maxLength"
	}
	if p.min != nil {
		m[low] = *p.min
	}
	if p.max != nil && p.enum == nil {
		m[high] = *p.max
	}
	if p.enum != nil {
		m["enum"] = p.enum
	}
	if p.fallback != nil {
		m["default"] = p.fallback
	}
	return m
}

func mustInt(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

func ptr[T any](v T) *T { return &v }
