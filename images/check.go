package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// Damage is one file of an image that is not what the manifest says.
type Damage struct {
	File     string
	Problem  string // in words
	Expected string // digest
	Got      string // digest, empty when the file could not be read whole
}

// DamagedError names every damaged file of an image, and the remedy.
type DamagedError struct {
	ID     string
	Names  []string
	Source SourceInfo // what to build it from again
	Dir    string
	Damage []Damage
}

func (e *DamagedError) Error() string {
	var what []string
	for _, d := range e.Damage {
		line := d.File + ": " + d.Problem
		if d.Got != "" {
			line += fmt.Sprintf(" (expected sha256 %s, got %s)", d.Expected, d.Got)
		}
		what = append(what, line)
	}
	image, again := fmt.Sprintf("%.12s", e.ID), "gondolin-mcp images build --force"
	if len(e.Names) > 0 {
		image = fmt.Sprintf("%q (%s)", e.Names[0], image)
	}
	switch plain := e.Source.Kind == "" || e.Source.Kind == KindPackages; {
	case plain && slices.Contains(e.Names, DefaultTag):
	case plain:
		again += " --name NAME --packages LIST"
	default:
		again += " --name NAME --from " + e.Source.Kind + ":" + e.Source.Ref
	}
	if len(e.Names) > 0 {
		again = strings.Replace(again, "NAME", e.Names[0], 1)
	}
	return fmt.Sprintf("image %s in %s is damaged: %s; `%s` makes it anew, `gondolin-mcp images remove %.12s` drops it",
		image, e.Dir, strings.Join(what, "; "), again, e.ID)
}

// fileStamp is what tells a file from a changed one without reading it.
type fileStamp struct {
	Size  int64  `json:"size"`
	Mtime int64  `json:"mtime_ns"`
	Ctime int64  `json:"ctime_ns"`
	Inode uint64 `json:"inode"`
}

type stamp struct {
	ID    string               `json:"id"`
	Files map[string]fileStamp `json:"files"`
}

func stampOf(path string) (fileStamp, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fileStamp{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileStamp{Size: st.Size, Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano(), Inode: st.Ino}, nil
}

// Check is made before every boot. The first one hashes every file; later ones only compare size, times
// and inode with what was noted then, and hash again the files for which any of these moved. A damaged
// image yields a *DamagedError.
func (i *Image) Check(ctx context.Context) error {
	old := i.readStamp()
	now := stamp{ID: i.ID(), Files: map[string]fileStamp{}}
	var damage []Damage
	changed := false
	for _, f := range i.Manifest.Files {
		// The stamp is taken before hashing: a change during the hash shows at the next check.
		st, err := stampOf(i.Path(f.Name))
		if err == nil && old.Files[f.Name] == st {
			now.Files[f.Name] = st
			continue
		}
		changed = true
		bad, herr := i.hash(ctx, f, Quiet.Start("", 0))
		if herr != nil {
			return herr
		}
		if bad != nil {
			damage = append(damage, *bad)
			continue
		}
		now.Files[f.Name] = st
	}
	if len(damage) > 0 {
		return &DamagedError{ID: i.ID(), Names: i.Names(), Source: i.Manifest.Source, Dir: i.dir, Damage: damage}
	}
	if changed {
		i.writeStamp(now)
	}
	return nil
}

// verify hashes every file, whatever the stamp says.
func (i *Image) verify(ctx context.Context, p Progress) error {
	task := p.Start(fmt.Sprintf("verifying image %.12s", i.ID()), i.Manifest.TotalSize())
	defer task.Done()
	now := stamp{ID: i.ID(), Files: map[string]fileStamp{}}
	var damage []Damage
	for _, f := range i.Manifest.Files {
		st, _ := stampOf(i.Path(f.Name)) // a missing file is reported by hash
		bad, err := i.hash(ctx, f, task)
		if err != nil {
			return err
		}
		if bad != nil {
			damage = append(damage, *bad)
		}
		now.Files[f.Name] = st
	}
	if len(damage) > 0 {
		_ = os.Remove(i.Path(stampFile)) // so that the next boot looks again
		return &DamagedError{ID: i.ID(), Names: i.Names(), Source: i.Manifest.Source, Dir: i.dir, Damage: damage}
	}
	i.writeStamp(now)
	return nil
}

// hash compares one file with the manifest. The error is for what says nothing about the file.
func (i *Image) hash(ctx context.Context, want FileInfo, task Task) (*Damage, error) {
	d := &Damage{File: want.Name, Expected: want.SHA256}
	got, size, err := hashFile(ctx, i.Path(want.Name), task)
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("checking image %.12s: %w", i.ID(), ctx.Err())
	case errors.Is(err, os.ErrNotExist):
		d.Problem = "the file is missing"
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("checking image %.12s: %w", i.ID(), err)
	case err != nil:
		d.Problem = "the file cannot be read: " + err.Error()
	case size != want.Size:
		d.Problem, d.Got = fmt.Sprintf("%d bytes instead of %d", size, want.Size), got
	case got != want.SHA256:
		d.Problem, d.Got = "its contents changed", got
	default:
		return nil, nil
	}
	return d, nil
}

func hashFile(ctx context.Context, path string, task Task) (digest string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	size, err = io.Copy(h, &taskReader{ctx: ctx, r: f, task: task})
	return hex.EncodeToString(h.Sum(nil)), size, err
}

func (i *Image) readStamp() stamp {
	var s stamp
	b, err := os.ReadFile(i.Path(stampFile))
	if err != nil || json.Unmarshal(b, &s) != nil || s.ID != i.ID() {
		return stamp{} // without a usable stamp everything is hashed
	}
	return s
}

// writeStamp may fail on a read-only store; then every check hashes, which is slow and still right.
func (i *Image) writeStamp(s stamp) {
	if b, err := json.Marshal(s); err == nil {
		_ = renameio.WriteFile(i.Path(stampFile), b, 0o644)
	}
}
