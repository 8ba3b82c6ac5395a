package images

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// tree is a root file system being put together: names and metadata in memory, file contents one after
// the other in a spool file. Nothing of it is ever created as a file of the host, so a hostile layer has
// no host path to escape to, and ownership needs no privilege.
type tree struct {
	root   *inode
	budget budget
	layer  int // number of the layer being applied, for whiteouts

	spool    *os.File
	spoolBuf *bufio.Writer
	spoolOff int64
}

// inode is one file; several names may share it (hard links).
type inode struct {
	typ    byte // tar.TypeReg, TypeDir, TypeSymlink or TypeFifo
	mode   int64
	uid    int
	gid    int
	mtime  time.Time
	xattrs map[string]string
	target string // of a symlink

	off, size int64 // contents of a regular file within the spool
	links     int
	children  map[string]dirent
}

// dirent remembers which layer a name came from: whiteouts only hide what lower layers brought.
type dirent struct {
	*inode
	layer int
}

// newTree spools into the given file, which the caller closes and removes.
func newTree(spool *os.File, limits Limits) *tree {
	return &tree{
		root:     &inode{typ: tar.TypeDir, mode: 0o755, children: map[string]dirent{}, links: 1},
		budget:   budget{limits: limits.withDefaults()},
		spool:    spool,
		spoolBuf: bufio.NewWriterSize(spool, 1<<20),
	}
}

func newDir(mode int64) *inode {
	return &inode{typ: tar.TypeDir, mode: mode, children: map[string]dirent{}}
}

// cleanName turns an entry name of an archive into path components. A leading "/" or "./" is what many
// tools write and is dropped; anything that could climb is refused rather than repaired.
func cleanName(name string) ([]string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return nil, errors.New("the name contains a NUL byte")
	}
	if len(name) > maxPath {
		return nil, fmt.Errorf("the path is longer than %d bytes", maxPath)
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
		case part == "..":
			return nil, errors.New(`path traversal: the name contains ".."`)
		case len(part) > maxComponent:
			return nil, fmt.Errorf("a path component is longer than %d bytes", maxComponent)
		default:
			parts = append(parts, part)
		}
	}
	if len(parts) > maxDepth {
		return nil, fmt.Errorf("the path is more than %d directories deep", maxDepth)
	}
	return parts, nil
}

// dir walks to a directory as if the tree were the root of the world: absolute symlink targets start
// over at the root and ".." stops there. With create set, missing directories are made.
func (t *tree) dir(parts []string, create bool) (*inode, error) {
	stack := []*inode{t.root}
	todo := append([]string(nil), parts...)
	hops := 0
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		cur := stack[len(stack)-1]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
			}
			continue
		}
		child, ok := cur.children[part]
		switch {
		case !ok && !create:
			return nil, fmt.Errorf("%q does not exist", part)
		case !ok:
			if len(part) > maxComponent {
				return nil, fmt.Errorf("a path component is longer than %d bytes", maxComponent)
			}
			if len(stack) > maxDepth {
				return nil, fmt.Errorf("the path is more than %d directories deep", maxDepth)
			}
			if err := t.budget.addEntry(len(part)); err != nil {
				return nil, err
			}
			made := newDir(0o755)
			cur.link(part, made, t.layer)
			stack = append(stack, made)
		case child.typ == tar.TypeDir:
			stack = append(stack, child.inode)
		case child.typ == tar.TypeSymlink:
			if hops++; hops > maxSymlinks {
				return nil, fmt.Errorf("symlink loop at %q", part)
			}
			if strings.HasPrefix(child.target, "/") {
				stack = stack[:1]
			}
			todo = append(strings.Split(child.target, "/"), todo...)
		default:
			return nil, fmt.Errorf("%q is not a directory", part)
		}
	}
	return stack[len(stack)-1], nil
}

// lookup finds a name without following a symlink in its last component; nil when there is none.
func (t *tree) lookup(name string) *inode {
	parts, err := cleanName(name)
	if err != nil {
		return nil
	}
	if len(parts) == 0 {
		return t.root
	}
	parent, err := t.dir(parts[:len(parts)-1], false)
	if err != nil {
		return nil
	}
	return parent.children[parts[len(parts)-1]].inode
}

// link gives an inode a name, dropping whatever had it before.
func (d *inode) link(name string, n *inode, layer int) {
	d.unlink(name)
	n.links++
	d.children[name] = dirent{n, layer}
}

func (d *inode) unlink(name string) {
	old, ok := d.children[name]
	if !ok {
		return
	}
	old.links--
	delete(d.children, name)
	// Names below are gone too: their link counts decide later who is written as a hard link.
	for child := range old.children {
		old.unlink(child)
	}
}

// pruneLower removes what lower layers put below d and reports whether anything is left.
func (d *inode) pruneLower(layer int) (empty bool) {
	for name, child := range d.children {
		if child.typ == tar.TypeDir {
			if child.pruneLower(layer) && child.layer < layer {
				d.unlink(name)
			}
		} else if child.layer < layer {
			d.unlink(name)
		}
	}
	return len(d.children) == 0
}

// whiteout hides name in d as far as lower layers brought it.
func (d *inode) whiteout(name string, layer int) {
	child, ok := d.children[name]
	if !ok {
		return
	}
	if child.typ == tar.TypeDir {
		if !child.pruneLower(layer) || child.layer >= layer {
			return
		}
	} else if child.layer >= layer {
		return
	}
	d.unlink(name)
}
