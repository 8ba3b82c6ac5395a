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
func meant(path string) string {
	// Right word, wrong place: `memory` at the top level.
	last := path[strings.LastIndex(path, ".")+1:]
	var same []string
	for _, k := range keys {
		if k.name() == last {
			same = append(same, k.path)
		}
	}
	if len(same) == 1 {
		return same[0]
	}
	var all []string
	for _, k := range keys {
		all = append(all, k.path)
	}
	if found := nearest(path, append(all, sections...)); found != "" {
		return found
	}
	// A misspelt word in the wrong place.
	var names []string
	for _, k := range keys {
		names = append(names, k.name())
	}
	if i := slices.Index(names, nearest(last, names)); i >= 0 && len(last) > 3 {
		return keys[i].path
	}
	return ""
}

// known lists what a section (or, for "", the top level) may hold.
func known(section string) []string {
	var names []string
	if section == "" {
		names = append(names, "version")
	}
	for _, k := range keys {
		dir, name := "", k.path
		if i := strings.LastIndex(k.path, "."); i >= 0 {
			dir, name = k.path[:i], k.path[i+1:]
		}
		if section == "" && dir != "" {
			dir, name = "", dir
		}
		if dir == section && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

func unknownKeyHint(section, path string) string {
	if m := meant(path); m != "" {
		return "did you mean " + m + "?"
	}
	where := "known are "
	if section != "" {
		where = "known in " + section + " are "
	}
	return where + strings.Join(known(section), ", ")
}
