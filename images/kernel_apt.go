package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// metaPackages name the distribution's current small kernel, first choice first.
var metaPackages = map[string][]string{
	"debian/amd64": {"linux-image-cloud-amd64", "linux-image-amd64"},
	"debian/arm64": {"linux-image-cloud-arm64", "linux-image-arm64"},
	"ubuntu/amd64": {"linux-image-kvm", "linux-image-virtual", "linux-image-generic"},
	"ubuntu/arm64": {"linux-image-virtual", "linux-image-generic"},
}

// aptPackage is a concrete kernel package of the machine's distribution.
type aptPackage struct {
	name, version string
	with          []string // packages that hold the rest of it (Ubuntu's modules)
}

// apt runs the machine's apt, with its lists or, when those are of no use, with a set of its own.
type apt struct {
	dir     string   // where downloads go
	options []string // -o settings for private lists
}

// aptKernel gets the distribution's kernel: from the cache when this version was prepared before, from
// the mirror otherwise, and from the cache again when there is no mirror to be reached.
func (b *builder) aptKernel(ctx context.Context) (*preparedKernel, error) {
	// One process at a time: the others find the result in the cache.
	unlock, err := b.store.lock(ctx, "kernel", true)
	if err != nil {
		return nil, err
	}
	defer unlock()
	k, err := b.fetchKernel(ctx)
	if err == nil || ctx.Err() != nil {
		return k, err
	}
	if k := b.store.newestKernel(b.arch); k != nil {
		b.progress.Note(fmt.Sprintf("no kernel from the distribution (%v); using kernel %s that was prepared earlier", err, k.info.Version))
		return k, nil
	}
	return nil, err
}

func (b *builder) fetchKernel(ctx context.Context) (*preparedKernel, error) {
	if b.arch != runtime.GOARCH {
		return nil, fmt.Errorf("kernel for %s: this machine's apt serves %s; give one with --kernel and --modules, or --kernel-from", b.arch, runtime.GOARCH)
	}
	for _, tool := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := lookTool(tool); err != nil {
			return nil, fmt.Errorf("kernel: %w; without apt, give one with --kernel and --modules, or --kernel-from", err)
		}
	}
	work, err := b.store.newStaging(ctx, "kernel")
	if err != nil {
		return nil, err
	}
	defer work.close()
	a := &apt{dir: work.path("deb")}
	if err := os.Mkdir(a.dir, 0o755); err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	pkg, err := a.resolveKernel(ctx, b.os)
	if err == nil {
		if k, _ := b.store.cachedKernel(cacheKey(pkg.name, pkg.version), b.arch); k != nil && k.intact(ctx) {
			return k, nil
		}
		err = a.download(ctx, pkg, b.progress)
	}
	if err != nil {
		// The machine's lists are missing or old: fetch a set of our own, which needs no privilege.
		if uerr := a.ownLists(ctx, work.path("apt"), b.progress); uerr != nil {
			return nil, fmt.Errorf("kernel: %w", errors.Join(err, uerr))
		}
		if pkg, err = a.resolveKernel(ctx, b.os); err != nil {
			return nil, fmt.Errorf("kernel: %w", err)
		}
		if err = a.download(ctx, pkg, b.progress); err != nil {
			return nil, fmt.Errorf("kernel: %w", err)
		}
	}
	return b.unpackKernel(ctx, a, pkg, work)
}

func (b *builder) unpackKernel(ctx context.Context, a *apt, pkg aptPackage, work *staging) (*preparedKernel, error) {
	b.progress.Note(fmt.Sprintf("preparing kernel %s %s", pkg.name, pkg.version))
	root := work.path("root")
	debs, err := filepath.Glob(filepath.Join(a.dir, "*.deb"))
	if err != nil || len(debs) == 0 {
		return nil, fmt.Errorf("kernel %s: apt-get download left no package in %s", pkg.name, a.dir)
	}
	for _, deb := range debs {
		if _, err := run(ctx, a.dir, nil, "dpkg-deb", "--extract", deb, root); err != nil {
			return nil, fmt.Errorf("kernel %s: %w", pkg.name, err)
		}
	}
	imageFile, modules, version, err := findKernelFiles(root)
	if err != nil {
		return nil, fmt.Errorf("kernel %s: %w", pkg.name, err)
	}
	image, err := os.ReadFile(imageFile)
	if err != nil {
		return nil, fmt.Errorf("kernel %s: %w", pkg.name, err)
	}
	out := work.path("out")
	if err := os.Mkdir(out, 0o755); err != nil {
		return nil, fmt.Errorf("kernel %s: %w", pkg.name, err)
	}
	info := KernelInfo{Version: version, Package: pkg.name, PackageVersion: pkg.version}
	k, err := prepareKernel(ctx, out, image, os.DirFS(modules), info, b.progress)
	if err != nil {
		return nil, err
	}
	return k, b.store.cacheKernel(cacheKey(pkg.name, pkg.version), b.arch, k)
}

// intact reads a cached kernel once more before it goes into an image.
func (k *preparedKernel) intact(ctx context.Context) bool {
	for name, want := range k.sums {
		got, _, err := hashFile(ctx, filepath.Join(k.dir, name), Quiet.Start("", 0))
		if err != nil || got != want.SHA256 {
			return false
		}
	}
	return true
}

// ownLists downloads package lists into a private directory, with the machine's sources and settings.
func (a *apt) ownLists(ctx context.Context, dir string, p Progress) error {
	for _, sub := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return fmt.Errorf("making apt's directories: %w", err)
		}
	}
	p.Note("fetching package lists")
	a.options = []string{"-o", "Dir::State::lists=" + filepath.Join(dir, "lists"), "-o", "Dir::Cache=" + filepath.Join(dir, "cache")}
	_, err := run(ctx, a.dir, nil, "apt-get", append(a.options, "-q", "update")...)
	return err
}

var concreteKernel = regexp.MustCompile(`(linux-(?:image|modules)-(?:unsigned-)?[0-9][A-Za-z0-9.+~-]*)(?: \(= ([^)]+)\))?`)

// resolveKernel follows a meta package to the concrete one behind it.
func (a *apt) resolveKernel(ctx context.Context, host osRelease) (aptPackage, error) {
	names := metaPackages[host.family()+"/"+runtime.GOARCH]
	if names == nil {
		return aptPackage{}, fmt.Errorf("no kernel package is known for %s on %s; give one with --kernel and --modules", host.ID, runtime.GOARCH)
	}
	var errs []error
	for _, meta := range names {
		fields, err := a.show(ctx, meta)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		m := concreteKernel.FindStringSubmatch(fields["Depends"])
		if m == nil || !strings.HasPrefix(m[1], "linux-image-") {
			errs = append(errs, fmt.Errorf("package %s depends on no kernel", meta))
			continue
		}
		concrete, err := a.show(ctx, m[1])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		pkg := aptPackage{name: m[1], version: concrete["Version"]}
		for _, dep := range concreteKernel.FindAllStringSubmatch(concrete["Depends"], -1) {
			if strings.HasPrefix(dep[1], "linux-modules-") {
				pkg.with = append(pkg.with, dep[1])
			}
		}
		return pkg, nil
	}
	return aptPackage{}, errors.Join(errs...)
}

// show reads the fields of a package's candidate version.
func (a *apt) show(ctx context.Context, name string) (map[string]string, error) {
	out, err := run(ctx, a.dir, nil, "apt-cache", append(a.options, "show", "--no-all-versions", name)...)
	if err != nil {
		return nil, fmt.Errorf("looking up package %s: %w", name, err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(out)) {
		line = strings.TrimRight(line, "\n")
		if line == "" && len(fields) > 0 {
			break
		}
		if key, value, ok := strings.Cut(line, ": "); ok && !strings.HasPrefix(line, " ") {
			fields[key] = value
		}
	}
	if fields["Version"] == "" {
		return nil, fmt.Errorf("looking up package %s: apt knows no version of it", name)
	}
	return fields, nil
}

func (a *apt) download(ctx context.Context, pkg aptPackage, p Progress) error {
	p.Note(fmt.Sprintf("downloading %s %s", pkg.name, pkg.version))
	args := append(append([]string{}, a.options...), "-q", "download", pkg.name+"="+pkg.version)
	_, err := run(ctx, a.dir, nil, "apt-get", append(args, pkg.with...)...)
	return err
}
