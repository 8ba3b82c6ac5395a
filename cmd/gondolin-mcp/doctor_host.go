package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/images"
	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/sandbox/qemu"
)

var qemuVersion = regexp.MustCompile(`version (\d+)\.(\d+)`)

func (d *doctor) checkQEMU(ctx context.Context) []check {
	const name = "qemu"
	path, err := qemu.FindBinary(d.config.QEMU.Binary)
	if err != nil {
		return one(name, failing, "apt-get install qemu-system-x86 (arm64: qemu-system-arm; macOS: brew install qemu), or set qemu.binary", "%v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	version, err := qemu.Version(ctx, path)
	if err != nil {
		return one(name, failing, "set qemu.binary to a QEMU that runs", "%v", err)
	}
	m := qemuVersion.FindStringSubmatch(version)
	if m == nil {
		return one(name, failing, "set qemu.binary to a QEMU", "%s says it is %q", path, version)
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	if major < 7 || major == 7 && minor < 2 {
		return one(name, failing, "install QEMU 7.2 or newer", "%s is version %s.%s", path, m[1], m[2])
	}
	d.qemu, d.version, d.slowTLS = path, version, major < 8 || major == 8 && minor < 2
	return one(name, passed, "", "%s, version %s.%s", path, m[1], m[2])
}

func (d *doctor) checkAccelerator(context.Context) []check {
	const name = "accelerator"
	request := d.config.QEMU.Accelerator
	if d.qemu == "" {
		return one(name, warned, "install QEMU first", "unknown without QEMU")
	}
	// The same key under which sandbox remembers.
	verdicts := qemu.LoadVerdicts(d.config.Paths.Cache, d.qemu+" "+d.version)
	list, reason, err := qemu.Candidates("auto", verdicts)
	if err != nil {
		return one(name, failing, "", "%v", err)
	}
	best := list[0]
	verdict, known := verdicts.Get(best)
	slow, newer := "tcg works and is several times slower; with KVM on the host nothing else has to change", ""
	if d.slowTLS {
		newer = "QEMU 8.2 or newer, which Debian 12 has in its backports, makes HTTPS downloads with tcg twice as fast"
		slow += "; " + newer
	}
	switch {
	case request == string(qemu.TCG):
		return one(name, passed, newer, "tcg, because qemu.accelerator says so")
	case accelerationProblem(request) != "":
		return one(name, failing, "set qemu.accelerator to auto, or leave it out", "%s", strings.TrimSuffix(accelerationProblem(request), ": set it to auto"))
	case request != "auto" && request != string(best):
		return one(name, failing, "set qemu.accelerator to auto", "qemu.accelerator is %s: %s", request, reason)
	case best == qemu.TCG:
		return one(name, warned, slow, "auto uses tcg: %s", reason)
	case known && verdict.Works:
		return one(name, passed, "", "%s, which worked since this machine started", best)
	}
	return one(name, passed, "`gondolin-mcp doctor --probe` finds out now", "%s can be opened and is tried at the first session; if it does not work, tcg is used", best)
}

func (d *doctor) checkScratch(context.Context) []check {
	const name = "mke2fs"
	if d.config.Session.Root != sandbox.RootCOW {
		return one(name, passed, "", "not needed, as session.root is %s", d.config.Session.Root)
	}
	path, err := findProgram(name)
	if err != nil {
		return one(name, failing, "apt-get install e2fsprogs (macOS: brew install e2fsprogs), or set session.root to memory", "mke2fs is missing; it makes the scratch disks")
	}
	return one(name, passed, "", "%s", path)
}

// findProgram also looks where a user's PATH often does not.
func findProgram(name string) (string, error) {
	for _, dir := range []string{"", "/usr/sbin", "/sbin", "/usr/local/sbin", "/opt/homebrew/opt/e2fsprogs/sbin", "/usr/local/opt/e2fsprogs/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("the program %s is missing", name)
}

func (d *doctor) checkImage(ctx context.Context) []check {
	const name = "image"
	store, err := images.OpenStore(d.config.ImageDir())
	if err != nil {
		return one(name, failing, "make the directory writable, or set paths.cache", "%v", err)
	}
	img, err := store.Get(d.config.Image.Name)
	if missing := (*images.NotFoundError)(nil); errors.As(err, &missing) && d.config.Image.AutoBuild && d.config.Image.Name == images.DefaultTag {
		return one(name, warned, "`gondolin-mcp images build` builds it now", "the default image is not there yet; the first session builds it, which takes some minutes")
	}
	if err != nil {
		return one(name, failing, "build it, or set image.name to another", "%v", err)
	}
	if err := img.Check(ctx); err != nil {
		return one(name, failing, "build it anew", "%v", err)
	}
	d.image = true
	return one(name, passed, "", "%s (%.12s), %s", d.config.Image.Name, img.ID(), images.FormatBytes(img.Manifest.TotalSize()))
}

// checkBuild is about building the default image; other sources need less.
func (d *doctor) checkBuild(context.Context) []check {
	const name = "build tools"
	for _, tool := range []string{"apt-get", "dpkg-deb", "mmdebstrap", "mke2fs"} {
		if _, err := findProgram(tool); err == nil {
			continue
		}
		s := warned
		if !d.image && d.config.Image.AutoBuild {
			s = failing
		}
		do := "apt-get install mmdebstrap e2fsprogs"
		if tool == "apt-get" || tool == "dpkg-deb" {
			do = "on a system without apt, build from a container image: `gondolin-mcp images build --name default --from oci:debian:12`"
		}
		return one(name, s, do, "%s is missing: the default image cannot be built here", tool)
	}
	return one(name, passed, "", "apt and mmdebstrap are there")
}

func (d *doctor) checkRuntimeDir(context.Context) []check {
	const name = "runtime dir"
	dir := d.config.Paths.Runtime
	if len(dir) > 60 {
		return one(name, failing, "set paths.runtime to a shorter one", "%s is longer than the 60 bytes that sockets allow", dir)
	}
	st, err := os.Lstat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return one(name, passed, "", "%s will be made", dir)
	case err != nil:
		return one(name, failing, "set paths.runtime to another", "%v", err)
	}
	owner, known := st.Sys().(*syscall.Stat_t)
	switch {
	case !st.IsDir():
		return one(name, failing, "remove it, or set paths.runtime to another", "%s is no directory", dir)
	case st.Mode().Perm()&0o077 != 0:
		return one(name, failing, "chmod 700 "+dir, "%s has mode %04o: others could speak to the machines", dir, st.Mode().Perm())
	case known && int(owner.Uid) != os.Getuid():
		return one(name, failing, "set paths.runtime to one of your own", "%s belongs to user %d", dir, owner.Uid)
	}
	return one(name, passed, "", "%s", dir)
}

// checkLeftovers counts what killed servers left. A session's directory has a
// lock that its process holds as long as it lives.
func (d *doctor) checkLeftovers(context.Context) []check {
	const name = "leftovers"
	alive, dead := 0, 0
	locks, _ := filepath.Glob(filepath.Join(d.config.Paths.Runtime, "*", "lock")) // the pattern is well formed
	for _, path := range locks {
		f, err := os.Open(path)
		if err != nil {
			continue // it went away meanwhile
		}
		// Young ones are left alone: their owner may be about to take the lock.
		if st, err := f.Stat(); err == nil && time.Since(st.ModTime()) > time.Minute && unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
			dead++
		} else {
			alive++
		}
		_ = f.Close()
	}
	if dead > 0 {
		return one(name, warned, "nothing: the next server removes it", "%s of killed servers left something in %s", counted(dead, "session"), d.config.Paths.Runtime)
	}
	return one(name, passed, "", "none; open now: %s", counted(alive, "session"))
}

func (d *doctor) checkLimits(context.Context) []check {
	l := d.config.Limits
	var found []check
	if n := runtime.NumCPU(); l.CPUs > n {
		found = append(found, one("cpus", warned, "lower limits.cpus", "limits.cpus is %d and this machine has %s", l.CPUs, counted(n, "CPU"))...)
	} else {
		found = append(found, one("cpus", passed, "", "%d of %s for a session", l.CPUs, counted(n, "CPU"))...)
	}
	if total, free, known := hostMemory(); known {
		switch {
		case l.Memory > total:
			found = append(found, one("memory", failing, "lower limits.memory", "limits.memory is %s and this machine has %s", l.Memory, mebibytes(total))...)
		case l.Memory > free:
			found = append(found, one("memory", warned, "lower limits.memory, or end other programs", "limits.memory is %s and %s are free now", l.Memory, mebibytes(free))...)
		default:
			found = append(found, one("memory", passed, "", "%s for a session, of %s free now; at most %s", l.Memory, mebibytes(free), counted(d.config.Sessions.Max, "session"))...)
		}
	}
	return append(found, d.checkDisk()...)
}

// mebibytes writes what was measured; what is configured looks as it is written there.
func mebibytes(n configs.Size) string { return images.FormatBytes(int64(n) << 20) }

// roomy is the free space, in MiB, below which a warning is due: an image takes about that.
const roomy = 2048

func (d *doctor) checkDisk() []check {
	const name = "disk"
	dir := d.config.Paths.Cache
	var st unix.Statfs_t
	for unix.Statfs(dir, &st) != nil { // it may not have been made yet
		parent := filepath.Dir(dir)
		if parent == dir {
			return one(name, warned, "", "the free space for %s is not known", d.config.Paths.Cache)
		}
		dir = parent
	}
	free := configs.Size(uint64(st.Bavail) * uint64(st.Bsize) >> 20)
	switch {
	case free < 256 && d.config.Session.Root == sandbox.RootCOW:
		return one(name, failing, "make room, or set session.root to memory", "%s are free in %s; a session needs 256 MiB", mebibytes(free), d.config.Paths.Cache)
	case free < roomy:
		return one(name, warned, "make room; `gondolin-mcp images gc` removes what is not used", "%s are free in %s", mebibytes(free), d.config.Paths.Cache)
	}
	return one(name, passed, "", "%s are free in %s", mebibytes(free), d.config.Paths.Cache)
}

func (d *doctor) checkFiles(context.Context) []check {
	const name = "open files"
	const own, each = 64, 16 // of the server, and of a session with some commands running
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return one(name, warned, "", "the limit is not known: %v", err)
	}
	need := uint64(own + each*d.config.Sessions.Max)
	if uint64(limit.Cur) < need {
		return one(name, warned, "ulimit -n "+strconv.FormatUint(need, 10)+", or lower sessions.max", "the limit is %d, and %s may need %d", limit.Cur, counted(d.config.Sessions.Max, "session"), need)
	}
	return one(name, passed, "", "%d may be open", limit.Cur)
}
