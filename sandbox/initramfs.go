package sandbox

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
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
	mods, err := os.ReadFile(modules)
	if err != nil {
		return "", fmt.Errorf("reading the image's modules: %w", err)
	}
	binary, err := agent.Binary()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	sum.Write(mods)
	sum.Write(binary)
	dir := filepath.Join(cacheDir, "initramfs")
	path := filepath.Join(dir, hex.EncodeToString(sum.Sum(nil)[:16])+".cpio")
	var b bytes.Buffer
	b.Write(mods)
	b.Write(make([]byte, -b.Len()&3)) // archives begin at multiples of 4
	w := cpio.Newc.Writer(&b)
	if err := w.WriteRecord(cpio.StaticFile("init", string(binary), 0o755)); err != nil {
		return "", fmt.Errorf("writing the initramfs: %w", err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		return "", fmt.Errorf("writing the initramfs: %w", err)
	}
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, b.Bytes()) {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making the cache of initramfs: %w", err)
	}
	// World-readable: QEMU runs as a user of its own.
	if err := renameio.WriteFile(path, b.Bytes(), 0o644, renameio.IgnoreUmask()); err != nil {
		return "", fmt.Errorf("writing the initramfs: %w", err)
	}
	pruneInitramfs(dir, path)
	return path, nil
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
