package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// openLayer hands out one layer, compressed or not. What it holds is checked against the image's
// configuration while it is unpacked.
type openLayer func(ctx context.Context, layer v1.Layer) (io.ReadCloser, error)

// openRegistry asks the registry for the image's manifest.
func (b *builder) openRegistry(ctx context.Context) (*openedSource, error) {
	text := b.spec.Source.Ref
	ref, err := name.ParseReference(text)
	if err != nil {
		return nil, badReference(text)
	}
	b.progress.Note("asking " + ref.Context().RegistryStr() + " for " + ref.Identifier())
	desc, err := remote.Get(ref, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: b.arch}))
	if err != nil {
		return nil, fmt.Errorf("asking the registry for %s: %w", ref, err)
	}
	img, err := desc.Image()
	if err != nil {
		return nil, fmt.Errorf("%s for linux/%s: %w", ref, b.arch, err)
	}
	fetch := &fetcher{store: b.store, repo: ref.Context(), progress: b.progress}
	return b.ociSource(KindOCI, ref.String(), img, fetch.open)
}

// badReference puts the rules in the place of the library's words, which repeat the reference or speak
// of its own functions.
func badReference(text string) error {
	if strings.Contains(text, "://") {
		return fmt.Errorf("%q is an address and no image reference: leave out what comes before the host, as in %s", text, "oci:HOST/NAME:TAG")
	}
	return fmt.Errorf("%q is no image reference: write NAME, NAME:TAG or HOST/NAME:TAG (or @sha256:DIGEST in the place of the tag), with a name in lower case", text)
}

func (b *builder) openLayout() (*openedSource, error) {
	dir, tag := b.spec.Source.Ref, ""
	// The tag comes after the last colon, unless the whole is a directory itself.
	if _, err := os.Stat(dir); err != nil {
		if i := strings.LastIndexByte(dir, ':'); i > strings.LastIndexByte(dir, '/') {
			dir, tag = dir[:i], dir[i+1:]
		}
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = errors.New("it has no index.json")
		}
		return nil, fmt.Errorf("%s is no OCI layout directory: %w", dir, err)
	}
	img, err := pickImage(index, tag, b.arch, 0)
	if err != nil {
		return nil, fmt.Errorf("OCI layout %s: %w", dir, err)
	}
	return b.ociSource(KindOCILayout, b.spec.Source.Ref, img, compressedLayer)
}

// pickImage finds the image for an architecture in an index, which may hold further indexes.
func pickImage(index v1.ImageIndex, tag, arch string, depth int) (v1.Image, error) {
	if depth > 4 {
		return nil, errors.New("indexes are nested too deeply")
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("reading its index: %w", err)
	}
	var fits []v1.Descriptor
	for _, d := range m.Manifests {
		if tag != "" && d.Annotations["org.opencontainers.image.ref.name"] != tag {
			continue
		}
		if p := d.Platform; p != nil && (p.OS != "linux" || p.Architecture != arch) && d.MediaType.IsImage() {
			continue
		}
		fits = append(fits, d)
	}
	what := "linux/" + arch
	if tag != "" {
		what = fmt.Sprintf("tag %q for %s", tag, what)
	}
	switch {
	case len(fits) == 0:
		return nil, fmt.Errorf("it has no image with %s", what)
	case len(fits) > 1:
		return nil, fmt.Errorf("it has %d images that fit %s; name one with DIR:TAG", len(fits), what)
	}
	d := fits[0]
	if d.MediaType.IsIndex() {
		inner, err := index.ImageIndex(d.Digest)
		if err != nil {
			return nil, fmt.Errorf("reading index %s: %w", d.Digest, err)
		}
		return pickImage(inner, "", arch, depth+1)
	}
	return index.Image(d.Digest)
}

func (b *builder) openArchive() (*openedSource, error) {
	file := b.spec.Source.Ref
	img, err := tarball.ImageFromPath(file, nil)
	if err != nil {
		return nil, fmt.Errorf("%s is no image archive as `docker save` writes it (a plain root file system is tar:FILE): %w", file, err)
	}
	return b.ociSource(KindDockerArchive, file, img, func(_ context.Context, l v1.Layer) (io.ReadCloser, error) {
		return l.Uncompressed()
	})
}

func compressedLayer(_ context.Context, l v1.Layer) (io.ReadCloser, error) { return l.Compressed() }

// ociSource reads and checks the small parts of an image: manifest and configuration.
func (b *builder) ociSource(kind, ref string, img v1.Image, open openLayer) (*openedSource, error) {
	digest, config, err := readConfig(kind, img)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	if config.Architecture != "" && config.Architecture != b.arch {
		return nil, fmt.Errorf("%s is for %s, and this build is for %s", ref, config.Architecture, b.arch)
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, fmt.Errorf("reading the layers of %s: %w", ref, err)
	}
	if len(layers) != len(config.RootFS.DiffIDs) {
		return nil, fmt.Errorf("%s has %d layers and names %d in its configuration", ref, len(layers), len(config.RootFS.DiffIDs))
	}
	c := config.Config
	b.config = &ImageConfig{Env: validUTF8(c.Env), WorkingDir: strings.ToValidUTF8(c.WorkingDir, "?"),
		User: strings.ToValidUTF8(c.User, "?"), Entrypoint: validUTF8(c.Entrypoint), Cmd: validUTF8(c.Cmd)}
	info := SourceInfo{Kind: kind, Ref: stripCredentials(ref), Digest: digest.String()}
	for _, d := range config.RootFS.DiffIDs {
		info.Layers = append(info.Layers, d.String())
	}
	return &openedSource{identity: KindOCI + " " + digest.String(), cacheable: true,
		apply: func(ctx context.Context, t *tree) (SourceInfo, error) {
			for i, l := range layers {
				if err := b.applyOCILayer(ctx, t, l, config.RootFS.DiffIDs[i], open); err != nil {
					return info, err
				}
			}
			return info, nil
		}}, nil
}

// readConfig returns the image's configuration and what identifies the image: the digest of its manifest,
// or of its configuration for the archives of `docker save`, which come without a manifest.
func readConfig(kind string, img v1.Image) (v1.Hash, *v1.ConfigFile, error) {
	raw, err := img.RawConfigFile()
	if err != nil {
		return v1.Hash{}, nil, fmt.Errorf("reading its configuration: %w", err)
	}
	got, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return v1.Hash{}, nil, fmt.Errorf("reading its configuration: %w", err)
	}
	digest := got
	if kind != KindDockerArchive {
		manifest, err := img.Manifest()
		if err != nil {
			return v1.Hash{}, nil, fmt.Errorf("reading its manifest: %w", err)
		}
		if got != manifest.Config.Digest {
			return v1.Hash{}, nil, fmt.Errorf("its configuration is damaged: expected %s, got %s", manifest.Config.Digest, got)
		}
		if digest, err = img.Digest(); err != nil {
			return v1.Hash{}, nil, fmt.Errorf("reading its manifest: %w", err)
		}
	}
	config, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return v1.Hash{}, nil, fmt.Errorf("reading its configuration: %w", err)
	}
	return digest, config, nil
}

// validUTF8 keeps what JSON would alter from giving a manifest that does not read back as it was.
func validUTF8(list []string) []string {
	var out []string
	for _, s := range list {
		out = append(out, strings.ToValidUTF8(s, "?"))
	}
	return out
}

// applyOCILayer lays one layer over the tree and checks that its contents are those that the image's
// configuration promised.
func (b *builder) applyOCILayer(ctx context.Context, t *tree, l v1.Layer, diffID v1.Hash, open openLayer) error {
	stream, err := open(ctx, l)
	if err != nil {
		return err
	}
	defer stream.Close()
	r, done, err := decompress(ctx, stream)
	if err != nil {
		return fmt.Errorf("layer %s: unpacking: %w", diffID, err)
	}
	task := b.progress.Start(fmt.Sprintf("unpacking layer %.12s", diffID.Hex), 0)
	defer task.Done()
	sum, err := v1.Hasher(diffID.Algorithm)
	if err != nil {
		_ = done()
		return fmt.Errorf("layer %s: %w", diffID, err)
	}
	aerr := t.applyLayer(ctx, "layer "+diffID.String(), &taskReader{ctx: ctx, r: io.TeeReader(r, sum), task: task}, true)
	if err := errors.Join(aerr, done()); err != nil {
		return err
	}
	if got := fmt.Sprintf("%x", sum.Sum(nil)); got != diffID.Hex {
		return fmt.Errorf("layer %s is damaged: its contents have the digest %s:%s", diffID, diffID.Algorithm, got)
	}
	return nil
}
