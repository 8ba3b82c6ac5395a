package images

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// openedSource is a source whose state is known but whose contents were not read yet.
type openedSource struct {
	identity  string // equal identities give equal contents
	cacheable bool   // false when the contents may change behind an unchanged identity
	apply     func(ctx context.Context, t *tree) (SourceInfo, error)
}

// openSource finds out what the source is now; for a registry this asks for the manifest.
func (b *builder) openSource(ctx context.Context) (*openedSource, error) {
	src := b.spec.Source
	switch src.Kind {
	case KindPackages:
		raw, err := json.Marshal([]any{src.Kind, packagesRecipe, src.Suite, b.os.Codename, src.Packages})
		if err != nil {
			return nil, fmt.Errorf("describing the packages: %w", err)
		}
		return &openedSource{identity: string(raw), cacheable: true, apply: b.applyPackages}, nil
	case KindDir:
		return &openedSource{identity: src.String(), apply: b.applyDir}, nil
	case KindTar:
		st, err := stampOf(src.Ref)
		if err != nil {
			return nil, fmt.Errorf("opening the archive: %w", err)
		}
		return &openedSource{identity: fmt.Sprint(src, st), cacheable: true, apply: b.applyTar}, nil
	case KindOCI:
		return b.openRegistry(ctx)
	case KindOCILayout:
		return b.openLayout()
	default:
		return b.openArchive()
	}
}

func (b *builder) applyTar(ctx context.Context, t *tree) (SourceInfo, error) {
	ref := b.spec.Source.Ref
	info := SourceInfo{Kind: KindTar, Ref: ref}
	f, err := os.Open(ref)
	if err != nil {
		return info, fmt.Errorf("opening the archive: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return info, fmt.Errorf("opening the archive: %w", err)
	}
	task := b.progress.Start("unpacking archive", st.Size())
	defer task.Done()
	r, done, err := decompress(ctx, &taskReader{ctx: ctx, r: f, task: task})
	if err != nil {
		return info, fmt.Errorf("unpacking %s: %w", ref, err)
	}
	if err := t.applyLayer(ctx, "archive "+ref, r, false); err != nil {
		_ = done()
		return info, err
	}
	if err := done(); err != nil {
		return info, err
	}
	if len(t.root.children) == 0 {
		return info, fmt.Errorf("archive %s is empty", ref)
	}
	return info, nil
}

var xzMagic = []byte{0xfd, '7', 'z', 'X', 'Z', 0}

// decompress looks at the first bytes of a stream and unpacks what they announce; anything else passes
// as it is. done ends whatever was started for it.
func decompress(ctx context.Context, r io.Reader) (out io.Reader, done func() error, err error) {
	head := make([]byte, 6)
	n, err := io.ReadFull(r, head)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return nil, nil, err
	}
	whole := io.MultiReader(bytes.NewReader(head[:n]), r)
	nothing := func() error { return nil }
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(whole)
		return z, nothing, err
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(whole, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<30), zstd.WithDecoderMaxWindow(256<<20))
		if err != nil {
			return nil, nil, err
		}
		return z, func() error { z.Close(); return nil }, nil
	case bytes.HasPrefix(head, xzMagic):
		return decompressXZ(ctx, whole)
	}
	return whole, nothing, nil
}

// decompressXZ streams through the program xz: Go's own libraries have no well-kept reader for it.
func decompressXZ(ctx context.Context, r io.Reader) (io.Reader, func() error, error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd, err := command(ctx, "", "xz", "-dc")
	if err != nil {
		cancel()
		return nil, nil, err
	}
	var said tail
	cmd.Stdin, cmd.Stderr = r, &said
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, nil, fmt.Errorf("running xz: %w", err)
	}
	read := &eofReader{r: out}
	return read, func() error {
		if !read.eof {
			cancel() // given up half way
			_ = reap(ctx, cmd)
			return nil
		}
		defer cancel()
		if err := reap(ctx, cmd); err != nil {
			return toolError(ctx, "xz", nil, err, &said)
		}
		return nil
	}, nil
}

type eofReader struct {
	r   io.Reader
	eof bool
}

func (e *eofReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	e.eof = e.eof || err == io.EOF
	return n, err
}
