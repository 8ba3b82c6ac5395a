package sandbox

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/renameio/v2"
	"github.com/u-root/u-root/pkg/cpio"

	"github.com/gondolin-go/gondolin/guest/agent"
)

// initramfsFor returns the initramfs of an image, which is made and compared once in
// the life of a host: both files are named by their content.
func (h *Host) initramfsFor(modules string) (string, error) {
	h.initramfs.Lock()
	defer h.initramfs.Unlock()
	if path := h.initramfs.made[modules]; path != "" {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	path, err := initramfs(h.opts.CacheDir, modules)
	if err == nil {
		h.initramfs.made[modules] = path
	}
	return path, err
}

// initramfs returns the path of an initramfs made of an image's modules and
// this program's guest agent, and makes it when it is not there yet. The kernel takes
// several cpio archives in a row (Documentation/driver-api/early-userspace/buffer-format.rst).
func initramfs(cacheDir, modules string) (string, error) {
	mods, err := os.Open(modules)
	if err != nil {
		return "", fmt.Errorf("reading the image's modules: %w", err)
	}
	defer mods.Close()
	binary, err := agent.Open()
	if err != nil {
		return "", err
	}
	digest, err := agent.Digest()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	size, err := io.Copy(sum, mods)
	if err != nil {
		return "", fmt.Errorf("reading the image's modules: %w", err)
	}
	fmt.Fprintln(sum, digest)
	modsPart := io.NewSectionReader(mods, 0, size)
	dir := filepath.Join(cacheDir, "initramfs")
	path := filepath.Join(dir, hex.EncodeToString(sum.Sum(nil)[:16])+".cpio")
	if holds(path, modsPart, binary.Size(), digest) {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making the cache of initramfs: %w", err)
	}
	// World-readable: QEMU runs as a user of its own.
	temp, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o644), renameio.IgnoreUmask())
	if err != nil {
		return "", fmt.Errorf("writing the initramfs: %w", err)
	}
	defer temp.Cleanup()
	if err = writeInitramfs(temp, modsPart, binary); err == nil {
		err = temp.CloseAtomicallyReplace()
	}
	if err != nil {
		return "", fmt.Errorf("writing the initramfs: %w", err)
	}
	pruneInitramfs(dir, path)
	return path, nil
}

// writeInitramfs writes what the kernel unpacks at its start: the modules' archive and one with the agent.
func writeInitramfs(to io.Writer, modules, binary *io.SectionReader) error {
	if _, err := io.Copy(to, io.NewSectionReader(modules, 0, modules.Size())); err != nil {
		return err
	}
	if _, err := to.Write(make([]byte, -modules.Size()&3)); err != nil { // archives begin at multiples of 4
		return err
	}
	w := cpio.Newc.Writer(to)
	record := cpio.Record{ReaderAt: binary, Info: cpio.Info{Name: agentName, Mode: cpio.S_IFREG | 0o755, FileSize: uint64(binary.Size())}}
	if err := w.WriteRecord(record); err != nil {
		return err
	}
	return cpio.WriteTrailer(w)
}

// agentName is the agent's in its archive; the kernel runs it as process 1.
const agentName = "init"

// holds reports whether a file is the initramfs of modules and of an agent of this size and digest,
// which is not read for that.
func holds(path string, modules *io.SectionReader, size int64, digest string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	// What stands in the agent's place is compared with itself, and by its digest.
	const header = (110 + len(agentName) + 1 + 3) &^ 3 // of a cpio archive in the form newc
	place := io.NewSectionReader(f, (modules.Size()+3)&^3+int64(header), size)
	sum := sha256.New()
	if _, err := io.Copy(sum, place); err != nil || hex.EncodeToString(sum.Sum(nil)) != digest {
		return false
	}
	if writeInitramfs(&comparer{have: f}, modules, place) != nil {
		return false
	}
	_, err = f.Read(make([]byte, 1))
	return err == io.EOF
}

// comparer is a writer that fails when what is written is not what there is to read.
type comparer struct {
	have io.Reader
	buf  []byte
}

func (c *comparer) Write(p []byte) (int, error) {
	c.buf = slices.Grow(c.buf[:0], len(p))[:len(p)]
	if _, err := io.ReadFull(c.have, c.buf); err != nil {
		return 0, err
	}
	if !bytes.Equal(c.buf, p) {
		return 0, errors.New("it differs")
	}
	return len(p), nil
}

// keptInitramfs is how many initramfs are kept: one for each image and version of the
// agent in use. One that is missed is made again.
const keptInitramfs = 8

// pruneInitramfs removes the oldest initramfs when there are too many, but none that
// another process may just be about to open.
func pruneInitramfs(dir, made string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	var old []fs.FileInfo
	for _, e := range entries {
		if st, err := e.Info(); err == nil && st.Mode().IsRegular() && e.Name() != filepath.Base(made) {
			old = append(old, st)
		}
	}
	slices.SortFunc(old, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	for _, st := range old[min(keptInitramfs-1, len(old)):] {
		if time.Since(st.ModTime()) > time.Minute {
			_ = os.Remove(filepath.Join(dir, st.Name()))
		}
	}
}
