package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

// KernelSource says where the kernel comes from. The zero value is the machine's own distribution.
type KernelSource struct {
	Image   string // reference of an image whose kernel is taken over
	File    string // a kernel file (bzImage or vmlinux)
	Modules string // its /lib/modules/VERSION directory, with File
}

func (k KernelSource) validate() error {
	switch {
	case k.Image != "" && (k.File != "" || k.Modules != ""):
		return errors.New("kernel: give either an image or a file with modules, not both")
	case (k.File == "") != (k.Modules == ""):
		return errors.New("kernel: a kernel file and its module directory belong together")
	}
	return nil
}

// preparedKernel is a directory with KernelFile and ModulesFile.
type preparedKernel struct {
	dir  string
	info KernelInfo
	sums map[string]FileInfo
}

// kernelRecord is the file that completes a cached kernel.
type kernelRecord struct {
	Format  int        `json:"format"`
	Info    KernelInfo `json:"info"`
	Arch    string     `json:"arch"`
	Files   []FileInfo `json:"files"`
	Created time.Time  `json:"created"`
}

const kernelRecordFile = "kernel.json"

// prepareKernel makes kernel and modules from their raw forms in dir.
func prepareKernel(ctx context.Context, dir string, image []byte, modules fs.FS, info KernelInfo, p Progress) (*preparedKernel, error) {
	set, err := openModules(modules)
	if err != nil {
		return nil, fmt.Errorf("kernel %s: %w", info.Version, err)
	}
	list, err := set.resolve(ctx, guestModules)
	if err != nil {
		return nil, fmt.Errorf("kernel %s: %w", info.Version, err)
	}
	kernel, format, why := kernelForBoot(ctx, image)
	if why != "" {
		p.Note(fmt.Sprintf("kernel %s is kept as %s, which boots more slowly: %s", info.Version, format, why))
	}
	info.Format = format
	info.Modules = []string{} // an empty list, not null, when everything is built in
	for _, m := range list {
		info.Modules = append(info.Modules, m.name)
	}
	var cpio bytes.Buffer
	if err := writeModules(&cpio, list); err != nil {
		return nil, fmt.Errorf("kernel %s: packing modules: %w", info.Version, err)
	}
	k := &preparedKernel{dir: dir, info: info, sums: map[string]FileInfo{}}
	for name, data := range map[string][]byte{KernelFile: kernel, ModulesFile: cpio.Bytes()} {
		if err := renameio.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return nil, fmt.Errorf("kernel %s: writing %s: %w", info.Version, name, err)
		}
		sum := sha256.Sum256(data)
		k.sums[name] = FileInfo{Name: name, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}
	}
	return k, nil
}

// findKernel gets the kernel that a spec asks for ready in work or in the store's cache.
func (b *builder) findKernel(ctx context.Context) (*preparedKernel, error) {
	src := b.spec.Kernel
	switch {
	case src.Image != "":
		img, err := b.store.Get(src.Image)
		if err != nil {
			return nil, fmt.Errorf("kernel: %w", err)
		}
		if img.Manifest.Arch != b.arch {
			return nil, fmt.Errorf("kernel: image %s is for %s, not %s", src.Image, img.Manifest.Arch, b.arch)
		}
		k := &preparedKernel{dir: img.Dir(), info: img.Manifest.Kernel, sums: map[string]FileInfo{}}
		for _, name := range []string{KernelFile, ModulesFile} {
			k.sums[name], _ = img.Manifest.file(name)
		}
		return k, nil
	case src.File != "":
		image, err := os.ReadFile(src.File)
		if err != nil {
			return nil, fmt.Errorf("kernel: %w", err)
		}
		version := filepath.Base(filepath.Clean(src.Modules))
		return prepareKernel(ctx, b.work.dir, image, os.DirFS(src.Modules), KernelInfo{Version: version}, b.progress)
	}
	return b.aptKernel(ctx)
}

// cachedKernel loads a prepared kernel from the store; nil when it is not there or not for this arch.
func (s *Store) cachedKernel(key, arch string) (*preparedKernel, time.Time) {
	dir := filepath.Join(s.dir, "kernels", key)
	raw, err := os.ReadFile(filepath.Join(dir, kernelRecordFile))
	if err != nil {
		return nil, time.Time{}
	}
	var rec kernelRecord
	if json.Unmarshal(raw, &rec) != nil || rec.Format != FormatVersion || rec.Arch != arch {
		return nil, time.Time{}
	}
	k := &preparedKernel{dir: dir, info: rec.Info, sums: map[string]FileInfo{}}
	for _, f := range rec.Files {
		k.sums[f.Name] = f
	}
	if len(k.sums) != 2 {
		return nil, time.Time{}
	}
	return k, rec.Created
}

// newestKernel is the last resort without a network.
func (s *Store) newestKernel(arch string) *preparedKernel {
	entries, err := os.ReadDir(filepath.Join(s.dir, "kernels"))
	if err != nil {
		return nil
	}
	var newest *preparedKernel
	var when time.Time
	for _, e := range entries {
		if k, created := s.cachedKernel(e.Name(), arch); k != nil && created.After(when) {
			newest, when = k, created
		}
	}
	return newest
}

// cacheKernel makes a prepared kernel (in a staging directory of its own) available to later builds.
func (s *Store) cacheKernel(key, arch string, k *preparedKernel) error {
	rec := kernelRecord{Format: FormatVersion, Info: k.info, Arch: arch, Created: time.Now().UTC()}
	for _, name := range []string{KernelFile, ModulesFile} {
		rec.Files = append(rec.Files, k.sums[name])
	}
	raw, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return fmt.Errorf("caching kernel: %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(k.dir, kernelRecordFile), raw, 0o644); err != nil {
		return fmt.Errorf("caching kernel: %w", err)
	}
	final := filepath.Join(s.dir, "kernels", key)
	_ = os.RemoveAll(final) // a damaged one, or none
	if err := os.Rename(k.dir, final); err != nil {
		return fmt.Errorf("caching kernel: %w", err)
	}
	k.dir = final
	return nil
}

// cacheKey makes a file name of package and version.
func cacheKey(pkg, version string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.+~_-", r) {
			return r
		}
		return '_'
	}, strings.TrimLeft(pkg+"_"+version, "."))
}

// findKernelFiles looks through an unpacked kernel package.
func findKernelFiles(root string) (image, modules, version string, err error) {
	for _, pattern := range []string{"boot/vmlinuz-*", "lib/modules/*/vmlinuz", "usr/lib/modules/*/vmlinuz"} {
		found, _ := filepath.Glob(filepath.Join(root, pattern)) // the patterns are well formed
		slices.Sort(found)
		if len(found) > 0 {
			image = found[len(found)-1]
			break
		}
	}
	for _, pattern := range []string{"lib/modules/*", "usr/lib/modules/*"} {
		found, _ := filepath.Glob(filepath.Join(root, pattern))
		slices.Sort(found)
		if len(found) > 0 {
			modules = found[len(found)-1]
			break
		}
	}
	if image == "" || modules == "" {
		return "", "", "", errors.New("the package holds no kernel with modules")
	}
	return image, modules, filepath.Base(modules), nil
}
