package images

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"
)

// FormatVersion is the layout of an image directory and its manifest. A gondolin that meets another
// version says so instead of guessing.
const FormatVersion = 1

// The files of an image.
const (
	KernelFile   = "kernel"       // vmlinux with a PVH note, or the distribution's bzImage
	ModulesFile  = "modules.cpio" // initramfs without /init
	RootFile     = "root.ext4"    // read-only root disk
	ManifestFile = "manifest.json"
	stampFile    = "check.stamp"
)

// Manifest describes an image completely. ID is the digest over everything in it that says what the
// image is, and nothing that says when or by whom it was made.
type Manifest struct {
	Format          int          `json:"format"`
	ID              string       `json:"id"`
	Arch            string       `json:"arch"` // as in GOARCH
	Source          SourceInfo   `json:"source"`
	Kernel          KernelInfo   `json:"kernel"`
	Root            RootInfo     `json:"root"`
	Files           []FileInfo   `json:"files"`
	Config          *ImageConfig `json:"config,omitempty"`
	Created         time.Time    `json:"created"`
	GondolinVersion string       `json:"gondolin_version,omitempty"`
}

// SourceInfo says where the root file system came from.
type SourceInfo struct {
	Kind     string   `json:"kind"`               // packages, oci, oci-layout, docker-archive, dir, tar
	Ref      string   `json:"ref,omitempty"`      // as the user wrote it
	Digest   string   `json:"digest,omitempty"`   // OCI manifest digest, or of the archive
	Suite    string   `json:"suite,omitempty"`    // distribution release, for packages
	Packages []string `json:"packages,omitempty"` // as asked for
	Layers   []string `json:"layers,omitempty"`   // diff ids, lowest first
}

// KernelInfo says which kernel boots the image.
type KernelInfo struct {
	Version        string   `json:"version"`                   // uname -r
	Package        string   `json:"package,omitempty"`         // distribution package
	PackageVersion string   `json:"package_version,omitempty"` // its version
	Format         string   `json:"format"`                    // "vmlinux" (PVH) or "bzImage"
	Modules        []string `json:"modules"`                   // in load order
}

// RootInfo describes the root disk.
type RootInfo struct {
	Type   string `json:"type"` // ext4
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// FileInfo is one file of the image directory.
type FileInfo struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// ImageConfig holds the defaults that an OCI image brings along.
type ImageConfig struct {
	Env        []string `json:"env,omitempty"`
	WorkingDir string   `json:"working_dir,omitempty"`
	User       string   `json:"user,omitempty"`
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
}

// computeID is the image id that the manifest's contents ask for.
func (m *Manifest) computeID() string {
	canonical := *m
	canonical.ID, canonical.Created, canonical.GondolinVersion = "", time.Time{}, ""
	canonical.Source = SourceInfo{} // two ways to the same bytes are the same image
	b, err := json.Marshal(canonical)
	if err != nil {
		return "" // cannot happen: the struct holds only marshalable types; the caller compares with a real id
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

var hexDigest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// maxManifest bounds what is read of a manifest.
const maxManifest = 4 << 20

// ParseManifest reads a manifest strictly: unknown fields, another format version, trailing data and an
// id that does not fit the contents are errors.
func ParseManifest(b []byte) (*Manifest, error) {
	if len(b) > maxManifest {
		return nil, fmt.Errorf("manifest of %d bytes is too big", len(b))
	}
	var probe struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(b, &probe); err != nil { // also on data after its end
		return nil, fmt.Errorf("not a manifest: %w", err)
	}
	if probe.Format != FormatVersion {
		return nil, fmt.Errorf("image format %d, this gondolin reads %d; rebuild it with `gondolin-mcp images build --force`",
			probe.Format, FormatVersion)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var m Manifest
	if err := dec.Decode(&m); err != nil {
		return nil, fmt.Errorf("reading manifest: %w", err)
	}
	return &m, m.validate()
}

func (m *Manifest) validate() error {
	if !hexDigest.MatchString(m.ID) {
		return fmt.Errorf("manifest: id %q is not a sha256", m.ID)
	}
	found := map[string]bool{}
	for _, f := range m.Files {
		switch {
		case f.Name != KernelFile && f.Name != ModulesFile && f.Name != RootFile:
			return fmt.Errorf("manifest: unknown file %q", f.Name)
		case found[f.Name]:
			return fmt.Errorf("manifest: file %q appears twice", f.Name)
		case f.Size < 0 || !hexDigest.MatchString(f.SHA256):
			return fmt.Errorf("manifest: file %q has no valid size and digest", f.Name)
		}
		found[f.Name] = true
	}
	for _, name := range []string{KernelFile, ModulesFile, RootFile} {
		if !found[name] {
			return fmt.Errorf("manifest: file %q is missing", name)
		}
	}
	if root, _ := m.file(RootFile); root.SHA256 != m.Root.SHA256 || root.Size != m.Root.Size || m.Root.Type != "ext4" {
		return errors.New("manifest: the root disk's description contradicts itself")
	}
	if want := m.computeID(); want != m.ID {
		return fmt.Errorf("manifest: id %.12s does not fit the contents (%.12s): it was altered", m.ID, want)
	}
	return nil
}

func (m *Manifest) file(name string) (FileInfo, bool) {
	for _, f := range m.Files {
		if f.Name == name {
			return f, true
		}
	}
	return FileInfo{}, false
}

// TotalSize is what the image's files take.
func (m *Manifest) TotalSize() int64 {
	var n int64
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}
