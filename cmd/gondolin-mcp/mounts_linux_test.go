package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/tools"
	"github.com/gondolin-go/gondolin/vfs"
)

// tree makes files in a new directory and returns its real path.
func tree(t *testing.T, files ...string) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	for _, f := range files {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, f)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, f), []byte(f), 0o644))
	}
	return dir
}

func provide(t *testing.T, b *sandboxes, user string, roots ...string) *files {
	t.Helper()
	f, err := b.provide(roots, user, nil)
	require.NoError(t, err)
	t.Cleanup(f.close)
	return f
}

func paths(list []sandbox.Mount) (all []string) {
	for _, m := range list {
		all = append(all, m.Path)
	}
	return all
}

// create makes a file below a mount and returns the errno.
func create(t *testing.T, root vfs.Node, name string) error {
	t.Helper()
	n, f, err := root.Create(t.Context(), name, os.O_RDWR, 0o644)
	if err != nil {
		return vfs.Errno(err)
	}
	require.NoError(t, f.Close())
	n.Release()
	return nil
}

func TestAMountOfAHostDirectoryProtectsHidesAndTellsSo(t *testing.T) {
	dir := tree(t, "main.go", ".env", ".npmrc")
	b := boxes(t, nil, "--workspace="+dir)
	began := time.Now()
	f := provide(t, b, "1000:100")
	assert.Equal(t, []string{"/workspace"}, paths(f.mounts))
	assert.Equal(t, "/workspace", f.dir)
	assert.Equal(t, []tools.Mount{{Path: "/workspace", Source: dir, Guarded: true}}, f.shown.List)
	assert.Equal(t, f.shown.List, b.everyMount())
	assert.False(t, b.wantsRoots())
	assert.False(t, f.mounts[0].ReadOnly)

	ws := f.mounts[0].Root
	n, err := ws.Lookup(t.Context(), "main.go")
	require.NoError(t, err)
	a, err := n.Attr(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []uint32{1000, 100}, []uint32{a.UID, a.GID}, "files belong to whom commands run as")
	n.Release()

	_, err = ws.Lookup(t.Context(), ".env")
	assert.Equal(t, syscall.ENOENT, vfs.Errno(err))
	assert.NoError(t, create(t, ws, "new.go"))
	assert.FileExists(t, filepath.Join(dir, "new.go"))
	assert.Equal(t, syscall.EPERM, create(t, ws, ".envrc"))
	assert.Equal(t, syscall.EACCES, create(t, ws, ".npmrc"), "hidden is before protected")

	denials := f.denials.Since(began)
	require.Len(t, denials, 3)
	assert.Equal(t, "/workspace/.env", denials[0].Path)
	assert.Contains(t, denials[0].Reason, "hidden by the rule")
	assert.Equal(t, sandbox.Denial{
		Time: denials[1].Time, Count: 1, Kind: "file", What: "create", Path: "/workspace/.envrc",
		Rule: ".envrc (a shell runs it on entering the directory)", Reason: `protected by the rule ".envrc (a shell runs it on entering the directory)"`,
		Remedy: "Show the user what should be in it and let them write it, or ask them to change `protect` of this mount in the configuration of gondolin-mcp.",
	}, denials[1])
}

// loaded are sandboxes whose configuration is in a file of the directory dir.
func loaded(t *testing.T, dir, text string) *sandboxes {
	t.Helper()
	path := filepath.Join(dir, "gondolin.yaml")
	require.NoError(t, os.WriteFile(path, []byte("version: 1\n"+text), 0o600))
	c, err := configs.Load(configs.Sources{File: path, Here: true})
	require.NoError(t, err)
	b := newSandboxes(t.Context(), c, slog.New(slog.DiscardHandler))
	t.Cleanup(b.close)
	return b
}

func TestMountsAreAsConfiguredAndOuterOnesComeFirst(t *testing.T) {
	dir := tree(t, "a/.env", "a/x.lock", "ro/f")
	b := loaded(t, dir, `workspace: none
mounts:
  - {path: /d/in/memory, provider: memory, max_files: 3}
  - {path: /d/ro, source: ro, mode: ro}
  - {path: /d, source: a, protect: ["*.lock"], hide_writes: memory, max_files: 2}
`)
	f := provide(t, b, "")
	assert.Equal(t, []string{"/d", "/d/ro", "/d/in/memory"}, paths(f.mounts))
	assert.Empty(t, f.dir)
	d, ro, mem := f.mounts[0], f.mounts[1], f.mounts[2]

	assert.True(t, ro.ReadOnly)
	assert.Equal(t, syscall.EROFS, create(t, ro.Root, "new"), "also for a guest that ignores its own kernel")
	assert.True(t, mem.Private)
	assert.NoError(t, create(t, mem.Root, "new"))

	assert.Equal(t, syscall.EPERM, create(t, d.Root, "x.lock"))
	assert.NoError(t, create(t, d.Root, ".env"))
	host, err := os.ReadFile(filepath.Join(dir, "a/.env"))
	require.NoError(t, err)
	assert.Equal(t, "a/.env", string(host), "written beside the host's file, not into it")
	assert.NoError(t, create(t, d.Root, "1"))
	assert.NoError(t, create(t, d.Root, "2"))
	assert.Equal(t, syscall.EDQUOT, create(t, d.Root, "3"))
}

func TestTheConfigurationInAMountCannotBeChangedFromWithin(t *testing.T) {
	dir := tree(t, "main.go")
	b := loaded(t, dir, "workspace: .\n")
	f := provide(t, b, "")
	assert.Equal(t, syscall.EPERM, create(t, f.mounts[0].Root, "gondolin.yaml"))
	assert.Equal(t, syscall.EPERM, vfs.Errno(f.mounts[0].Root.Unlink(t.Context(), "gondolin.yaml")))
	require.Len(t, f.denials.Since(time.Time{}), 1+1)
	assert.Equal(t, "the configuration file of gondolin-mcp", f.denials.Since(time.Time{})[0].Rule)
}

func TestADirectoryThatIsGoneFailsTheSessionAndClosesTheOthers(t *testing.T) {
	dir := tree(t, "a/f", "b/f")
	b := loaded(t, dir, "workspace: ./a\nmounts: [{path: /b, source: b}]\n")
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "b")))
	_, err := b.provide(nil, "", nil)
	assert.ErrorContains(t, err, "mounting /b: opening host directory "+dir+"/b: no such file or directory")
}

func TestClosingLetsGoOfTheDirectories(t *testing.T) {
	b := boxes(t, nil, "--workspace="+tree(t, "f"))
	f, err := b.provide(nil, "", nil)
	require.NoError(t, err)
	f.close()
	_, err = f.mounts[0].Root.Lookup(t.Context(), "f")
	assert.Equal(t, syscall.ESTALE, vfs.Errno(err))
}

func TestRootsOfTheClientAreMountedAtTheWorkspaceOrBelowItByName(t *testing.T) {
	one, two := tree(t, "p/f", "q/p/f"), tree(t, "p/f")
	b := boxes(t, nil, "--mount="+one+":/workspace/q")
	assert.True(t, b.wantsRoots())
	f := provide(t, b, "", one+"/p/")
	assert.Equal(t, []string{"/workspace", "/workspace/q"}, paths(f.mounts))
	assert.Equal(t, one+"/p", f.shown.List[0].Source)
	assert.Equal(t, "/workspace", f.dir)

	link := filepath.Join(two, "link")
	require.NoError(t, os.Symlink(one+"/p", link))
	f = provide(t, b, "", one+"/p", two+"/p", one+"/q", link, one+"/p")
	assert.ElementsMatch(t, []string{"/workspace/p", "/workspace/p-2", "/workspace/q", "/workspace/q-2"}, paths(f.mounts), "each name once, each directory once")
	assert.Equal(t, "/workspace", f.dir)
	assert.Empty(t, f.shown.Refused)

	f = provide(t, b, "")
	assert.Equal(t, []string{"/workspace/q"}, paths(f.mounts))
	assert.Empty(t, f.dir, "without a workspace commands start where they did")
}

func TestRootsThatNobodyWouldMountKnowinglyAreRefusedUnlessTheOperatorNamesThem(t *testing.T) {
	base := tree(t, "home/me/project/f", "home/me/.config/other", "file")
	home := base + "/home/me"
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", "")
	flags := configs.Flags()
	require.NoError(t, flags.Parse([]string{"--cache-dir", base + "/c/gondolin"}))
	c, err := configs.Load(configs.Sources{Flags: flags, Env: []string{"HOME=" + home}})
	require.NoError(t, err)
	b := newSandboxes(t.Context(), c, slog.New(slog.DiscardHandler))
	defer b.close()
	link := base + "/link"
	require.NoError(t, os.Symlink(home, link))
	require.NoError(t, os.MkdirAll(base+"/c/gondolin/images", 0o755))
	for name, want := range map[string]string{
		home + "/project":           "",
		"/":                         "it is the whole file system",
		home:                        "it is the user's whole home directory. If that is meant, the user starts gondolin-mcp with --workspace=" + home,
		link:                        "it is the user's whole home directory",
		base + "/home/":             "the user's home directory lies in it",
		base + "/c":                 "the cache directory of gondolin-mcp lies in it",
		base + "/c/gondolin":        "the cache directory of gondolin-mcp lies in it",
		base + "/c/gondolin/images": "it lies in the cache directory of gondolin-mcp",
		home + "/.config":           "the configuration directory of gondolin-mcp lies in it",
		base + "/file":              "it is no directory",
		base + "/none":              "it is no directory of the computer that gondolin-mcp runs on",
		"relative":                  "it is no directory of the computer that gondolin-mcp runs on",
		"https://example.com/repo":  "it is no directory of the computer that gondolin-mcp runs on",
	} {
		f := provide(t, b, "", name)
		if want == "" {
			assert.Len(t, f.mounts, 1, name)
			continue
		}
		assert.Empty(t, f.mounts, name)
		require.Len(t, f.shown.Refused, 1, name)
		assert.True(t, strings.HasPrefix(f.shown.Refused[0], "The client's workspace "+name+" is not mounted: "+want), f.shown.Refused[0])
	}

	b = boxes(t, nil, "--workspace="+home)
	f := provide(t, b, "")
	assert.Equal(t, []string{"/workspace"}, paths(f.mounts))
}

func TestAMountInPlaceOfTheWorkspaceLeavesTheRootsOut(t *testing.T) {
	dir := tree(t, "f")
	b := boxes(t, nil, "--mount="+dir+":/workspace:ro")
	assert.False(t, b.wantsRoots())
	f := provide(t, b, "", dir)
	assert.Equal(t, []string{"/workspace"}, paths(f.mounts))
	assert.True(t, f.mounts[0].ReadOnly)
	assert.Equal(t, "/workspace", f.dir)
}

func TestOwnersOfFilesAreNumbersAsFarAsTheyAreKnown(t *testing.T) {
	for user, want := range map[string][2]uint32{"": {0, 0}, "root": {0, 0}, "1000": {1000, 1000}, "1000:100": {1000, 100}, "0": {0, 0}, "1000:staff": {1000, 1000}} {
		uid, gid, known := numbers(user)
		assert.Equal(t, want, [2]uint32{uid, gid}, user)
		assert.True(t, known, user)
	}
	_, _, known := numbers("node")
	assert.False(t, known)
	assert.NotEmpty(t, ownerProblem(boxes(t, nil, "--user=node").config))
	assert.Empty(t, ownerProblem(boxes(t, nil, "--user=node", "--workspace=none").config))
}

func TestPathsBecomePatternsThatMeanNothingElse(t *testing.T) {
	rules, err := vfs.NewRules(vfs.Rule{Pattern: "/" + literal("a{b,c}/[x]*.yaml")})
	require.NoError(t, err)
	for path, named := range map[string]bool{"a{b,c}/[x]*.yaml": true, "ab/x1.yaml": false, "a{b,c}/x1.yaml": false} {
		_, ok := rules.Match(path)
		assert.Equal(t, named, ok, path)
	}
}
