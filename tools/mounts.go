package tools

import (
	"fmt"
	"path"
	"strings"

	"github.com/gondolin-go/gondolin/sandbox"
)

// Mount is a directory of a session whose files the host serves: what is written there
// outlives the session, except in memory.
type Mount struct {
	Path     string // in the machine
	ReadOnly bool
	Memory   bool // empty at first, and gone with the session
	// Source is the directory of the client's machine, told where the model knows it
	// already because it is the client's workspace.
	Source string
	// Guarded says that rules write-protect or hide some names.
	Guarded bool
}

// Mounts are what a session has of its client's machine.
type Mounts struct {
	List []Mount
	// Refused says of each root of the client that is not among them why, in a sentence.
	Refused []string
}

// MountInfo is one mount in the result of session.
type MountInfo struct {
	Path   string `json:"path" jsonschema:"directory in the machine"`
	Mode   string `json:"mode" jsonschema:"rw or ro"`
	Source string `json:"source,omitempty" jsonschema:"directory of the client's workspace that it shows"`
	Memory bool   `json:"memory,omitempty" jsonschema:"whether it is gone with the session"`
}

func mountInfos(m Mounts) []MountInfo {
	var list []MountInfo
	for _, mount := range m.List {
		list = append(list, MountInfo{
			Path: mount.Path, Mode: mount.mode(), Source: short(printable(mount.Source), 300), Memory: mount.Memory,
		})
	}
	return list
}

func (m Mount) mode() string {
	if m.ReadOnly {
		return "ro"
	}
	return "rw"
}

// describe is the mount in a few words, for a list.
func (m Mount) describe() string {
	text := m.Path + " ("
	switch {
	case m.Memory:
		text += "memory, gone with the machine"
	case m.Source != "":
		text += "the user's " + short(printable(m.Source), 300)
	default:
		text += "a directory of the user's"
	}
	if m.ReadOnly {
		text += ", read-only"
	}
	return text + ")"
}

// note tells a model what it could not know before its session was made.
func (m Mounts) note() string {
	var parts []string
	for _, mount := range m.List {
		if mount.Source != "" {
			parts = append(parts, fmt.Sprintf("The user's %s is %s here.", short(printable(mount.Source), 300), mount.Path))
		}
	}
	return strings.Join(append(parts, m.Refused...), " ")
}

// lostWith says what went with a session.
func lostWith(sess Session) string {
	for _, m := range sess.Mounts().List {
		if !m.Memory {
			return "Its processes are gone, and its files but those in mounts"
		}
	}
	return "Its files and processes are gone"
}

// covering is the innermost mount that a path lies in.
func (m Mounts) covering(name string) (Mount, bool) {
	var best Mount
	for _, mount := range m.List {
		if under(name, mount.Path) && len(mount.Path) > len(best.Path) {
			best = mount
		}
	}
	return best, best.Path != ""
}

// translate finds what a path of the client's machine is called in the machine.
func (m Mounts) translate(name string) (string, bool) {
	var best Mount
	for _, mount := range m.List {
		if mount.Source != "" && under(name, mount.Source) && len(mount.Source) > len(best.Source) {
			best = mount
		}
	}
	if best.Source == "" {
		return "", false
	}
	return path.Join(best.Path, strings.TrimPrefix(name, best.Source)), true
}

// under reports whether a path is dir or below it.
func under(name, dir string) bool {
	return name == dir || strings.HasPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}

// mountHint says what a mount has to do with the failure of an operation on a file.
func mountHint(m Mounts, e *sandbox.FileError) string {
	mount, mounted := m.covering(e.Path)
	switch e.Errno {
	case "ENOENT":
		if here, ok := m.translate(e.Path); ok && !mounted {
			return fmt.Sprintf(". That is a path of the user's computer; in this machine it is %s.", short(printable(here), 500))
		}
	case "EROFS":
		if mounted && mount.ReadOnly {
			return fmt.Sprintf(". %s is mounted read-only. Write somewhere else, or ask the user to mount it with mode rw in the configuration of gondolin-mcp.", mount.Path)
		}
	case "EDQUOT":
		if mounted {
			return fmt.Sprintf(". The quota of the mount %s is used up; remove what is not needed there, or ask the user to raise its quota or max_files in the configuration of gondolin-mcp.", mount.Path)
		}
	}
	return ""
}
