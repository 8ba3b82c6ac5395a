package configs

import (
	"embed"
	"fmt"
	"strings"
)

//go:embed *.yaml
var examples embed.FS

// Example returns one of the example files, such as "full", and Examples their names.
func Example(name string) ([]byte, error) {
	b, err := examples.ReadFile(name + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("no example %s: there are %s", quote(name), strings.Join(Examples(), ", "))
	}
	return b, nil
}

// Examples are the names of the example files.
func Examples() []string {
	entries, err := examples.ReadDir(".")
	if err != nil {
		return nil // cannot happen: the directory is part of the program
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return names
}
