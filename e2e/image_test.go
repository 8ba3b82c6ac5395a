package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/images"
	"github.com/gondolin-go/gondolin/sandbox"
)

// busyboxImage is an image whose only file is a static busybox, with links to it
// and a name.
func busyboxImage(t *testing.T, name string) v1.Image {
	t.Helper()
	program, err := os.ReadFile("../bin/.busybox/bin/busybox")
	require.NoError(t, err, "fetch it with `make busybox`")
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	require.NoError(t, tw.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(program)), Typeflag: tar.TypeReg}))
	_, err = tw.Write(program)
	require.NoError(t, err)
	for _, applet := range []string{"sh", "ls", "cat", "id", "echo", "mount", "df"} {
		require.NoError(t, tw.WriteHeader(&tar.Header{Name: "bin/" + applet, Linkname: "busybox", Typeflag: tar.TypeSymlink}))
	}
	require.NoError(t, tw.WriteHeader(&tar.Header{Name: "etc/" + name, Typeflag: tar.TypeReg}))
	require.NoError(t, tw.Close())
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer(layer.Bytes(), types.DockerUncompressedLayer))
	require.NoError(t, err)
	config, err := img.ConfigFile()
	require.NoError(t, err)
	config.Architecture, config.OS = "amd64", "linux"
	config.Config.Env = []string{"FROM_IMAGE=yes"}
	img, err = mutate.ConfigFile(img, config)
	require.NoError(t, err)
	return img
}

// buildBusybox pushes a busybox image to a registry and builds a guest image
// from it, with the default image's kernel.
func buildBusybox(t *testing.T, tag string) *images.Image {
	t.Helper()
	srv := httptest.NewServer(registry.New())
	t.Cleanup(srv.Close)
	ref, err := name.ParseReference(strings.TrimPrefix(srv.URL, "http://") + "/tiny/busybox:1")
	require.NoError(t, err)
	require.NoError(t, remote.Write(ref, busyboxImage(t, tag)))
	store, err := images.OpenStore(filepath.Join(cacheDir(), "images"))
	require.NoError(t, err)
	img, err := images.Build(t.Context(), store, images.Spec{
		Name: tag, Source: images.Source{Kind: images.KindOCI, Ref: ref.String()},
		Kernel: images.KernelSource{Image: "default"},
	}, nil)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := store.Remove(context.WithoutCancel(t.Context()), img.ID())
		require.NoError(t, err)
	})
	return img
}

func TestDamagedImageIsRefusedBeforeItBootsAndNamed(t *testing.T) {
	img := buildBusybox(t, "e2e-damaged")
	path := img.Path(images.RootFile)
	require.NoError(t, os.Chmod(path, 0o644))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("flipped"), 300<<10)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	s := startServer(t, nil, "--image", "e2e-damaged")
	res := s.call(t, "exec", object{"command": "true"}, nil)
	require.True(t, res.IsError)
	require.Contains(t, text(res), images.RootFile)
	require.Contains(t, text(res), "images build")
}

// The root file system needs nothing of ours inside, and no container engine
// takes part.
func TestBusyboxImageFromARegistryBootsAndAnswers(t *testing.T) {
	img := buildBusybox(t, "e2e-busybox")
	for _, root := range []sandbox.RootMode{sandbox.RootCOW, sandbox.RootMemory, sandbox.RootReadOnly} {
		t.Run(string(root), func(t *testing.T) {
			s := newSession(t, newHost(t, sandbox.HostOptions{}), sandbox.Options{Image: bootable(img), Root: root})
			require.Equal(t, "uid=0 gid=0", sh(t, s, "id"))
			out, exit := try(t, s, sandbox.Command{Shell: "echo kept > /new-file; cat /new-file"})
			if root == sandbox.RootReadOnly {
				require.NotZero(t, exit.Code)
				require.Contains(t, out, "Read-only file system")
			} else {
				require.Equal(t, "kept\n", out)
			}
			require.Equal(t, "temporary", sh(t, s, "echo temporary > /tmp/x; cat /tmp/x"))
		})
	}
}

// The archive is what the C library looks into first: a program opens one file in place of thirty.
func TestTheDefaultImageHasItsLocaleInTheArchive(t *testing.T) {
	s := newSession(t, newHost(t, sandbox.HostOptions{}), small)
	require.Equal(t, "UTF-8", sh(t, s, "rm -r /usr/lib/locale/C.utf8 && locale charmap"))
	require.Equal(t, "3", sh(t, s, "printf 'añb' | wc -m"))
}

func TestWritesOfOneSessionAreNotSeenByAnother(t *testing.T) {
	h := newHost(t, sandbox.HostOptions{})
	a := newSession(t, h, sandbox.Options{})
	sh(t, a, "echo changed > /etc/motd; rm /usr/bin/jq")
	b := newSession(t, h, sandbox.Options{})
	require.Equal(t, "", sh(t, b, "cat /etc/motd 2>/dev/null | grep changed || true"))
	require.Equal(t, "/usr/bin/jq", sh(t, b, "which jq"))
}

func TestEverySessionIsAMachineOfItsOwn(t *testing.T) {
	h := newHost(t, sandbox.HostOptions{})
	const facts = "cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1; hostname; date +%s"
	a := strings.Split(sh(t, newSession(t, h, sandbox.Options{Hostname: "first"}), facts), "\n")
	b := strings.Split(sh(t, newSession(t, h, sandbox.Options{}), facts), "\n")
	require.Len(t, a[0], 32)
	require.NotEqual(t, a[0], b[0])
	require.NotEqual(t, a[1], b[1])
	require.Equal(t, "first", a[2])
	require.Regexp(t, "^gondolin-[a-z2-7]{10}$", b[2])
}
