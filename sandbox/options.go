package sandbox

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// DefaultLimits are the limits of a session that names none.
var DefaultLimits = Limits{
	CPUs: 2, MemoryMiB: 2048, DiskMiB: 16384, Processes: 4096, Wall: -1, Idle: -1,
}

// withDefaults fills in what is missing and checks the rest, all mistakes at once.
func (o Options) withDefaults() (Options, error) {
	if o.Root == "" {
		o.Root = RootCOW
	}
	if o.Dir == "" {
		o.Dir = o.Image.Dir
	}
	if o.User == "" {
		o.User = o.Image.User
	}
	if o.User == "" {
		o.User = "root"
	}
	o.Limits = o.Limits.withDefaults()
	return o, errors.Join(o.check()...)
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits
	pick := func(v *int, def int) {
		if *v == 0 {
			*v = def
		}
	}
	pick(&l.CPUs, d.CPUs)
	pick(&l.MemoryMiB, d.MemoryMiB)
	pick(&l.DiskMiB, d.DiskMiB)
	pick(&l.Processes, d.Processes)
	for v, def := range map[*time.Duration]time.Duration{&l.Wall: d.Wall, &l.Idle: d.Idle} {
		if *v == 0 {
			*v = def
		}
	}
	return l
}

var hostname = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$`)

func (o Options) check() []error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf(format+": %w", append(args, ErrInvalid)...))
	}
	for name, path := range map[string]string{"kernel": o.Image.Kernel, "modules": o.Image.Modules, "root disk": o.Image.RootDisk} {
		if path == "" {
			bad("the image names no %s", name)
		}
	}
	switch o.Root {
	case RootCOW, RootMemory, RootReadOnly:
	default:
		bad("root mode %q is unknown: use cow, memory or readonly", o.Root)
	}
	if o.Hostname != "" && !hostname.MatchString(o.Hostname) {
		bad("host name %q: use 1 to 63 letters, digits and inner hyphens", o.Hostname)
	}
	if o.Dir != "" && !strings.HasPrefix(o.Dir, "/") {
		bad("working directory %q: use an absolute path", o.Dir)
	}
	errs = append(errs, checkMounts(o.Mounts)...)
	return append(errs, append(checkEnv(o.Env), o.Limits.Check()...)...)
}

// Check returns one error for each limit that is out of its range.
func (l Limits) Check() []error {
	var errs []error
	for _, r := range []struct {
		name         string
		v, low, high int
	}{
		{"limits.cpus", l.CPUs, 1, 64},
		{"limits.memory", l.MemoryMiB, 128, 1 << 20},
		{"limits.disk", l.DiskMiB, 64, 1 << 24},
		{"limits.processes", l.Processes, 16, 1000000},
	} {
		if r.v != 0 && (r.v < r.low || r.v > r.high) {
			errs = append(errs, fmt.Errorf("%s is %d: use %d to %d: %w", r.name, r.v, r.low, r.high, ErrInvalid))
		}
	}
	return errs
}

func checkEnv(env map[string]string) []error {
	var errs []error
	for name, value := range env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			errs = append(errs, fmt.Errorf("environment variable %q: a name is not empty and has no '=', and neither part has a NUL: %w", name, ErrInvalid))
		}
	}
	return errs
}
