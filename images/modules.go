package images

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
)

// A wantedModule is a kernel module that the guest's init loads.
type wantedModule struct {
	name     string
	required bool // in the kernel or as a module
}

// guestModules are the modules of a guest, in the order in which they are loaded; each one's
// dependencies go before it.
var guestModules = []wantedModule{
	{"virtio_pci", true}, {"virtio_blk", true}, {"virtio_console", true}, {"ext4", true}, {"overlay", true},
	{"virtio_net", true}, {"fuse", true}, {"virtio_balloon", true}, {"virtio_rng", false},
	{"crc32c_intel", false}, {"erofs", false},
}

// maxModule bounds one unpacked module.
const maxModule = 64 << 20

// modulesDir is where modules.cpio holds them.
const modulesDir = "lib/gondolin/modules"

// moduleSet is a kernel's /lib/modules/VERSION directory.
type moduleSet struct {
	fsys    fs.FS
	files   map[string]string // module name, '_' for '-', to file
	builtin map[string]bool
}

// moduleName is the kernel's name of a module file.
func moduleName(file string) (string, bool) {
	base := path.Base(file)
	for _, ext := range []string{".gz", ".xz", ".zst"} {
		base = strings.TrimSuffix(base, ext)
	}
	name, ok := strings.CutSuffix(base, ".ko")
	return strings.ReplaceAll(name, "-", "_"), ok
}

func openModules(fsys fs.FS) (*moduleSet, error) {
	set := &moduleSet{fsys: fsys, files: map[string]string{}, builtin: map[string]bool{}}
	list, err := fs.ReadFile(fsys, "modules.builtin")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading modules.builtin: %w", err)
	}
	for line := range strings.Lines(string(list)) {
		if name, ok := moduleName(strings.TrimSpace(line)); ok {
			set.builtin[name] = true
		}
	}
	err = fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, ok := moduleName(p); ok && !d.IsDir() {
			set.files[name] = p
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the module directory: %w", err)
	}
	return set, nil
}

type module struct {
	name string
	data []byte
}

// resolve returns the wanted modules and all they depend on, in load order. Dependencies are read from
// the modules themselves: Debian's packages come without modules.dep, which depmod only makes when a
// kernel is installed.
func (s *moduleSet) resolve(ctx context.Context, wanted []wantedModule) ([]module, error) {
	var order []module
	state := map[string]int{} // 1 being resolved, 2 done
	var add func(name string, required bool, because string) error
	add = func(name string, required bool, because string) error {
		name = strings.ReplaceAll(name, "-", "_")
		if s.builtin[name] || state[name] == 2 {
			return nil
		}
		if state[name] == 1 {
			return fmt.Errorf("kernel module %s depends on itself", name)
		}
		file, ok := s.files[name]
		if !ok {
			if required {
				return fmt.Errorf("this kernel has no module %s%s, neither built in nor as a file; choose another kernel", name, because)
			}
			return nil
		}
		state[name] = 1
		data, err := s.read(ctx, file)
		if err != nil {
			return fmt.Errorf("reading kernel module %s: %w", file, err)
		}
		depends, before, err := moduleInfo(data)
		if err != nil {
			return fmt.Errorf("reading kernel module %s: %w", file, err)
		}
		for _, d := range before {
			if err := add(d, false, ""); err != nil {
				return err
			}
		}
		for _, d := range depends {
			if err := add(d, true, " (needed by "+name+")"); err != nil {
				return err
			}
		}
		state[name] = 2
		order = append(order, module{name: name, data: data})
		return nil
	}
	for _, w := range wanted {
		if err := add(w.name, w.required, ""); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// read unpacks one module file.
func (s *moduleSet) read(ctx context.Context, file string) ([]byte, error) {
	raw, err := fs.ReadFile(s.fsys, file)
	if err != nil {
		return nil, err
	}
	var r io.Reader
	switch path.Ext(file) {
	case ".gz":
		z, err := gzip.NewReader(bytes.NewReader(raw))
		if err != nil {
			return nil, err
		}
		r = z
	case ".zst":
		z, err := zstd.NewReader(bytes.NewReader(raw), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		r = z
	case ".xz":
		return filterThrough(ctx, raw, maxModule, "xz", "-dc")
	default:
		return raw, nil
	}
	out, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err == nil && len(out) > maxModule {
		err = fmt.Errorf("it unpacks to more than %s", FormatBytes(maxModule))
	}
	return out, err
}

// moduleInfo reads a module's dependencies, hard ones and those that only should come before.
func moduleInfo(data []byte) (depends, before []string, err error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, nil, fmt.Errorf("not an ELF file: %w", err)
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, nil, errors.New("it has no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, nil, fmt.Errorf("reading .modinfo: %w", err)
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		switch key {
		case "depends":
			depends = slices.DeleteFunc(strings.Split(value, ","), func(s string) bool { return s == "" })
		case "softdep":
			pre := false
			for _, word := range strings.Fields(value) {
				switch word {
				case "pre:":
					pre = true
				case "post:":
					pre = false
				default:
					if pre {
						before = append(before, word)
					}
				}
			}
		}
	}
	return depends, before, nil
}

// writeModules writes modules.cpio: the modules under numbered names and the file "order" with one
// absolute path a line. The archive ends without padding, so that another may be appended.
func writeModules(w io.Writer, modules []module) error {
	buf := bufio.NewWriter(w)
	out := cpio.Newc.Writer(buf)
	var records []cpio.Record
	dir := ""
	for part := range strings.SplitSeq(modulesDir, "/") {
		dir = path.Join(dir, part)
		records = append(records, cpio.Directory(dir, 0o755))
	}
	var order strings.Builder
	for i, m := range modules {
		name := path.Join(modulesDir, fmt.Sprintf("%02d-%s.ko", i, m.name))
		records = append(records, cpio.StaticFile(name, string(m.data), 0o644))
		fmt.Fprintf(&order, "/%s\n", name)
	}
	records = append(records, cpio.StaticFile(path.Join(modulesDir, "order"), order.String(), 0o644))
	for i, r := range records {
		r = cpio.MakeReproducible(r)
		r.Ino = uint64(i + 1)
		if err := out.WriteRecord(r); err != nil {
			return fmt.Errorf("writing %s: %w", r.Name, err)
		}
	}
	if err := cpio.WriteTrailer(out); err != nil {
		return fmt.Errorf("writing the end of the archive: %w", err)
	}
	return buf.Flush()
}
