package vfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestReadOnlyRefusesEveryChange(t *testing.T) {
	host, dir := openHost(t, HostDirOptions{})
	put(t, filepath.Join(dir, "f"), "content")
	put(t, filepath.Join(dir, "d/x"), "")
	before := snapshot(t, dir)
	root := ReadOnly(host)
	ctx := t.Context()
	n := at(t, root, "f")
	for how, f := range making {
		if how != "link" && how != "rename" { // they make a source first
			assert.Equal(t, syscall.EROFS, Errno(f(t, root, "new")), how)
		}
	}
	size := int64(0)
	for what, err := range map[string]error{
		"open for writing": drop3(n.Open(ctx, os.O_RDWR)),
		"truncating":       drop3(n.Open(ctx, os.O_RDONLY|syscall.O_TRUNC)),
		"setattr":          drop4(n.SetAttr(ctx, Change{Size: &size})),
		"mkdir":            drop1(root.Mkdir(ctx, "new", 0o755)),
		"link":             drop1(root.Link(ctx, "new", n)),
		"rename":           root.Rename(ctx, "f", root, "g", 0),
		"unlink":           root.Unlink(ctx, "f"),
		"rmdir":            root.Rmdir(ctx, "d"),
		"setxattr":         n.SetXattr(ctx, "user.x", nil, 0),
		"removexattr":      n.RemoveXattr(ctx, "user.x"),
	} {
		assert.Equal(t, syscall.EROFS, Errno(err), what)
	}
	assert.Equal(t, "content", content(t, n))
	assert.Equal(t, []string{"d", "f"}, names(t, root))
	st, err := root.StatFS(ctx)
	require.NoError(t, err)
	assert.NotZero(t, st.Blocks)
	assert.Equal(t, before, snapshot(t, dir))
}

func TestHooksSeeEveryOperationWithItsPath(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	host, _ := openHost(t, HostDirOptions{})
	root := Hooks(host, HookFuncs{After: func(_ context.Context, op Op, err error) {
		mu.Lock()
		defer mu.Unlock()
		line := fmt.Sprint(op.Kind, " ", op.Path)
		if op.NewPath != "" {
			line += " -> " + op.NewPath
		}
		if op.Bytes != 0 {
			line += fmt.Sprintf(" %d at %d", op.Bytes, op.Off)
		}
		if err != nil {
			line += fmt.Sprint(" ", Errno(err))
		}
		seen = append(seen, line)
	}})
	ctx := t.Context()
	d, err := root.Mkdir(ctx, "d", 0o755)
	require.NoError(t, err)
	defer d.Release()
	n, f, err := d.Create(ctx, "f", os.O_RDWR, 0o600)
	require.NoError(t, err)
	defer n.Release()
	_, err = f.WriteAt(ctx, []byte("abc"), 7)
	require.NoError(t, err)
	require.NoError(t, root.Rename(ctx, "d", root, "e", 0))
	_, err = f.ReadAt(ctx, make([]byte, 2), 1)
	require.NoError(t, err)
	l, err := root.Link(ctx, "l", n)
	require.NoError(t, err)
	l.Release()
	_, err = root.Lookup(ctx, "none")
	require.Error(t, err)
	require.NoError(t, d.Unlink(ctx, "f"))
	require.NoError(t, f.Flush(ctx))
	require.NoError(t, f.Close())
	assert.Equal(t, []string{
		"mkdir d", "create d/f", "write d/f 3 at 7", "rename d -> e", "read e/f 2 at 1", "link e/f -> l",
		"lookup none no such file or directory", "unlink e/f", "flush l",
	}, seen)
}

func TestHooksMayRefuseAndFailClosed(t *testing.T) {
	var log bytes.Buffer
	var after []string
	host, dir := openHost(t, HostDirOptions{})
	root := Hooks(host, HookFuncs{
		Before: func(_ context.Context, op Op) error {
			switch op.Path {
			case "no":
				return fmt.Errorf("not this one: %w", syscall.EDQUOT)
			case "crash":
				panic("before")
			}
			return nil
		},
		After: func(_ context.Context, op Op, err error) {
			after = append(after, fmt.Sprint(op.Path, " ", int(Errno(err))))
			if op.Path == "late" {
				panic("after")
			}
		},
		Kinds:  []OpKind{OpMkdir, OpCreate},
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	for name, errno := range map[string]syscall.Errno{"no": syscall.EDQUOT, "crash": syscall.EPERM, "late": syscall.EIO} {
		assert.Equal(t, errno, Errno(drop1(root.Mkdir(t.Context(), name, 0o755))), name)
		if name != "late" { // which came to be
			assert.Equal(t, errno, Errno(drop2(root.Create(t.Context(), name, os.O_RDWR, 0o755))), name)
		}
	}
	assert.NoDirExists(t, filepath.Join(dir, "no"))
	assert.NoDirExists(t, filepath.Join(dir, "crash"))
	assert.Equal(t, 3, strings.Count(log.String(), "a file hook panicked"))
	assert.Contains(t, after, fmt.Sprint("no ", int(syscall.EDQUOT)), "a refusal is told too")
	names(t, root)
	assert.Len(t, after, 5, "other kinds are not told of")
}

func TestWrappersComposeInAnyOrderAndKeepIdentity(t *testing.T) {
	protect, hide := mustRules(t, patterns(".git/hooks")...), mustRules(t, patterns(".env")...)
	wrappers := map[string]func(Node) Node{
		"protect": func(n Node) Node { return Protect(n, protect, ProtectOptions{}) },
		"shadow":  func(n Node) Node { return Shadow(n, hide, ShadowOptions{}) },
		"quota":   func(n Node) Node { return Quota(n, QuotaOptions{Files: 100}) },
		"hooks":   func(n Node) Node { return Hooks(n, HookFuncs{}) },
	}
	for _, order := range []string{"protect shadow quota hooks", "hooks quota shadow protect", "shadow hooks protect quota", "quota protect hooks shadow"} {
		host, dir := openHost(t, HostDirOptions{})
		root := Node(host)
		for name := range strings.FieldsSeq(order) {
			root = wrappers[name](root)
		}
		ctx := t.Context()
		put(t, filepath.Join(dir, ".env"), "secret")
		require.NoError(t, drop1(root.Mkdir(ctx, ".git", 0o755)))
		require.NoError(t, drop1(root.Mkdir(ctx, "d", 0o755)))
		d := at(t, root, "d")
		n, f, err := root.Create(ctx, "f", os.O_RDWR, 0o600)
		require.NoError(t, err, order)
		require.NoError(t, f.Close())
		require.NoError(t, drop1(d.Link(ctx, "g", n)))
		require.NoError(t, root.Rename(ctx, "f", d, "f", 0))
		assert.Equal(t, []string{"f", "g"}, names(t, d))
		a, err := n.Attr(ctx)
		require.NoError(t, err)
		b, err := at(t, host, "d/g").Attr(ctx)
		require.NoError(t, err)
		assert.Equal(t, b.Ino, a.Ino, order)
		assert.EqualValues(t, 2, a.Nlink)
		assert.Equal(t, syscall.EPERM, Errno(drop1(at(t, root, ".git").Mkdir(ctx, "hooks", 0o755))), order)
		_, err = root.Lookup(ctx, ".env")
		assert.Equal(t, syscall.ENOENT, Errno(err), order)
		for what, err := range map[string]error{
			"rename": root.Rename(ctx, "d", host, "x", 0), "link": drop1(root.Link(ctx, "x", at(t, host, "d/g"))),
		} {
			assert.Equal(t, syscall.EXDEV, Errno(err), "%s: a Node of another layer is foreign", what)
		}
		n.Release()
	}
}

func TestWrappersKeepNothingOfWhatIsReleased(t *testing.T) {
	host, _ := openHost(t, HostDirOptions{})
	none := mustRules(t, patterns(".x")...)
	inner := Shadow(Protect(host, none, ProtectOptions{}), none, ShadowOptions{})
	root := Hooks(Quota(inner, QuotaOptions{Bytes: 1 << 30}), HookFuncs{})
	ctx := t.Context()
	for i := range 50 {
		d, err := root.Mkdir(ctx, fmt.Sprint(i), 0o755)
		require.NoError(t, err)
		n, f, err := d.Create(ctx, "f", os.O_RDWR, 0o600)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.NoError(t, d.Unlink(ctx, "f"))
		n.Release()
		d.Release()
	}
	for n := root; ; {
		l, ok := n.(layered)
		if !ok {
			break
		}
		fs := l.layer().fs
		if fs.paths != nil {
			assert.Empty(t, fs.paths.entries)
		}
		if q, ok := fs.layer.(*quota); ok {
			assert.Empty(t, q.nodes)
		}
		n = l.layer().inner
	}
	assert.Len(t, host.fs.nodes, 1)
}

func TestARefusalNamesRulePathAndErrno(t *testing.T) {
	err := fmt.Errorf("writing: %w", Refusal{Rule: "git", Path: ".git/hooks/x", What: "create", Why: "protected", Errno: syscall.EPERM})
	var r Refusal
	require.True(t, errors.As(err, &r))
	assert.ErrorIs(t, err, syscall.EPERM)
	assert.EqualError(t, r, `create: .git/hooks/x is protected by the rule "git": operation not permitted`)
}
