package vfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// refusals collects what wrappers report.
type refusals struct {
	mu   sync.Mutex
	list []Refusal
}

func (r *refusals) add(x Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, x)
}

func (r *refusals) last() Refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) == 0 {
		return Refusal{}
	}
	return r.list[len(r.list)-1]
}

func protected(t *testing.T, rules ...Rule) (Node, string, *refusals) {
	t.Helper()
	host, dir := openHost(t, HostDirOptions{})
	told := &refusals{}
	return Protect(host, mustRules(t, rules...), ProtectOptions{OnRefusal: told.add}), dir, told
}

// making is every way to make an entry.
var making = map[string]func(t *testing.T, d Node, name string) error{
	"create": func(t *testing.T, d Node, name string) error {
		return drop2(d.Create(t.Context(), name, os.O_RDWR, 0o755))
	},
	"create or open": func(t *testing.T, d Node, name string) error {
		return drop2(d.Create(t.Context(), name, os.O_RDWR|syscall.O_TRUNC, 0o755))
	},
	"mknod": func(t *testing.T, d Node, name string) error { return drop1(d.Mknod(t.Context(), name, 0o755)) },
	"symlink": func(t *testing.T, d Node, name string) error {
		return drop1(d.Symlink(t.Context(), name, "free"))
	},
	"link": func(t *testing.T, d Node, name string) error {
		n, f, err := d.Create(t.Context(), "source", os.O_RDWR, 0o755)
		require.NoError(t, err)
		defer n.Release()
		defer f.Close()
		return drop1(d.Link(t.Context(), name, n))
	},
	"rename": func(t *testing.T, d Node, name string) error {
		require.NoError(t, drop2(d.Create(t.Context(), "source", os.O_RDWR, 0o755)))
		return d.Rename(t.Context(), "source", d, name, 0)
	},
}

func drop1(n Node, err error) error {
	if n != nil {
		n.Release()
	}
	return err
}

func drop2(n Node, f File, err error) error {
	if f != nil {
		f.Close()
	}
	return drop1(n, err)
}

func TestProtectAPlantedHookOrConfigFileIsRefused(t *testing.T) {
	for _, path := range []string{".git/hooks", ".git/config", ".envrc", ".vscode", ".mcp.json", ".git/HOOKS", ".EnvRC"} {
		root, dir, told := protected(t, DefaultProtect()...)
		dirPath, name := filepath.Split(path)
		d := root
		if dirPath != "" {
			require.NoError(t, drop1(root.Mkdir(t.Context(), ".git", 0o755)), "git init makes it")
			d = at(t, root, ".git")
		}
		for how, f := range making {
			err := f(t, d, name)
			assert.Equal(t, syscall.EPERM, Errno(err), "%s %s", how, path)
			var r Refusal
			require.True(t, errors.As(err, &r), "%s %s", how, path)
			assert.Equal(t, path, r.Path)
			assert.NotEmpty(t, r.Rule)
			assert.Equal(t, r, told.last())
		}
		assert.Equal(t, syscall.EPERM, Errno(drop1(d.Mkdir(t.Context(), name, 0o755))))
		assert.NoFileExists(t, filepath.Join(dir, path))
		assert.NoDirExists(t, filepath.Join(dir, path))
	}
}

func TestProtectNothingButADirectoryGoesOnTheWay(t *testing.T) {
	root, dir, _ := protected(t, DefaultProtect()...)
	for how, f := range making {
		assert.Equal(t, syscall.EPERM, Errno(f(t, root, ".git")), "%s: a .git file or link leads git elsewhere", how)
	}
	put(t, filepath.Join(dir, "worktree/.git"), "gitdir: /elsewhere")
	w := at(t, root, "worktree")
	_, err := at(t, w, ".git").Open(t.Context(), os.O_WRONLY)
	assert.Equal(t, syscall.EPERM, Errno(err))
	assert.Equal(t, syscall.EPERM, Errno(w.Unlink(t.Context(), ".git")))
	assert.Equal(t, "gitdir: /elsewhere", content(t, at(t, w, ".git")), "reading is free")
	_, err = w.Lookup(t.Context(), "nothing")
	assert.Equal(t, syscall.ENOENT, Errno(err))
}

func TestProtectRenamingADirectoryCannotMakeOrMoveAProtectedPath(t *testing.T) {
	root, dir, _ := protected(t, patterns(".git/hooks", "/a/b/c", ".git/modules/**/config")...)
	ctx := t.Context()
	put(t, filepath.Join(dir, "x/hooks/pre-commit"), "evil")
	put(t, filepath.Join(dir, "proj/.git/hooks/pre-commit"), "good")
	put(t, filepath.Join(dir, "a/b/c/f"), "")
	put(t, filepath.Join(dir, "proj/.git/modules/m/config"), "")
	proj, pgit := at(t, root, "proj"), at(t, root, "proj/.git")
	mods := at(t, root, "proj/.git/modules")
	x := at(t, root, "x")
	for name, err := range map[string]error{
		"mv x .git":                   root.Rename(ctx, "x", root, ".git", 0),
		"mv x proj/.GIT":              root.Rename(ctx, "x", proj, ".GIT", 0),
		"exchange x proj/.git":        root.Rename(ctx, "x", proj, ".git", RenameExchange),
		"exchange proj/.git x":        proj.Rename(ctx, ".git", root, "x", RenameExchange),
		"mv proj/.git y":              proj.Rename(ctx, ".git", root, "y", 0),
		"mv proj/.git .git":           proj.Rename(ctx, ".git", root, ".git", 0),
		"mv proj/.git/hooks y":        pgit.Rename(ctx, "hooks", root, "y", 0),
		"mv x proj/.git/hooks":        root.Rename(ctx, "x", pgit, "hooks", 0),
		"mv a z":                      root.Rename(ctx, "a", root, "z", 0),
		"mv a/b z":                    at(t, root, "a").Rename(ctx, "b", root, "z", 0),
		"exchange a proj":             root.Rename(ctx, "proj", root, "a", RenameExchange),
		"mv x proj/.git/modules/evil": root.Rename(ctx, "x", mods, "evil", 0),
		"mv proj/.git/modules/m y":    mods.Rename(ctx, "m", root, "y", 0),
	} {
		assert.Equal(t, syscall.EPERM, Errno(err), name)
	}
	assert.Equal(t, syscall.EPERM, Errno(drop1(mods.Symlink(ctx, "s", "../../../x"))), "a link below ** leads elsewhere")
	require.NoError(t, mods.Rename(ctx, "m", mods, "n", 0), "the rules mean the same there")
	require.NoError(t, root.Rename(ctx, "proj", root, "proj2", 0), "what is protected at any depth moves along")
	require.NoError(t, root.Rename(ctx, "x", proj, "x", 0))
	assert.Equal(t, "good", content(t, at(t, proj, ".git/hooks/pre-commit")))
	h := at(t, x, "hooks")
	require.NoError(t, drop2(h.Create(ctx, "post-commit", os.O_RDWR, 0o755)), "x is not .git")
	assert.Equal(t, syscall.EPERM, Errno(drop2(at(t, pgit, "hooks").Create(ctx, "x", os.O_RDWR, 0o755))), "known under the new path")
}

func TestProtectEveryChangeOfAProtectedFileIsRefused(t *testing.T) {
	root, dir, _ := protected(t, patterns(".git/config", ".vscode")...)
	put(t, filepath.Join(dir, ".git/config"), "host's")
	put(t, filepath.Join(dir, ".vscode/tasks.json"), "host's")
	ctx := t.Context()
	mode, size, uid, now := fs.FileMode(0o777), int64(0), uint32(1), time.Now()
	for _, path := range []string{".git/config", ".vscode/tasks.json"} {
		n := at(t, root, path)
		d := at(t, root, filepath.Dir(path))
		name := filepath.Base(path)
		for what, err := range map[string]error{
			"write":        drop3(n.Open(ctx, os.O_WRONLY)),
			"append":       drop3(n.Open(ctx, os.O_RDWR|syscall.O_APPEND)),
			"O_TRUNC":      drop3(n.Open(ctx, os.O_RDONLY|syscall.O_TRUNC)),
			"create":       drop2(d.Create(ctx, name, os.O_RDWR, 0o600)),
			"truncate":     drop4(n.SetAttr(ctx, Change{Size: &size})),
			"chmod":        drop4(n.SetAttr(ctx, Change{Mode: &mode})),
			"chown":        drop4(n.SetAttr(ctx, Change{UID: &uid})),
			"utimes":       drop4(n.SetAttr(ctx, Change{Mtime: &now})),
			"xattr":        n.SetXattr(ctx, "user.x", nil, 0),
			"remove xattr": n.RemoveXattr(ctx, "user.x"),
			"unlink":       d.Unlink(ctx, name),
			"rename":       d.Rename(ctx, name, root, "free", 0),
			"link":         drop1(root.Link(ctx, "free", n)),
		} {
			assert.Equal(t, syscall.EPERM, Errno(err), "%s %s", what, path)
		}
		f, err := n.Open(ctx, os.O_RDONLY)
		require.NoError(t, err)
		_, err = f.SetAttr(ctx, Change{Mode: &mode})
		assert.Equal(t, syscall.EPERM, Errno(err), "fchmod")
		require.NoError(t, f.Close())
	}
	assert.Equal(t, syscall.EPERM, Errno(root.Rmdir(ctx, ".vscode")))
	got, err := os.ReadFile(filepath.Join(dir, ".git/config"))
	require.NoError(t, err)
	assert.Equal(t, "host's", string(got))
}

func drop3(f File, err error) error {
	if f != nil {
		f.Close()
	}
	return err
}

func drop4(_ Attr, err error) error { return err }

func TestProtectAHardLinkThatTheHostMadeIsProtectedToo(t *testing.T) {
	root, dir, told := protected(t, patterns(".git/config")...)
	put(t, filepath.Join(dir, "deep/er/.git/config"), "host's")
	require.NoError(t, os.Link(filepath.Join(dir, "deep/er/.git/config"), filepath.Join(dir, "free")))
	put(t, filepath.Join(dir, "other"), "")
	require.NoError(t, os.Link(filepath.Join(dir, "other"), filepath.Join(dir, "other2")))
	free := at(t, root, "free")
	_, err := free.Open(t.Context(), os.O_WRONLY)
	assert.Equal(t, syscall.EPERM, Errno(err))
	assert.Equal(t, "free (a link of deep/er/.git/config)", told.last().Path)
	assert.Equal(t, syscall.EPERM, Errno(drop2(root.Create(t.Context(), "free", os.O_RDWR|syscall.O_TRUNC, 0o600))))
	assert.Equal(t, syscall.EPERM, Errno(drop1(root.Link(t.Context(), "free2", free))))
	require.NoError(t, drop3(at(t, root, "other2").Open(t.Context(), os.O_WRONLY)), "links of free files are free")

	require.NoError(t, os.Remove(filepath.Join(dir, "deep/er/.git/config")))
	require.NoError(t, drop3(free.Open(t.Context(), os.O_WRONLY)), "the protected name is gone")
}

func TestProtectOrdinaryWorkGoesOn(t *testing.T) {
	root, dir, told := protected(t, DefaultProtect()...)
	ctx := t.Context()
	for _, d := range []string{".git", "src"} {
		require.NoError(t, drop1(root.Mkdir(ctx, d, 0o755)))
	}
	git := at(t, root, ".git")
	for how, f := range making {
		require.NoError(t, f(t, at(t, root, "src"), "x"), how)
		require.NoError(t, at(t, root, "src").Unlink(ctx, "x"), how)
	}
	require.NoError(t, drop2(git.Create(ctx, "HEAD.lock", os.O_RDWR|syscall.O_EXCL, 0o644)))
	require.NoError(t, git.Rename(ctx, "HEAD.lock", git, "HEAD", 0))
	require.NoError(t, drop1(git.Mkdir(ctx, "refs", 0o755)))
	require.NoError(t, root.Rename(ctx, "src", root, "lib", 0))
	assert.FileExists(t, filepath.Join(dir, ".git/HEAD"))
	assert.Empty(t, told.list)
}

func TestProtectForgettingTheDirectoriesAboveGainsNothing(t *testing.T) {
	root, dir, _ := protected(t, patterns(".git/hooks")...)
	put(t, filepath.Join(dir, ".git/hooks/x"), "")
	git, err := root.Lookup(t.Context(), ".git")
	require.NoError(t, err)
	hooks, err := git.Lookup(t.Context(), "hooks")
	require.NoError(t, err)
	defer hooks.Release()
	git.Release() // no kernel would
	err = drop2(hooks.Create(t.Context(), "planted", os.O_RDWR, 0o755))
	assert.Equal(t, syscall.ESTALE, Errno(err))
}
