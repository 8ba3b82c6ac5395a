package vfs

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func shadowed(t *testing.T, upper Node, rules ...Rule) (Node, string, *refusals) {
	t.Helper()
	host, dir := openHost(t, HostDirOptions{})
	told := &refusals{}
	return Shadow(host, mustRules(t, rules...), ShadowOptions{Upper: upper, OnRefusal: told.add}), dir, told
}

func TestShadowHiddenFilesAreNeitherFoundNorListed(t *testing.T) {
	root, dir, told := shadowed(t, nil, DefaultHide()...)
	for _, p := range []string{".env", ".env.local", ".env.example", "id_rsa", "sub/.aws/credentials", "sub/x", "sub/.ENV"} {
		put(t, filepath.Join(dir, p), "secret")
	}
	assert.Equal(t, []string{".env.example", "sub"}, names(t, root))
	assert.Equal(t, []string{"x"}, names(t, at(t, root, "sub")))
	for _, name := range []string{".env", ".env.local", "id_rsa", ".Env", "ID_RSA"} {
		_, err := root.Lookup(t.Context(), name)
		assert.Equal(t, syscall.ENOENT, Errno(err), name)
	}
	require.NotEmpty(t, told.list, "the operator hears of it")
	assert.Equal(t, Refusal{Rule: "environment: .env", Path: ".env", What: "lookup", Why: "hidden", Errno: syscall.ENOENT}, told.list[0])
	count := len(told.list)
	_, err := root.Lookup(t.Context(), ".env.nothing")
	assert.Equal(t, syscall.ENOENT, Errno(err))
	assert.Len(t, told.list, count, "what is not there is not hidden either")
}

func TestShadowNothingIsMadeUnderAHiddenName(t *testing.T) {
	root, dir, _ := shadowed(t, nil, patterns(".env")...)
	for how, f := range making {
		assert.Equal(t, syscall.EACCES, Errno(f(t, root, ".env")), how)
	}
	put(t, filepath.Join(dir, ".env"), "host's")
	ctx := t.Context()
	assert.Equal(t, syscall.ENOENT, Errno(root.Unlink(ctx, ".env")))
	assert.Equal(t, syscall.ENOENT, Errno(root.Rename(ctx, ".env", root, "x", 0)))
	assert.Equal(t, syscall.EACCES, Errno(root.Rename(ctx, "source", root, ".env", RenameExchange)))
	got, err := os.ReadFile(filepath.Join(dir, ".env"))
	require.NoError(t, err)
	assert.Equal(t, "host's", string(got))
}

func TestShadowRenamingADirectoryUncoversNothing(t *testing.T) {
	root, dir, _ := shadowed(t, nil, patterns("/conf/secret", ".aws/credentials", "*.key")...)
	put(t, filepath.Join(dir, "conf/secret"), "s")
	put(t, filepath.Join(dir, ".aws/credentials"), "s")
	put(t, filepath.Join(dir, "keys/a.key"), "s")
	ctx := t.Context()
	require.NoError(t, drop1(root.Mkdir(ctx, "other", 0o755)))
	for name, err := range map[string]error{
		"mv conf x":           root.Rename(ctx, "conf", root, "x", 0),
		"exchange conf other": root.Rename(ctx, "other", root, "conf", RenameExchange),
		"mv .aws x":           root.Rename(ctx, ".aws", root, "x", 0),
	} {
		assert.Equal(t, syscall.EACCES, Errno(err), name)
	}
	require.NoError(t, root.Rename(ctx, "keys", root, "keys2", 0))
	assert.Empty(t, names(t, at(t, root, "keys2")), "still hidden at its new place")
	assert.Equal(t, syscall.ENOTEMPTY, Errno(root.Rmdir(ctx, "keys2")))
	assert.Equal(t, syscall.ENOTEMPTY, Errno(root.Rename(ctx, "other", root, "keys2", 0)))
	_, err := at(t, root, "keys2").Lookup(ctx, "a.key")
	assert.Equal(t, syscall.ENOENT, Errno(err))
}

func TestShadowAHiddenFileIsNotReachedThroughAHardLink(t *testing.T) {
	root, dir, told := shadowed(t, nil, patterns(".env", ".ssh")...)
	put(t, filepath.Join(dir, "a/b/.env"), "secret")
	put(t, filepath.Join(dir, ".ssh/id"), "secret")
	put(t, filepath.Join(dir, "plain"), "")
	for from, to := range map[string]string{"a/b/.env": "visible", ".ssh/id": "a/visible", "plain": "plain2"} {
		require.NoError(t, os.Link(filepath.Join(dir, from), filepath.Join(dir, to)))
	}
	_, err := root.Lookup(t.Context(), "visible")
	assert.Equal(t, syscall.ENOENT, Errno(err))
	assert.Equal(t, "visible", told.last().Path)
	_, err = at(t, root, "a").Lookup(t.Context(), "visible")
	assert.Equal(t, syscall.ENOENT, Errno(err))
	assert.Equal(t, syscall.ENOENT, Errno(drop2(root.Create(t.Context(), "visible", os.O_RDWR, 0o600))))
	assert.Equal(t, []string{"a", "plain", "plain2"}, names(t, root), "not listed either once it is known")
	assert.Equal(t, "", content(t, at(t, root, "plain2")))
}

func TestShadowALinkMadeLaterIsHiddenOnceItsTwinIsSeen(t *testing.T) {
	root, dir, _ := shadowed(t, nil, patterns(".env")...)
	put(t, filepath.Join(dir, "x"), "")
	require.NoError(t, os.Link(filepath.Join(dir, "x"), filepath.Join(dir, "y")))
	n := at(t, root, "x") // searches the tree, which is not done again at once
	put(t, filepath.Join(dir, ".env"), "secret")
	require.NoError(t, os.Link(filepath.Join(dir, ".env"), filepath.Join(dir, "z")))
	names(t, root)
	_, err := root.Lookup(t.Context(), "z")
	assert.Equal(t, syscall.ENOENT, Errno(err))

	// The host links a file that the guest holds already to a hidden name.
	require.NoError(t, os.Link(filepath.Join(dir, "x"), filepath.Join(dir, "sub.env")))
	require.NoError(t, os.Rename(filepath.Join(dir, "sub.env"), filepath.Join(dir, ".env")))
	names(t, root)
	_, err = n.Open(t.Context(), os.O_RDONLY)
	assert.Equal(t, syscall.ENOENT, Errno(err))
}

func TestShadowListsLargeDirectoriesOnce(t *testing.T) {
	upper := NewMemory(MemoryOptions{})
	root, dir, _ := shadowed(t, upper, patterns("*.key")...)
	var want []string
	for i := range 300 {
		put(t, filepath.Join(dir, fmt.Sprintf("%03d.key", i)), "")
		if i%10 == 0 {
			put(t, filepath.Join(dir, fmt.Sprintf("%03d", i)), "")
			want = append(want, fmt.Sprintf("%03d", i))
			require.NoError(t, drop2(root.Create(t.Context(), fmt.Sprintf("%03d.key", i), os.O_RDWR, 0o600)))
			want = append(want, fmt.Sprintf("%03d.key", i))
		}
	}
	assert.Equal(t, want, names(t, root))
}

func TestShadowTheGuestHasFilesOfItsOwnInTheUpperProvider(t *testing.T) {
	upper := NewMemory(MemoryOptions{})
	root, dir, told := shadowed(t, upper, patterns(".env", ".env.*", ".ssh", "/conf/secret")...)
	ctx := t.Context()
	put(t, filepath.Join(dir, "a/.env"), "host's")
	put(t, filepath.Join(dir, "a/free"), "host's")
	a := at(t, root, "a")
	_, err := a.Lookup(ctx, ".env")
	assert.Equal(t, syscall.ENOENT, Errno(err))

	n, f, err := a.Create(ctx, ".env", os.O_RDWR, 0o600)
	require.NoError(t, err)
	_, err = f.WriteAt(ctx, []byte("guest's"), 0)
	require.NoError(t, err)
	fa, err := f.Attr(ctx)
	require.NoError(t, err)
	na, err := at(t, root, "a/.env").Attr(ctx)
	require.NoError(t, err)
	assert.Equal(t, fa.Ino, na.Ino)
	require.NoError(t, f.Close())
	n.Release()
	assert.Equal(t, "guest's", content(t, at(t, root, "a/.env")))
	assert.Equal(t, []string{".env", "free"}, names(t, a))

	require.NoError(t, drop1(root.Mkdir(ctx, ".ssh", 0o700)))
	ssh := at(t, root, ".ssh")
	require.NoError(t, drop2(ssh.Create(ctx, "config", os.O_RDWR, 0o600)))
	require.NoError(t, ssh.Rename(ctx, "config", ssh, "config2", 0))
	assert.Equal(t, []string{"config2"}, names(t, ssh))
	assert.Equal(t, []string{".ssh", "a"}, names(t, root))
	require.NoError(t, ssh.Rename(ctx, "config2", a, ".env.local", 0), "both lie above")
	assert.Equal(t, syscall.EXDEV, Errno(a.Rename(ctx, "free", a, ".env", 0)))
	assert.Equal(t, syscall.EXDEV, Errno(a.Rename(ctx, ".env", a, "free", 0)))
	assert.Equal(t, syscall.EXDEV, Errno(drop1(a.Link(ctx, ".env.x", at(t, root, "a/free")))))

	require.NoError(t, root.Rename(ctx, "a", root, "b", 0), "its own files move along")
	assert.Equal(t, []string{".env", ".env.local", "free"}, names(t, at(t, root, "b")))
	assert.Equal(t, "guest's", content(t, at(t, root, "b/.env")))
	require.NoError(t, a.Unlink(ctx, "free"))
	require.NoError(t, os.Remove(filepath.Join(dir, "b/.env")))
	assert.Equal(t, syscall.ENOTEMPTY, Errno(root.Rmdir(ctx, "b")))
	require.NoError(t, a.Unlink(ctx, ".env"))
	require.NoError(t, a.Unlink(ctx, ".env.local"))
	require.NoError(t, root.Rmdir(ctx, "b"))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, left, "nothing of it is on the host")
	for _, r := range told.list {
		assert.Equal(t, "lookup", r.What)
	}
}

func TestShadowDoesNotTellOfHiddenNames(t *testing.T) {
	root, dir, _ := shadowed(t, nil, patterns(".env", "/d/x")...)
	put(t, filepath.Join(dir, "d/y"), "")
	d := at(t, root, "d")
	da, err := d.Attr(t.Context())
	require.NoError(t, err)
	ra, err := root.Attr(t.Context())
	require.NoError(t, err)
	s := root.(layered).layer().fs.layer.(*shadow)
	assert.True(t, s.hides(Changed{Dir: ra.Ino, Name: ".env"}))
	assert.True(t, s.hides(Changed{Dir: da.Ino, Name: ".env"}))
	assert.True(t, s.hides(Changed{Dir: da.Ino, Name: "x"}))
	assert.False(t, s.hides(Changed{Dir: da.Ino, Name: "y"}))
	assert.False(t, s.hides(Changed{Ino: da.Ino}))
	_, ok := root.(Watcher)
	assert.True(t, ok, "a wrapped root watches")
	_, ok = ReadOnly(NewMemory(MemoryOptions{})).(Watcher)
	assert.False(t, ok, "unless its provider does not")
}
