package configs

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/vfs"
)

const mountsFile = `version: 1
workspace: ./src
mounts:
  - path: /data/
    source: ../data
    mode: ro
    protect: [/build.sh, "*.lock"]
    hide:
      add: ["*.sqlite"]
      remove: [.npmrc]
    hide_writes: memory
    quota: 2GiB
    max_files: 1000
  - path: /scratch
    provider: memory
    quota: 64MiB
`

func TestMountsAreReadFromTheFileAndFlagsAddToThem(t *testing.T) {
	c, err := load(t, mountsFile, []string{"HOME=/h"}, "--mount", "~/p:/p:ro", "--mount=/a:b:/q", "--mount-memory", "/m")
	require.NoError(t, err)
	dir := filepath.Dir(c.File())
	assert.Equal(t, filepath.Join(dir, "src"), c.Workspace)
	p, q := HostDirMount("/p", "/h/p"), HostDirMount("/q", "/a:b")
	p.Mode = ModeReadOnly
	assert.Equal(t, []Mount{
		{
			Path: "/data", Provider: ProviderHostDir, Source: filepath.Join(filepath.Dir(dir), "data"), Mode: ModeReadOnly,
			Protect: &Rules{Add: []string{"/build.sh", "*.lock"}, Remove: []string{}, Defaults: true},
			Hide:    &Rules{Add: []string{"*.sqlite"}, Remove: []string{".npmrc"}, Defaults: true}, HideWrites: HideWritesMemory,
			Quota: 2048, MaxFiles: 1000,
		},
		{Path: "/scratch", Provider: ProviderMemory, Mode: ModeReadWrite, Quota: 64},
		p, q,
		{Path: "/m", Provider: ProviderMemory, Mode: ModeReadWrite},
	}, c.Mounts)

	from := map[string]string{}
	for key, o := range c.Origins() {
		from[key] = strings.Replace(o.String(), c.File(), "FILE", 1)
	}
	assert.Equal(t, "FILE:4", from["mounts[0].path"])
	assert.Equal(t, "FILE:7", from["mounts[0].protect.add"])
	assert.Equal(t, "FILE:10", from["mounts[0].hide.remove"])
	assert.Equal(t, "default", from["mounts[0].provider"])
	assert.Equal(t, "flag --mount", from["mounts[2].source"])
	assert.NotContains(t, from, "mounts[1].source")

	var shown []string
	for _, e := range c.Entries() {
		if strings.HasPrefix(e.Key, "mounts[1]") {
			shown = append(shown, e.Key+" "+string(e.Origin.Kind))
		}
	}
	assert.Equal(t, []string{"mounts[1].path file", "mounts[1].provider file", "mounts[1].mode default", "mounts[1].quota file"}, shown)

	for _, origins := range []bool{false, true} {
		text, err := c.YAML(origins)
		require.NoError(t, err)
		again, err := load(t, string(text), nil)
		require.NoError(t, err, "%s", text)
		assert.Equal(t, c.Mounts, again.Mounts, "%s", text)
		assert.Equal(t, c.Workspace, again.Workspace)
		if origins {
			assert.Contains(t, string(text), "mode: ro # "+c.File()+":6\n")
			assert.Contains(t, string(text), "remove: [.npmrc] # "+c.File()+":10\n")
			assert.Contains(t, string(text), "provider: hostdir # default\n")
		}
	}
}

func TestEveryMistakeInMountsIsNamedWithLineKeyAndRemedy(t *testing.T) {
	ok := "mounts:\n  - path: /d\n    source: /s\n    "
	memory := "mounts:\n  - path: /d\n    provider: memory\n    "
	for _, tt := range []struct{ name, file, want string }{
		{"no list", "mounts: {path: /d}", "config.yaml:2: mounts: want a list of blocks, each beginning with a hyphen; got a block of keys"},
		{"no block", "mounts: [/d]", `config.yaml:2: mounts[0]: want a block of keys, got the text "/d"`},
		{"alias", "log: &a {level: info}\nmounts: [*a]", "config.yaml:3: mounts[0]: aliases are not understood: write the block out"},
		{"misspelt key", ok + "moed: ro", "config.yaml:5: unknown key mounts[0].moed: did you mean mounts[0].mode?"},
		{"key of nothing", ok + "zzzzzzzz: ro", "config.yaml:5: unknown key mounts[0].zzzzzzzz: known in mounts[0] are path, provider, source, mode, protect, hide, hide_writes, quota, max_files"},
		{"misspelt key of rules", ok + "hide: {ad: [x]}", "config.yaml:5: unknown key mounts[0].hide.ad: did you mean mounts[0].hide.add?"},
		{"dotted key", ok + "hide.add: [x]", "config.yaml:5: unknown key mounts[0].hide.add: write `hide:` and below it, indented, `add:`"},
		{"duplicate key", ok + "path: /e", "config.yaml:5: duplicate key mounts[0].path: line 3 has it already"},
		{"no path", "mounts:\n  - source: /s", "config.yaml:3: mounts[0].path: it is missing: give the directory of the machine, such as /data"},
		{"no source", "mounts:\n  - path: /d", "config.yaml:3: mounts[0].source: it is missing: give the directory of this machine, or `provider: memory`"},
		{"empty source", "mounts:\n  - path: /d\n    source: ''", "config.yaml:4: mounts[0].source: it must not be empty"},
		{"home that is not known", "mounts:\n  - path: /d\n    source: ~/x", `config.yaml:4: mounts[0].source: "~/x" begins with ~, and HOME is not set`},
		{"relative path", "mounts:\n  - path: d\n    source: /s", `config.yaml:3: mounts[0].path: "d" is not absolute: it is a path in the machine and begins with /`},
		{"path of the kernel", "mounts:\n  - path: /dev/../sys/x\n    source: /s", `config.yaml:3: mounts[0].path: "/dev/../sys/x" belongs to the machine's kernel: nothing can be mounted in /sys`},
		{"root", "mounts:\n  - path: //\n    source: /s", `config.yaml:3: mounts[0].path: "//" would cover what the machine needs: choose a directory below it, such as /data`},
		{"path twice", ok + "\n  - path: /d/\n    source: /t", `config.yaml:6: mounts[1].path: "/d" has a mount already: mounts[0] (FILE:3)`},
		{"misspelt provider", "mounts:\n  - path: /d\n    provider: hostdri", `config.yaml:4: mounts[0].provider: "hostdri" is unknown, use hostdir, memory: did you mean hostdir?`},
		{"misspelt mode", ok + "mode: r", `config.yaml:5: mounts[0].mode: "r" is unknown, use rw, ro: did you mean rw?`},
		{"rule that is text", ok + "protect: .envrc", `config.yaml:5: mounts[0].protect: want a list, or a block with add, remove, defaults; got the text ".envrc"`},
		{"rule that is no pattern", ok + "protect: [a/../b]", `config.yaml:5: mounts[0].protect.add[0]: "a/../b" is no pattern: an element ".." never is a file's name`},
		{"rule that is a list", ok + "hide: [[a]]", "config.yaml:5: mounts[0].hide.add[0]: want text, got a list"},
		{"remove what is no default", ok + "hide: {remove: [.npmcr]}", "config.yaml:5: mounts[0].hide.remove[0]: \".npmcr\" is no default pattern; did you mean .npmrc? `gondolin-mcp config rules` lists them"},
		{"remove from nothing", ok + "hide: {remove: [.npmrc], defaults: false}", "config.yaml:5: mounts[0].hide.remove: there is nothing to remove, as hide.defaults is false"},
		{"misspelt hide_writes", ok + "hide_writes: deni", `config.yaml:5: mounts[0].hide_writes: "deni" is unknown, use deny, memory: did you mean deny?`},
		{"no quota", ok + "quota: 0", "config.yaml:5: mounts[0].quota: 0 is out of range: leave the key out for no bound"},
		{"negative files", ok + "max_files: -1", "config.yaml:5: mounts[0].max_files: -1 is out of range: leave the key out for no bound"},
		{"source of memory", memory + "source: /s", "config.yaml:5: mounts[0].source: a mount in memory has no such key: there is nothing to take files from"},
		{"rules for memory", memory + "hide: [x]", "config.yaml:5: mounts[0].hide.add: a mount in memory has no such key: nothing of this machine is in it"},
		{"two for the workspace", "workspace: cwd\nmounts:\n  - path: /workspace\n    source: /s", `config.yaml:4: mounts[0].path: "/workspace" is where the workspace is mounted (workspace is "cwd", FILE:2): choose one`},
		{"misspelt workspace", "workspace: root", `config.yaml:2: workspace: "root" is unknown, use roots, cwd, none, or a directory with a slash in it, such as ./root: did you mean roots?`},
		{"empty workspace", "workspace: ''", "config.yaml:2: workspace: it must not be empty"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src := Sources{File: write(t, "version: 1\n"+tt.file+"\n")}
			_, err := Load(src)
			lines := problems(t, err)
			require.Len(t, lines, 1, "%s", lines)
			assert.Equal(t, tt.want, strings.ReplaceAll(lines[0], src.File, "FILE"))
		})
	}
}

func TestMistakesOfMountFlagsNameTheFlag(t *testing.T) {
	for arg, want := range map[string]string{
		"--mount=/x":            `flag --mount: mounts: "/x" does not say where in the machine: write --mount HOST:GUEST[:ro]`,
		"--mount=:/x":           `flag --mount: mounts: ":/x" does not say which directory of this machine: write --mount HOST:GUEST[:ro]`,
		"--mount=/x:y":          `flag --mount: mounts[0].path: "y" is not absolute: it is a path in the machine and begins with /`,
		"--mount-memory=/proc":  `flag --mount-memory: mounts[0].path: "/proc" belongs to the machine's kernel: nothing can be mounted in /proc`,
		"--workspace=elsewhere": `flag --workspace: workspace: "elsewhere" is unknown, use roots, cwd, none, or a directory with a slash in it, such as ./elsewhere`,
	} {
		_, err := load(t, "", nil, arg)
		assert.Equal(t, []string{want}, problems(t, err))
	}
	_, err := load(t, "", []string{"GONDOLIN_MOUNTS=/x", "GONDOLIN_WORKSPACE=./x"})
	assert.Equal(t, []string{
		"environment variable GONDOLIN_MOUNTS: it is unknown: mounts are set in the file, or with --mount and --mount-memory",
		`environment variable GONDOLIN_WORKSPACE: "./x" is a relative path: make it absolute or begin it with ~/`,
	}, problems(t, err))
}

func TestTheWorkspaceGivesWayToAMountThatTakesItsPlace(t *testing.T) {
	_, err := load(t, "version: 1\nmounts:\n  - path: /workspace\n    source: /s\n", nil)
	assert.NoError(t, err)
	_, err = load(t, "version: 1\nworkspace: none\nmounts:\n  - path: /workspace\n    source: /s\n", nil)
	assert.NoError(t, err)
}

func TestTheFlagForTheWorkspaceAloneMeansTheWorkingDirectory(t *testing.T) {
	wd, err := os.Getwd()
	require.NoError(t, err)
	for arg, want := range map[string]string{"--workspace": WorkspaceCWD, "--workspace=.": wd, "--workspace=none": WorkspaceNone, "--workspace=/x/": "/x"} {
		c, err := load(t, "", nil, arg)
		require.NoError(t, err)
		assert.Equal(t, want, c.Workspace)
	}
}

func TestDirectoriesToMountAreLookedForWhereThatIsAskedFor(t *testing.T) {
	file := write(t, "version: 1\nlog: {level: loud}\nmounts:\n  - path: /a\n    source: none\n  - path: /b\n    source: config.yaml\n  - path: /c\n    source: .\n")
	dir := filepath.Dir(file)
	src := Sources{File: file, Flags: Flags()}
	require.NoError(t, src.Flags.Parse([]string{"--workspace=/none/such"}))
	_, err := Load(src)
	assert.Len(t, problems(t, err), 1)
	src.Here = true
	_, err = Load(src)
	assert.Equal(t, []string{
		`config.yaml:2: log.level: "loud" is unknown, use debug, info, warn, error`,
		`flag --workspace: workspace: "/none/such" does not exist: make it, or name another directory`,
		`config.yaml:5: mounts[0].source: ` + quote(dir+"/none") + ` does not exist: make it, or name another directory`,
		`config.yaml:7: mounts[1].source: ` + quote(dir+"/config.yaml") + ` is no directory: name the one that it lies in`,
	}, problems(t, err))
}

func TestRulesOfAMountAreTheDefaultsAsChanged(t *testing.T) {
	m := HostDirMount("/d", "/s")
	assert.Equal(t, vfs.DefaultProtect(), m.ProtectRules())
	assert.Equal(t, vfs.DefaultHide(), m.HideRules())
	m.Protect.Add, m.Protect.Remove = []string{"mine"}, []string{".vscode"}
	rules, err := vfs.NewRules(m.ProtectRules()...)
	require.NoError(t, err)
	for path, named := range map[string]bool{"mine": true, ".envrc": true, ".vscode": false} {
		_, ok := rules.Match(path)
		assert.Equal(t, named, ok, path)
	}
	m.Hide.Defaults = false
	assert.Empty(t, m.HideRules())
	assert.Empty(t, Mount{Provider: ProviderMemory}.ProtectRules())
}

func TestTheTableOfMountsHasExactlyTheFieldsOfMount(t *testing.T) {
	var want []string
	for _, k := range mountList.keys {
		want = append(want, k.path)
		assert.NotEmpty(t, k.help, k.path)
	}
	assert.Equal(t, want, fieldPaths(reflect.TypeFor[Mount](), ""))
}
