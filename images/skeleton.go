package images

import (
	"archive/tar"
	"fmt"
	"path"
	"strings"
	"time"
)

// mountPoints are what the guest's init mounts on. The root disk is read-only, so they must be there,
// and must be directories.
var mountPoints = map[string]int64{"proc": 0o555, "sys": 0o555, "dev": 0o755, "run": 0o755, "tmp": 0o1777, "etc": 0o755, "root": 0o700}

// guestFiles are files that the guest's init writes or mounts over, and what they hold until then.
var guestFiles = map[string]string{
	"etc/resolv.conf": "",
	"etc/hosts":       "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
	"etc/hostname":    "gondolin\n",
}

// finish adds the little that every root disk needs. Nothing of gondolin's own is among it.
func (t *tree) finish() error {
	t.layer++
	for name, mode := range mountPoints {
		if n := t.root.children[name].inode; n == nil || n.typ != tar.TypeDir {
			if n != nil && name == "etc" {
				return fmt.Errorf("the root file system has an /etc that is no directory")
			}
			t.root.link(name, newDir(mode), t.layer)
		}
	}
	for name, contents := range guestFiles {
		// A symlink (to some resolver's socket directory, say) would lead nowhere in the guest.
		if n := t.lookup(name); n != nil && n.typ == tar.TypeReg {
			continue
		}
		if err := t.putFile(name, 0o644, contents); err != nil {
			return err
		}
	}
	return nil
}

// putFile makes a file of root's, replacing what had its name.
func (t *tree) putFile(name string, mode int64, contents string) error {
	parts, err := cleanName(path.Dir(name))
	if err != nil {
		return fmt.Errorf("adding %s: %w", name, err)
	}
	dir, err := t.dir(parts, true)
	if err != nil {
		return fmt.Errorf("adding /%s: %w", name, err)
	}
	n := &inode{typ: tar.TypeReg, mode: mode, mtime: time.Unix(0, 0)}
	if err := t.store(n, int64(len(contents)), strings.NewReader(contents)); err != nil {
		return fmt.Errorf("adding /%s: %w", name, err)
	}
	dir.link(path.Base(name), n, t.layer)
	return nil
}
