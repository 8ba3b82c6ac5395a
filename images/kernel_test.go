package images

import (
	"bytes"
	"context"
	"encoding/binary"
	"testing"
	"testing/fstest"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/stretchr/testify/require"
	"github.com/u-root/u-root/pkg/cpio"
)

var pvhNote = append(binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, 4), 8), 18),
	"Xen\x00\x00\x00\x00\x01\x00\x00\x00\x00"...)

// bzImage wraps a payload as the x86 boot protocol does.
func bzImage(payload []byte) []byte {
	const sects = 3
	b := make([]byte, (sects+1)*512, (sects+1)*512+64+len(payload))
	b[hdrSetupSects] = sects
	copy(b[hdrMagic:], "HdrS")
	binary.LittleEndian.PutUint32(b[hdrPayloadOffset:], 64)
	binary.LittleEndian.PutUint32(b[hdrPayloadLength:], uint32(len(payload)))
	return append(append(b, make([]byte, 64)...), payload...)
}

func TestKernelForBoot(t *testing.T) {
	vmlinux := tinyELF(".text", bytes.Repeat([]byte("code"), 1000), pvhNote)
	size := binary.LittleEndian.AppendUint32(nil, uint32(len(vmlinux)))
	var lz, gz, zs bytes.Buffer
	l := lz4.NewWriter(&lz)
	require.NoError(t, l.Apply(lz4.LegacyOption(true)))
	_, _ = l.Write(vmlinux)
	require.NoError(t, l.Close())
	g := gzip.NewWriter(&gz)
	_, _ = g.Write(vmlinux)
	require.NoError(t, g.Close())
	z, err := zstd.NewWriter(&zs)
	require.NoError(t, err)
	_, _ = z.Write(vmlinux)
	require.NoError(t, z.Close())
	for name, payload := range map[string][]byte{"lz4": append(lz.Bytes(), size...), "gzip": gz.Bytes(), "zstd": append(zs.Bytes(), size...)} {
		got, format, why := kernelForBoot(context.Background(), bzImage(payload))
		require.Empty(t, why, name)
		require.Equal(t, "vmlinux", format, name)
		require.True(t, bytes.HasPrefix(vmlinux[64:], got[64:]), "%s: everything but section headers stays", name)
		require.NoError(t, checkPVH(got))
	}
	for why, image := range map[string][]byte{
		"no PVH entry":     bzImage(gzipOf(t, tinyELF(".text", nil, nil))),
		"holds no ELF":     bzImage(gzipOf(t, []byte("something else altogether"))),
		"not supported":    bzImage([]byte("????????\x10\x00\x00\x00")),
		"no x86 bzImage":   []byte("MZ"),
		"outside the file": bzImage(nil),
		"unpack":           bzImage(append([]byte{0x1f, 0x8b, 8, 0}, 0, 0, 0, 1, 0, 0)),
	} {
		got, format, reason := kernelForBoot(context.Background(), image)
		require.Equal(t, "bzImage", format)
		require.Equal(t, image, got, "kept as it is")
		require.Contains(t, reason, why)
	}
}

func gzipOf(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes()
}

func mod(info string) []byte { return tinyELF(".modinfo", []byte(info), nil) }

func TestModules(t *testing.T) {
	fsys := fstest.MapFS{
		"modules.builtin":               {Data: []byte("kernel/fs/ext4/ext4.ko\nkernel/net/net-core.ko\n")},
		"kernel/drivers/virtio.ko":      {Data: mod("depends=virtio_ring\x00")},
		"kernel/drivers/virtio_ring.ko": {Data: mod("depends=\x00")},
		"kernel/virtio-net.ko.gz":       {Data: gzipOf(t, mod("depends=virtio,net_core\x00softdep=pre: nice absent post: later\x00"))},
		"kernel/nice.ko":                {Data: mod("license=GPL\x00")},
	}
	set, err := openModules(fsys)
	require.NoError(t, err)
	list, err := set.resolve(context.Background(), []wantedModule{{"virtio_net", true}, {"virtio", true}, {"ext4", true}, {"erofs", false}})
	require.NoError(t, err)
	var order []string
	for _, m := range list {
		order = append(order, m.name)
	}
	require.Equal(t, []string{"nice", "virtio_ring", "virtio", "virtio_net"}, order)
	_, err = set.resolve(context.Background(), []wantedModule{{"fuse", true}})
	require.ErrorContains(t, err, "no module fuse")

	var out bytes.Buffer
	require.NoError(t, writeModules(&out, list))
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(out.Bytes())))
	require.NoError(t, err)
	last := records[len(records)-1]
	require.Equal(t, "lib/gondolin/modules/order", last.Name)
	body := make([]byte, last.FileSize)
	_, _ = last.ReadAt(body, 0)
	require.Equal(t, "/lib/gondolin/modules/00-nice.ko\n/lib/gondolin/modules/01-virtio_ring.ko\n"+
		"/lib/gondolin/modules/02-virtio.ko\n/lib/gondolin/modules/03-virtio_net.ko\n", string(body))
	require.Zero(t, out.Len()%4, "another archive may follow")
}

func TestKernelCacheServesOffline(t *testing.T) {
	s := testStore(t)
	work, err := s.newStaging(context.Background(), "kernel")
	require.NoError(t, err)
	defer work.close()
	set := fstest.MapFS{"modules.builtin": {Data: []byte("a/virtio_pci.ko\na/virtio_blk.ko\na/virtio_console.ko\na/ext4.ko\na/overlay.ko\na/virtio_net.ko\na/fuse.ko\na/virtio_balloon.ko\n")}}
	k, err := prepareKernel(context.Background(), work.dir, []byte("kernel"), set, KernelInfo{Version: "6.0", Package: "p", PackageVersion: "1:2~3"}, Quiet)
	require.NoError(t, err)
	require.NoError(t, s.cacheKernel(cacheKey("p", "1:2~3"), "amd64", k))
	require.Nil(t, s.newestKernel("arm64"))
	got := s.newestKernel("amd64")
	require.NotNil(t, got)
	require.True(t, got.intact(context.Background()))
	require.Equal(t, "6.0", got.info.Version)
	flip(t, got.dir+"/"+KernelFile, 0)
	require.False(t, got.intact(context.Background()))
}
