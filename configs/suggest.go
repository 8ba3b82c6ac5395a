package configs

import (
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
)

// nearest returns the candidate that was probably meant, or nothing.
func nearest(word string, candidates []string) string {
	if len(word) > 100 {
		return ""
	}
	best, least := "", 3+len(word)/8
	for _, c := range candidates {
		if d := levenshtein.ComputeDistance(strings.ToLower(word), strings.ToLower(c)); d < least {
			best, least = c, d
		}
	}
	return best
}

// meant suggests a key path for an unknown one.
func (t table) meant(path string) string {
	// Right word, wrong place: `memory` at the top level.
	last := path[strings.LastIndex(path, ".")+1:]
	var same []string
	for _, k := range t {
		if k.name() == last {
			same = append(same, k.path)
		}
	}
	if len(same) == 1 {
		return same[0]
	}
	var all []string
	for _, k := range t {
		all = append(all, k.path)
	}
	if found := nearest(path, append(all, t.sections()...)); found != "" {
		return found
	}
	// A misspelt word in the wrong place.
	var names []string
	for _, k := range t {
		names = append(names, k.name())
	}
	if i := slices.Index(names, nearest(last, names)); i >= 0 && len(last) > 3 {
		return t[i].path
	}
	return ""
}

// known lists what a section (or, for "", the top level) may hold.
func (t table) known(section string) []string {
	var names []string
	for _, k := range t {
		rest, inside := k.path, true
		if section != "" {
			rest, inside = strings.CutPrefix(k.path, section+".")
		}
		if name, _, _ := strings.Cut(rest, "."); inside && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// unknownKeyHint says what was probably meant by a path below b.
func (b *block) unknownKeyHint(section, path string) string {
	if m := b.keys.meant(path); m != "" {
		return "did you mean " + b.key(m) + "?"
	}
	names := b.keys.known(section)
	if b.name == "" && section == "" {
		names = append([]string{"version"}, names...)
	}
	where := "known are "
	if in := b.key(section); in != "" {
		where = "known in " + in + " are "
	}
	return where + strings.Join(names, ", ")
}
