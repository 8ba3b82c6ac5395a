package images

import (
	"bytes"
	"compress/bzip2"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// maxKernel bounds an unpacked kernel.
const maxKernel = 512 << 20

// The fields of the x86 boot protocol's setup header that lead to the compressed kernel.
const (
	hdrSetupSects    = 0x1f1
	hdrMagic         = 0x202 // "HdrS"
	hdrPayloadOffset = 0x248
	hdrPayloadLength = 0x24c
)

// kernelForBoot turns a distribution's kernel file into what boots fastest: the vmlinux ELF inside a
// bzImage, which QEMU enters directly (PVH) so that the guest does not unpack itself, measured at half a
// second under emulation. Whatever is not a bzImage with such an ELF inside is kept as it is; why tells
// the reason.
func kernelForBoot(ctx context.Context, image []byte) (kernel []byte, format, why string) {
	if bytes.HasPrefix(image, []byte(elf.ELFMAG)) {
		if err := checkPVH(image); err != nil {
			return image, "vmlinux", err.Error()
		}
		return stripSections(image), "vmlinux", ""
	}
	vmlinux, err := extractVmlinux(ctx, image)
	if err == nil {
		err = checkPVH(vmlinux)
	}
	if err != nil {
		return image, "bzImage", err.Error()
	}
	return stripSections(vmlinux), "vmlinux", ""
}

func extractVmlinux(ctx context.Context, image []byte) ([]byte, error) {
	if len(image) < hdrPayloadLength+4 || string(image[hdrMagic:hdrMagic+4]) != "HdrS" {
		return nil, errors.New("it is no x86 bzImage")
	}
	le := binary.LittleEndian
	sects := int64(image[hdrSetupSects])
	if sects == 0 {
		sects = 4 // as the boot protocol says
	}
	start := (sects+1)*512 + int64(le.Uint32(image[hdrPayloadOffset:]))
	length := int64(le.Uint32(image[hdrPayloadLength:]))
	if length < 8 || start+length > int64(len(image)) {
		return nil, errors.New("its setup header points outside the file")
	}
	payload := image[start : start+length]
	// The kernel's build appends the unpacked size to formats that do not hold it; for gzip the last
	// four bytes are its own trailer and say the same.
	size := int64(le.Uint32(payload[len(payload)-4:]))
	if size == 0 || size > maxKernel {
		return nil, fmt.Errorf("it claims to unpack to %d bytes", size)
	}
	out, err := unpackPayload(ctx, payload, size)
	if err != nil {
		return nil, err
	}
	if int64(len(out)) != size {
		return nil, fmt.Errorf("it unpacked to %d bytes instead of %d", len(out), size)
	}
	return out, nil
}

func unpackPayload(ctx context.Context, payload []byte, size int64) ([]byte, error) {
	trimmed := payload[:len(payload)-4]
	var r io.Reader
	switch {
	case bytes.HasPrefix(payload, []byte{0x02, 0x21, 0x4c, 0x18}): // LZ4 legacy frame
		r = lz4.NewReader(bytes.NewReader(trimmed))
	case bytes.HasPrefix(payload, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(bytes.NewReader(payload))
		if err != nil {
			return nil, fmt.Errorf("unpacking it: %w", err)
		}
		z.Multistream(false)
		r = z
	case bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(bytes.NewReader(trimmed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxKernel))
		if err != nil {
			return nil, fmt.Errorf("unpacking it: %w", err)
		}
		defer z.Close()
		r = z
	case bytes.HasPrefix(payload, xzMagic):
		// Kernels use xz's x86 filter, which only the real xz knows.
		return filterThrough(ctx, trimmed, size, "xz", "-dc", "--single-stream")
	case bytes.HasPrefix(payload, []byte("BZh")):
		r = bzip2.NewReader(bytes.NewReader(trimmed))
	default:
		return nil, fmt.Errorf("its compression (% x) is not supported", payload[:4])
	}
	out, err := readSized(r, size)
	if err != nil {
		return nil, fmt.Errorf("unpacking it: %w", err)
	}
	return out, nil
}

// readSized reads exactly size bytes; whatever padding follows them is left alone.
func readSized(r io.Reader, size int64) ([]byte, error) {
	var out bytes.Buffer
	n, err := io.Copy(&out, io.LimitReader(r, size))
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	return out.Bytes(), err
}

// filterThrough runs a small external decompressor.
func filterThrough(ctx context.Context, in []byte, limit int64, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd, err := command(ctx, "", name, args...)
	if err != nil {
		return nil, err
	}
	var said tail
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &said
	pipe, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("running %s: %w", name, err)
	}
	out, rerr := io.ReadAll(io.LimitReader(pipe, limit+1))
	if int64(len(out)) > limit {
		cancel()
		_ = reap(ctx, cmd)
		return nil, fmt.Errorf("%s: the output is bigger than %s", name, FormatBytes(limit))
	}
	if err := reap(ctx, cmd); err != nil {
		return nil, toolError(ctx, name, args, err, &said)
	}
	return out, rerr
}

// checkPVH looks for the note XEN_ELFNOTE_PHYS32_ENTRY, without which QEMU cannot enter an x86 ELF.
func checkPVH(image []byte) error {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return fmt.Errorf("it holds no ELF kernel: %w", err)
	}
	const physEntry = 18
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		notes, err := io.ReadAll(p.Open())
		if err != nil {
			continue
		}
		for len(notes) >= 12 {
			nameLen, descLen := int(f.ByteOrder.Uint32(notes)), int(f.ByteOrder.Uint32(notes[4:]))
			kind := f.ByteOrder.Uint32(notes[8:])
			name := notes[12:]
			next := (nameLen+3)&^3 + (descLen+3)&^3
			if nameLen < 0 || descLen < 0 || nameLen > len(name) || next > len(name) {
				break
			}
			if kind == physEntry && string(bytes.TrimRight(name[:nameLen], "\x00")) == "Xen" {
				return nil
			}
			notes = name[next:]
		}
	}
	return errors.New("it has no PVH entry point")
}

// stripSections cuts section headers and symbols off a kernel whose segments all come before them. The
// kernel itself never sees them, and QEMU would load the symbol table into every guest's process.
func stripSections(image []byte) []byte {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil || f.Class != elf.ELFCLASS64 || f.Data != elf.ELFDATA2LSB {
		return image
	}
	end := uint64(64)
	for _, p := range f.Progs {
		end = max(end, p.Off+p.Filesz)
	}
	phoff := binary.LittleEndian.Uint64(image[32:])
	end = max(end, phoff+uint64(len(f.Progs))*56)
	if end >= uint64(len(image)) {
		return image
	}
	out := bytes.Clone(image[:end])
	binary.LittleEndian.PutUint64(out[40:], 0) // e_shoff
	binary.LittleEndian.PutUint16(out[60:], 0) // e_shnum
	binary.LittleEndian.PutUint16(out[62:], 0) // e_shstrndx
	return out
}
