package images

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"
)

// testRegistry is a real registry whose blob answers can be tampered with.
type testRegistry struct {
	host string
	mu   sync.Mutex
	// blob, when set, answers GETs of blobs instead of the registry; it calls next for the real answer.
	blob   func(w http.ResponseWriter, r *http.Request, next http.Handler)
	ranges []string
}

func newRegistry(t *testing.T) *testRegistry {
	t.Helper()
	reg := &testRegistry{}
	next := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reg.mu.Lock()
		blob := reg.blob
		isBlob := r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
		if isBlob {
			reg.ranges = append(reg.ranges, r.Header.Get("Range"))
		}
		reg.mu.Unlock()
		if isBlob && blob != nil {
			blob(w, r, next)
			return
		}
		next.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	reg.host = strings.TrimPrefix(srv.URL, "http://")
	return reg
}

func (r *testRegistry) push(t *testing.T, img v1.Image) string {
	t.Helper()
	ref, err := name.ParseReference(r.host + "/test/image:latest")
	require.NoError(t, err)
	require.NoError(t, remote.Write(ref, img))
	return ref.String()
}

// cutter passes n bytes of the body and then breaks the connection.
type cutter struct {
	http.ResponseWriter
	left int64
	sent *atomic.Int64
}

func (c *cutter) Write(p []byte) (int, error) {
	if c.left >= 0 && int64(len(p)) > c.left {
		n, _ := c.ResponseWriter.Write(p[:c.left])
		c.sent.Add(int64(n))
		c.left = 0
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	n, err := c.ResponseWriter.Write(p)
	c.sent.Add(int64(n))
	if c.left >= 0 {
		c.left -= int64(n)
	}
	return n, err
}

// noise does not compress.
func noise(n int) string {
	var b bytes.Buffer
	r := rand.New(rand.NewPCG(1, 2))
	for b.Len() < n {
		fmt.Fprintf(&b, "%x", r.Uint64())
	}
	return b.String()[:n]
}

func ociSpec(t *testing.T, source string) Spec {
	t.Helper()
	src, err := ParseSource(source)
	require.NoError(t, err)
	return Spec{Name: "oci", Arch: "amd64", Source: src, Kernel: testKernel(t)}
}

func TestRegistrySource(t *testing.T) {
	reg, s := newRegistry(t), testStore(t)
	ref := reg.push(t, ociImage(t, archive(t, fileEntry("bin/busybox", "bb"), linkEntry("bin/sh", "bin/busybox"), fileEntry("etc/old", "1")),
		archive(t, fileEntry("etc/.wh.old", ""), fileEntry("etc/new", "2"))))
	img, err := Build(context.Background(), s, ociSpec(t, "oci:"+ref), nil)
	require.NoError(t, err)
	fsck(t, img)
	require.Equal(t, "bb", debugfs(t, img, "cat /bin/sh"))
	require.NotContains(t, debugfs(t, img, "ls /etc"), "old")
	require.Contains(t, debugfs(t, img, "ls /etc"), "new")
	m := img.Manifest
	require.Equal(t, KindOCI, m.Source.Kind)
	require.Regexp(t, "^sha256:", m.Source.Digest)
	require.Len(t, m.Source.Layers, 2)
	require.Equal(t, "/work", m.Config.WorkingDir)
	require.Equal(t, []string{"PATH=/bin", "BAD=\ufffd"}, m.Config.Env)

	again, err := Build(context.Background(), s, ociSpec(t, "oci:"+ref), nil)
	require.NoError(t, err)
	require.Equal(t, img.ID(), again.ID())

	gone, err := s.GC(context.Background(), GCPolicy{})
	require.NoError(t, err)
	require.Len(t, gone.Removed, 2, "the two layers; the image is named: %v", gone.Removed)
}

func TestInterruptedDownloadResumes(t *testing.T) {
	reg, s := newRegistry(t), testStore(t)
	img := ociImage(t, archive(t, fileEntry("data", noise(3<<20))))
	ref := reg.push(t, img)
	layers, err := img.Layers()
	require.NoError(t, err)
	size, err := layers[0].Size()
	require.NoError(t, err)
	digest, err := layers[0].Digest()
	require.NoError(t, err)

	// The first run loses its connection after 1 MB and then finds the registry gone for good.
	const cut = 1 << 20
	var first atomic.Bool
	var sent atomic.Int64
	first.Store(true)
	reg.blob = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.HasSuffix(r.URL.Path, digest.String()) {
			next.ServeHTTP(w, r)
			return
		}
		if !first.Swap(false) {
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(&cutter{w, cut, &sent}, r)
	}
	_, err = Build(context.Background(), s, ociSpec(t, "oci:"+ref), nil)
	require.ErrorContains(t, err, "the next try goes on from there")
	require.EqualValues(t, cut, sent.Load())

	// The second run asks for the rest only, and gets no more.
	reg.mu.Lock()
	reg.ranges = nil
	sent.Store(0)
	reg.blob = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, digest.String()) {
			next.ServeHTTP(&cutter{w, -1, &sent}, r)
			return
		}
		next.ServeHTTP(w, r)
	}
	reg.mu.Unlock()
	built, err := Build(context.Background(), s, ociSpec(t, "oci:"+ref), nil)
	require.NoError(t, err)
	require.Contains(t, reg.ranges, fmt.Sprintf("bytes=%d-%d", cut, size-1))
	require.Equal(t, size-cut, sent.Load())
	require.Equal(t, noise(3<<20), debugfs(t, built, "cat /data"))
}

func TestResumeFromRegistryWithoutRanges(t *testing.T) {
	reg, s := newRegistry(t), testStore(t)
	img := ociImage(t, archive(t, fileEntry("data", noise(1<<20))))
	ref := reg.push(t, img)
	var n, sent atomic.Int64
	reg.blob = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		r.Header.Del("Range")
		if n.Add(1) == 2 { // the first is the configuration
			next.ServeHTTP(&cutter{w, 1000, &sent}, r)
			return
		}
		next.ServeHTTP(w, r)
	}
	built, err := Build(context.Background(), s, ociSpec(t, "oci:"+ref), nil)
	require.NoError(t, err)
	require.Equal(t, noise(1<<20), debugfs(t, built, "cat /data"))
}

func TestWrongBlobIsRefused(t *testing.T) {
	reg, s := newRegistry(t), testStore(t)
	img := ociImage(t, archive(t, fileEntry("data", noise(4096))))
	ref := reg.push(t, img)
	layers, err := img.Layers()
	require.NoError(t, err)
	digest, err := layers[0].Digest()
	require.NoError(t, err)
	size, err := layers[0].Size()
	require.NoError(t, err)
	reg.blob = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, digest.String()) {
			_, _ = w.Write(bytes.Repeat([]byte("x"), int(size)))
			return
		}
		next.ServeHTTP(w, r)
	}
	_, err = Build(context.Background(), s, ociSpec(t, "oci:"+ref), nil)
	require.ErrorContains(t, err, "layer "+digest.String())
	require.ErrorContains(t, err, "is damaged: expected sha256 "+digest.Hex)
	left, err := os.ReadDir(filepath.Join(s.Dir(), "blobs"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestLayoutSource(t *testing.T) {
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	require.NoError(t, err)
	one, two := ociImage(t, archive(t, fileEntry("which", "one"))), ociImage(t, archive(t, fileEntry("which", "two")))
	for tag, img := range map[string]v1.Image{"one": one, "two": two} {
		require.NoError(t, path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag})))
	}
	s := testStore(t)
	img, err := Build(context.Background(), s, ociSpec(t, "oci-layout:"+dir+":two"), nil)
	require.NoError(t, err)
	require.Equal(t, "two", debugfs(t, img, "cat /which"))
	_, err = Build(context.Background(), s, ociSpec(t, "oci-layout:"+dir), nil)
	require.ErrorContains(t, err, "name one with DIR:TAG")
	_, err = Build(context.Background(), s, ociSpec(t, "oci-layout:"+dir+":three"), nil)
	require.ErrorContains(t, err, `no image with tag "three"`)

	// Layers that are not what the configuration promises are refused, also from a directory.
	layers, err := one.Layers()
	require.NoError(t, err)
	cfg, err := one.ConfigFile()
	require.NoError(t, err)
	cfg = cfg.DeepCopy()
	cfg.RootFS.DiffIDs[0] = v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}
	lying, err := mutate.ConfigFile(one, cfg)
	require.NoError(t, err)
	require.Len(t, layers, 1)
	require.NoError(t, path.AppendImage(lying, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "lie"})))
	_, err = Build(context.Background(), s, ociSpec(t, "oci-layout:"+dir+":lie"), nil)
	require.ErrorContains(t, err, "is damaged")
}

func TestDockerArchiveSource(t *testing.T) {
	file := filepath.Join(t.TempDir(), "image.tar")
	tag, err := name.NewTag("test/image:1")
	require.NoError(t, err)
	require.NoError(t, tarball.WriteToFile(file, tag, ociImage(t, archive(t, fileEntry("which", "archive")))))
	img, err := Build(context.Background(), testStore(t), ociSpec(t, "docker-archive:"+file), nil)
	require.NoError(t, err)
	require.Equal(t, "archive", debugfs(t, img, "cat /which"))
	require.Regexp(t, "^sha256:", img.Manifest.Source.Digest)
}

func TestWrongArchitectureIsRefused(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(t, ociImage(t, archive(t, fileEntry("a", ""))))
	spec := ociSpec(t, "oci:"+ref)
	spec.Arch = "arm64"
	_, err := Build(context.Background(), testStore(t), spec, nil)
	require.ErrorContains(t, err, "arm64")
}
