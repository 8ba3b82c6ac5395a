package main

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
)

// root is a root of the client that may be mounted.
type root struct {
	dir   string // real path
	named string // as the client calls it
}

// judgeRoots picks the client's roots that can be mounted, and says of each other one why
// it is not. A client names directories without asking anybody, and an editor that was
// opened in a home directory names that: what nobody would put into a sandbox knowingly
// is mounted only if the operator says so.
func (b *sandboxes) judgeRoots(names []string) (usable []root, refused []string) {
	seen := map[string]bool{}
	for _, name := range names {
		dir, why := b.judgeRoot(name)
		switch {
		case why != "":
			b.log.Warn("a root of the client is not mounted", "root", name, "reason", why)
			refused = append(refused, fmt.Sprintf("The client's workspace %s is not mounted: %s.", shortened(name, 200), why))
		case !seen[dir]:
			seen[dir] = true
			usable = append(usable, root{dir: dir, named: filepath.Clean(name)})
		}
	}
	return usable, refused
}

func (b *sandboxes) judgeRoot(name string) (dir, why string) {
	if !filepath.IsAbs(name) {
		return "", "it is no directory of the computer that gondolin-mcp runs on"
	}
	dir, err := filepath.EvalSymlinks(name)
	if err == nil {
		var st os.FileInfo
		if st, err = os.Stat(dir); err == nil && !st.IsDir() {
			return "", "it is no directory"
		}
	}
	if err != nil {
		return "", "it is no directory of the computer that gondolin-mcp runs on, or cannot be read there"
	}
	if why = b.tooMuch(dir); why != "" {
		return "", fmt.Sprintf("%s. If that is meant, the user starts gondolin-mcp with --workspace=%s", why, shortened(dir, 200))
	}
	return dir, ""
}

// tooMuch says why a directory is not mounted unless the operator names it.
func (b *sandboxes) tooMuch(dir string) string {
	if dir == "/" {
		return "it is the whole file system"
	}
	for _, home := range b.homes() {
		switch {
		case home == dir:
			return "it is the user's whole home directory"
		case within(home, dir):
			return "the user's home directory lies in it"
		}
	}
	for _, own := range b.ownFiles() {
		switch {
		case !own.dir:
		case within(own.path, dir):
			return fmt.Sprintf("%s of gondolin-mcp lies in it (%s)", own.what, shortened(own.path, 200))
		case within(dir, own.path):
			return fmt.Sprintf("it lies in %s of gondolin-mcp", own.what)
		}
	}
	return ""
}

// within reports whether a path is dir or below it.
func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// homes are the user's home directories: what the environment says and what the system does.
func (b *sandboxes) homes() []string {
	var list []string
	if dir, err := os.UserHomeDir(); err == nil && filepath.IsAbs(dir) {
		list = append(list, realPath(dir))
	}
	if u, err := user.Current(); err == nil && filepath.IsAbs(u.HomeDir) {
		list = append(list, realPath(u.HomeDir))
	}
	return list
}

// ownFile is something that gondolin-mcp itself relies on.
type ownFile struct {
	what string
	path string // real
	dir  bool
}

func (b *sandboxes) ownFiles() []ownFile {
	c := b.config
	var list []ownFile
	add := func(what, p string, dir bool) {
		if abs, err := filepath.Abs(p); p != "" && err == nil {
			list = append(list, ownFile{what, realPath(abs), dir})
		}
	}
	add("the cache directory", c.Paths.Cache, true)
	add("the runtime directory", c.Paths.Runtime, true)
	add("the configuration directory", c.Dir(), true)
	add("the configuration file", c.File(), false)
	add("the log", c.Log.File, false)
	add("the directory of audit records", c.Audit.Dir, true)
	return list
}

// realPath resolves links as far as a path exists.
func realPath(p string) string {
	rest := ""
	for at := filepath.Clean(p); ; at = filepath.Dir(at) {
		if real, err := filepath.EvalSymlinks(at); err == nil {
			return filepath.Join(real, rest)
		}
		if at == filepath.Dir(at) {
			return filepath.Clean(p)
		}
		rest = filepath.Join(filepath.Base(at), rest)
	}
}
