package vfs_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/gondolin-go/gondolin/vfs"
)

// clock is a provider of one's own: a directory with one file, whose content is made up when it is opened.
type clock struct{ vfs.Unsupported }

func (clock) Attr(context.Context) (vfs.Attr, error) {
	return vfs.Attr{Ino: 1, Mode: fs.ModeDir | 0o555, Nlink: 2}, nil
}

func (clock) Lookup(_ context.Context, name string) (vfs.Node, error) {
	if name != "now" {
		return nil, syscall.ENOENT
	}
	return now{}, nil
}

func (clock) OpenDir(context.Context) (vfs.Dir, error) { return clockDir{}, nil }

type clockDir struct{}

func (clockDir) Entries(_ context.Context, pos uint64, _ int) ([]vfs.DirEntry, error) {
	if pos > 0 {
		return nil, nil
	}
	return []vfs.DirEntry{{Name: "now", Ino: 2, Next: 1}}, nil
}
func (clockDir) Sync(context.Context) error { return nil }
func (clockDir) Close() error               { return nil }

type now struct{ vfs.Unsupported }

func (now) Attr(context.Context) (vfs.Attr, error) {
	return vfs.Attr{Ino: 2, Mode: 0o444, Nlink: 1, Size: 5}, nil
}

func (now) Open(context.Context, int) (vfs.File, error) {
	return text{content: time.Unix(0, 0).UTC().Format("15:04")}, nil
}

type text struct {
	vfs.UnsupportedFile
	content string
}

func (f text) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return copy(p, f.content[min(off, int64(len(f.content))):]), nil
}

// A provider implements what it can do; Unsupported says no to the rest.
func Example_provider() {
	ctx := context.Background()
	root := vfs.ReadOnly(clock{})
	n, err := root.Lookup(ctx, "now")
	if err != nil {
		panic(err)
	}
	defer n.Release()
	f, err := n.Open(ctx, os.O_RDONLY)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	buf := make([]byte, 16)
	size, _ := f.ReadAt(ctx, buf, 0)
	fmt.Println(string(buf[:size]))
	_, err = root.Mkdir(ctx, "more", 0o755)
	fmt.Println(vfs.Errno(err))
	// Output:
	// 00:00
	// read-only file system
}

// A workspace: what the host's tools trust is protected, credentials are hidden, growth is bounded,
// and what was refused is told.
func Example_workspace() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "workspace")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, ".env"), []byte("TOKEN=secret"), 0o600); err != nil {
		panic(err)
	}
	protect, err := vfs.NewRules(vfs.DefaultProtect()...)
	if err != nil {
		panic(err)
	}
	hide, err := vfs.NewRules(append(vfs.DefaultHide(), vfs.Rule{Name: "the operator's", Pattern: "/private"})...)
	if err != nil {
		panic(err)
	}
	host, err := vfs.HostDir(dir, vfs.HostDirOptions{UID: 1000, GID: 1000})
	if err != nil {
		panic(err)
	}
	defer host.Close()

	told := func(r vfs.Refusal) { fmt.Println(r.What, r.Path, "-", r.Why) }
	root := vfs.Shadow(host, hide, vfs.ShadowOptions{Upper: vfs.NewMemory(vfs.MemoryOptions{}), OnRefusal: told})
	root = vfs.Protect(root, protect, vfs.ProtectOptions{OnRefusal: told})
	root = vfs.Quota(root, vfs.QuotaOptions{Bytes: 1 << 30, Files: 100_000})
	root = vfs.Hooks(root, vfs.HookFuncs{
		Kinds: []vfs.OpKind{vfs.OpCreate, vfs.OpMkdir},
		After: func(_ context.Context, op vfs.Op, err error) {
			fmt.Println("audit:", op.Kind, op.Path, vfs.Errno(err) == 0)
		},
	})

	for _, name := range []string{"main.go", ".envrc", ".env"} {
		n, f, err := root.Create(ctx, name, os.O_WRONLY|syscall.O_EXCL, 0o644)
		if err == nil {
			f.Close()
			n.Release()
		}
	}
	onHost, _ := os.ReadFile(filepath.Join(dir, ".env"))
	fmt.Println(string(onHost))
	// Output:
	// audit: create main.go true
	// create .envrc - protected
	// audit: create .envrc false
	// audit: create .env true
	// TOKEN=secret
}
