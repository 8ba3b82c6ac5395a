// Package docs holds those documentation pages that programs show parts of.
package docs

import (
	_ "embed"
	"encoding/json"
	"regexp"
	"strings"
)

//go:embed clients.md
var clients string

// placeholder stands for the program's path in clients.md.
const placeholder = "/path/to/gondolin-mcp"

// Setup is what makes one client use the server, or one of several ways to.
type Setup struct {
	Client string
	Where  string // the words before it, without markup; empty: in a shell
	Form   string // "sh" or "json"
	Text   string
}

var block = regexp.MustCompile("(?s)((?:[^\n]+\n)*)\n?```(sh|json)\n(.*?)\n```")

// Setups returns the set-ups of clients.md for the program at a path.
func Setups(path string) []Setup {
	var all []Setup
	for _, section := range strings.Split(clients, "\n## ")[1:] {
		client, text, _ := strings.Cut(section, "\n")
		for _, m := range block.FindAllStringSubmatch(text, -1) {
			s := Setup{Client: client, Form: m[2], Text: m[3]}
			if s.Form == "json" {
				s.Where = strings.ReplaceAll(strings.Join(strings.Fields(m[1]), " "), "`", "")
			}
			s.Text = put(s.Text, path, s.Form)
			all = append(all, s)
		}
	}
	return all
}

// put puts a path in the placeholder's place, quoted as the form needs it.
func put(text, path, form string) string {
	quoted, _ := json.Marshal(path) // a string always encodes
	inside := string(quoted)
	if form == "sh" { // JSON stands between single quotes there
		inside = strings.ReplaceAll(inside, "'", `'\''`)
	}
	text = strings.ReplaceAll(text, `"`+placeholder+`"`, inside)
	if form == "sh" {
		text = strings.ReplaceAll(text, placeholder, shellWord(path))
	}
	return text
}

// shellWord quotes a path where a shell would need that.
func shellWord(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return strings.ContainsRune(" '\"\\$&;|<>()*?[]{}~#!`", r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
