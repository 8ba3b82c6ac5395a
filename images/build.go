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
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// builder holds what the steps of one build share.
type builder struct {
	store    *Store
	spec     Spec
	arch     string
	os       osRelease
	progress Progress
	work     *staging
	config   *ImageConfig
}

// Build makes the image that a spec describes and names it. A spec that was built before, and whose
// result is still whole, is not built again unless Force is set. Several processes that build the same
// spec at the same time build it once: the others wait and take the result.
func Build(ctx context.Context, s *Store, spec Spec, p Progress) (*Image, error) {
	if p == nil {
		p = Quiet
	}
	if err := spec.normalize(); err != nil {
		return nil, err
	}
	// Not knowing the distribution only matters to sources that need it; they say so.
	release, _ := readOSRelease("/etc/os-release")
	b := &builder{store: s, spec: spec, arch: spec.Arch, os: release, progress: p}
	img, err := b.build(ctx)
	if err != nil {
		return nil, fmt.Errorf("building image from %s: %w", stripCredentials(spec.Source.String()), err)
	}
	return img, nil
}

func (b *builder) build(ctx context.Context) (*Image, error) {
	src, err := b.openSource(ctx)
	if err != nil {
		return nil, err
	}
	key := b.specKey(src.identity)
	began := time.Now()
	unlock, err := b.waitForSpec(ctx, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if img := b.builtBefore(ctx, key, src.cacheable, began); img != nil {
		return img, b.name(ctx, img.ID())
	}
	if err := b.store.sweep(ctx); err != nil {
		return nil, err
	}
	// Blobs and kernels stay while a build may need them; gc takes this lock exclusively.
	release, err := b.store.lock(ctx, "cache", false)
	if err != nil {
		return nil, err
	}
	defer release()
	if b.work, err = b.store.newStaging(ctx, "build"); err != nil {
		return nil, err
	}
	defer b.work.close()
	m, out, err := b.make(ctx, src)
	if err != nil {
		return nil, err
	}
	return b.publish(ctx, m, out, key)
}

// specKey identifies what is asked for: equal keys give interchangeable images.
func (b *builder) specKey(identity string) string {
	kernel := b.spec.Kernel
	raw, err := json.Marshal([]any{FormatVersion, b.arch, identity, kernel.Image, kernel.File, kernel.Modules})
	if err != nil {
		return identity // cannot happen: strings and numbers only
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

func (b *builder) waitForSpec(ctx context.Context, key string) (func(), error) {
	if unlock, ok := b.store.tryLock("build-" + key[:24]); ok {
		return unlock, nil
	}
	b.progress.Note("another process builds the same image; waiting for it")
	return b.store.lock(ctx, "build-"+key[:24], true)
}

// builtBefore returns the result of an earlier build of the same spec. A forced build, or one of a
// source whose state has no name (a directory), only takes what was finished since it began waiting.
func (b *builder) builtBefore(ctx context.Context, key string, cacheable bool, began time.Time) *Image {
	file := filepath.Join(b.store.dir, "specs", key)
	info, err := os.Stat(file)
	if err != nil {
		return nil
	}
	if (b.spec.Force || !cacheable) && info.ModTime().Before(began) {
		return nil
	}
	id, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	img, err := b.store.load(strings.TrimSpace(string(id)))
	if err != nil {
		return nil
	}
	if err := img.Check(ctx); err != nil {
		b.progress.Note(fmt.Sprintf("%v; building it again", err))
		return nil
	}
	b.progress.Note(fmt.Sprintf("image %.12s was built before from the same source", img.ID()))
	return img
}

// make builds all files of the image in the work directory's subdirectory.
func (b *builder) make(ctx context.Context, src *openedSource) (*Manifest, string, error) {
	kernel, err := b.findKernel(ctx)
	if err != nil {
		return nil, "", err
	}
	out := b.work.path("image")
	if err := os.Mkdir(out, 0o755); err != nil {
		return nil, "", fmt.Errorf("making the image directory: %w", err)
	}
	spool, err := os.Create(b.work.path("spool"))
	if err != nil {
		return nil, "", fmt.Errorf("making the spool file: %w", err)
	}
	defer spool.Close()
	_ = os.Remove(spool.Name()) // only we need it, and only while it is open
	t := newTree(spool, b.spec.Limits)
	info, err := src.apply(ctx, t)
	if err != nil {
		return nil, "", err
	}
	if err := t.finish(); err != nil {
		return nil, "", err
	}
	if err := t.writeExt4(ctx, filepath.Join(out, RootFile), b.progress); err != nil {
		return nil, "", err
	}
	m, err := b.describe(ctx, out, kernel, info)
	return m, out, err
}

// describe copies the kernel in, hashes everything and writes the manifest.
func (b *builder) describe(ctx context.Context, out string, kernel *preparedKernel, info SourceInfo) (*Manifest, error) {
	m := &Manifest{Format: FormatVersion, Arch: b.arch, Source: info, Kernel: kernel.info, Config: b.config,
		Created: time.Now().UTC().Truncate(time.Second), GondolinVersion: b.spec.Version}
	for _, name := range []string{KernelFile, ModulesFile} {
		if err := copyFile(filepath.Join(kernel.dir, name), filepath.Join(out, name)); err != nil {
			return nil, fmt.Errorf("copying the kernel: %w", err)
		}
	}
	for _, name := range []string{KernelFile, ModulesFile, RootFile} {
		path := filepath.Join(out, name)
		sum, size, err := hashFile(ctx, path, Quiet.Start("", 0))
		if err != nil {
			return nil, fmt.Errorf("hashing %s: %w", name, err)
		}
		if want, ok := kernel.sums[name]; ok && want.SHA256 != sum {
			return nil, fmt.Errorf("the kernel's file %s in %s is damaged: expected sha256 %s, got %s; remove that directory and build again",
				name, kernel.dir, want.SHA256, sum)
		}
		m.Files = append(m.Files, FileInfo{Name: name, Size: size, SHA256: sum})
		if name == RootFile {
			m.Root = RootInfo{Type: "ext4", Size: size, SHA256: sum}
		}
		if err := os.Chmod(path, 0o444); err != nil {
			return nil, fmt.Errorf("protecting %s: %w", name, err)
		}
	}
	m.ID = m.computeID()
	raw, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("writing the manifest: %w", err)
	}
	if _, err := ParseManifest(raw); err != nil {
		return nil, fmt.Errorf("the manifest just made does not read back: %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(out, ManifestFile), append(raw, '\n'), 0o444); err != nil {
		return nil, fmt.Errorf("writing the manifest: %w", err)
	}
	return m, nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}

// publish moves the finished directory to its place and names it, so that no one sees half an image and
// gc sees no image without its name.
func (b *builder) publish(ctx context.Context, m *Manifest, out, key string) (*Image, error) {
	if err := syncDir(out); err != nil {
		return nil, err
	}
	unlock, err := b.store.lock(ctx, "store", true)
	if err != nil {
		return nil, err
	}
	defer unlock()
	final := filepath.Join(b.store.dir, m.ID)
	if old, err := b.store.load(m.ID); err == nil && old.Check(ctx) == nil {
		b.progress.Note(fmt.Sprintf("the result equals image %.12s", m.ID))
	} else {
		// A damaged image of the same id makes way; who has its files open keeps them.
		if err := os.Rename(final, b.work.path("replaced")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("replacing image %.12s: %w", m.ID, err)
		}
		if err := os.Rename(out, final); err != nil {
			return nil, fmt.Errorf("publishing image %.12s: %w", m.ID, err)
		}
	}
	if err := syncDir(b.store.dir); err != nil {
		return nil, err
	}
	if err := renameio.WriteFile(filepath.Join(b.store.dir, "specs", key), []byte(m.ID+"\n"), 0o644); err != nil {
		return nil, fmt.Errorf("noting image %.12s: %w", m.ID, err)
	}
	if b.spec.Name != "" {
		if err := b.store.Tag(b.spec.Name, m.ID); err != nil {
			return nil, err
		}
	}
	img, err := b.store.load(m.ID)
	if err != nil {
		return nil, err
	}
	// Everything was hashed a moment ago, but not after the move: look once, so that the first boot need not.
	return img, img.Check(ctx)
}

// name tags an image that was there already.
func (b *builder) name(ctx context.Context, id string) error {
	if b.spec.Name == "" {
		return nil
	}
	unlock, err := b.store.lock(ctx, "store", true)
	if err != nil {
		return err
	}
	defer unlock()
	return b.store.Tag(b.spec.Name, id)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	return nil
}
