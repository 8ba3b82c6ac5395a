package images

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// The kinds of sources.
const (
	KindPackages      = "packages"
	KindOCI           = "oci"
	KindOCILayout     = "oci-layout"
	KindDockerArchive = "docker-archive"
	KindDir           = "dir"
	KindTar           = "tar"
)

// Source says where a root file system comes from. The zero value is the default package list.
type Source struct {
	Kind     string
	Ref      string   // image reference, DIR[:TAG], file or directory
	Packages []string // of KindPackages; empty means DefaultPackages
	Suite    string   // of KindPackages; empty means the machine's own release
}

// DefaultPackages make up the default image, beside what the distribution itself calls essential.
var DefaultPackages = []string{
	"bash", "coreutils", "git", "curl", "ca-certificates", "openssh-client", "python3", "python3-venv", "python3-pip",
	"ripgrep", "jq", "less", "procps", "file", "patch", "xz-utils", "bzip2", "unzip", "iproute2", "netbase",
}

// ParseSource reads a source as written on the command line: "packages", or KIND:REF.
func ParseSource(text string) (Source, error) {
	if text == "" || text == KindPackages {
		return Source{Kind: KindPackages}, nil
	}
	kind, ref, ok := strings.Cut(text, ":")
	known := []string{KindOCI, KindOCILayout, KindDockerArchive, KindDir, KindTar}
	if !ok || !slices.Contains(known, kind) {
		return Source{}, fmt.Errorf("source %q: want packages, %s:REF (oci), or KIND:PATH with one of %s",
			text, KindOCI, strings.Join(known[1:], ", "))
	}
	if ref == "" {
		return Source{}, fmt.Errorf("source %q: what comes after the colon is missing", text)
	}
	return Source{Kind: kind, Ref: strings.TrimPrefix(ref, "//")}, nil
}

// String is the form that ParseSource reads.
func (s Source) String() string {
	if s.Kind == "" || s.Kind == KindPackages {
		return KindPackages
	}
	return s.Kind + ":" + s.Ref
}

// Spec says what image to build.
type Spec struct {
	Name   string // name of the result; none when empty
	Source Source
	Kernel KernelSource
	Arch   string // as in GOARCH; empty means this machine's
	Force  bool   // build even if the same spec was built before
	Limits Limits
	// Version is the gondolin that builds, for the manifest.
	Version string
}

// normalize fills in what was left open and refuses what makes no sense.
func (s *Spec) normalize() error {
	if s.Name != "" {
		if err := checkTag(s.Name); err != nil {
			return err
		}
	}
	if s.Arch == "" {
		s.Arch = runtime.GOARCH
	}
	if s.Arch != "amd64" && s.Arch != "arm64" {
		return fmt.Errorf("architecture %q: want amd64 or arm64", s.Arch)
	}
	if err := s.Kernel.validate(); err != nil {
		return err
	}
	src := &s.Source
	switch src.Kind {
	case "", KindPackages:
		src.Kind = KindPackages
		if len(src.Packages) == 0 {
			src.Packages = DefaultPackages
		}
		for _, p := range src.Packages {
			if !packageName.MatchString(p) {
				return fmt.Errorf("package name %q: want letters, digits and + - . only", p)
			}
		}
		src.Packages = slices.Sorted(slices.Values(src.Packages))
		src.Packages = slices.Compact(src.Packages)
		return nil
	case KindOCI, KindOCILayout, KindDockerArchive, KindDir, KindTar:
	default:
		return fmt.Errorf("source kind %q is not known", src.Kind)
	}
	if len(src.Packages) > 0 || src.Suite != "" {
		return fmt.Errorf("packages and suite go with the source %q, not with %s", KindPackages, src)
	}
	if src.Ref == "" {
		return errors.New("source " + src.Kind + ": the reference is missing")
	}
	if src.Kind == KindOCI {
		return nil
	}
	abs, err := filepath.Abs(src.Ref)
	if err != nil {
		return fmt.Errorf("source %s: %w", src, err)
	}
	src.Ref = abs
	if src.Kind == KindOCILayout {
		return nil // a tag may follow; looked at when it is opened
	}
	what := "file"
	if src.Kind == KindDir {
		what = "directory"
	}
	info, err := os.Stat(abs)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("source %s: there is no such %s", src, what)
	case err != nil:
		return fmt.Errorf("source %s: %w", src, err)
	case (src.Kind == KindDir) != info.IsDir():
		return fmt.Errorf("source %s: a %s source wants a %s", src, src.Kind, what)
	}
	return nil
}
