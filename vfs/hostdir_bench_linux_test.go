package vfs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// benchRoots are a plain host directory and one with the wrappers of a workspace.
func benchRoots(b *testing.B, run func(b *testing.B, root Node, dir string)) {
	for _, name := range []string{"plain", "wrapped"} {
		b.Run(name, func(b *testing.B) {
			dir := b.TempDir()
			host, err := HostDir(dir, HostDirOptions{})
			if err != nil {
				b.Fatal(err)
			}
			defer host.Close()
			root := Node(host)
			if name == "wrapped" {
				root = Shadow(root, mustRules(b, DefaultHide()...), ShadowOptions{})
				root = Protect(root, mustRules(b, DefaultProtect()...), ProtectOptions{})
				root = Hooks(Quota(root, QuotaOptions{Bytes: 1 << 40}), HookFuncs{})
			}
			run(b, root, dir)
		})
	}
}

func BenchmarkHostDirCreateUnlink(b *testing.B) {
	benchRoots(b, func(b *testing.B, root Node, _ string) {
		for b.Loop() {
			n, f, err := root.Create(b.Context(), "file", os.O_RDWR|openExcl, 0o644)
			if err != nil {
				b.Fatal(err)
			}
			f.Close()
			if err := root.Unlink(b.Context(), "file"); err != nil {
				b.Fatal(err)
			}
			n.Release()
		}
	})
}

func BenchmarkHostDirLookupAttr(b *testing.B) {
	benchRoots(b, func(b *testing.B, root Node, dir string) {
		if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			n, err := root.Lookup(b.Context(), "file")
			if err != nil {
				b.Fatal(err)
			}
			if _, err := n.Attr(b.Context()); err != nil {
				b.Fatal(err)
			}
			n.Release()
		}
	})
}

func BenchmarkHostDirRead1MiB(b *testing.B) {
	benchRoots(b, func(b *testing.B, root Node, dir string) {
		buf := make([]byte, 1<<20)
		if err := os.WriteFile(filepath.Join(dir, "file"), buf, 0o600); err != nil {
			b.Fatal(err)
		}
		n, err := root.Lookup(b.Context(), "file")
		if err != nil {
			b.Fatal(err)
		}
		defer n.Release()
		f, err := n.Open(b.Context(), os.O_RDONLY)
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		b.SetBytes(int64(len(buf)))
		for b.Loop() {
			if _, err := f.ReadAt(b.Context(), buf, 0); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkHostDirList100000(b *testing.B) {
	benchRoots(b, func(b *testing.B, root Node, dir string) {
		for i := range 100_000 {
			f, err := os.Create(filepath.Join(dir, fmt.Sprint("file-", i)))
			if err != nil {
				b.Fatal(err)
			}
			f.Close()
		}
		for b.Loop() {
			d, err := root.OpenDir(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			count := 0
			for pos := uint64(0); ; {
				list, err := d.Entries(b.Context(), pos, 256)
				if err != nil {
					b.Fatal(err)
				}
				if len(list) == 0 {
					break
				}
				count, pos = count+len(list), list[len(list)-1].Next
			}
			d.Close()
			if count != 100_000 {
				b.Fatal(count)
			}
		}
	})
}
