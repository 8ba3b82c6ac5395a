package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/vfs"
)

// smallFiles is what happens to small files in a directory of the guest, by the
// guest's own clock.
const smallFiles = `
import os, sys, time
n, what = 1000, sys.argv[1]
os.chdir("/bench/small")
names = ["f%04d" % i for i in range(n)]
began = time.perf_counter()
for name in names:
    if what == "create":
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY); os.write(fd, b"x" * 100); os.close(fd)
    elif what == "stat": os.stat(name)
    else: os.unlink(name)
print(n / (time.perf_counter() - began))
`

// files measures a mounted directory of the host.
func (b *bench) files(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "gndfiles")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := fill(dir); err != nil {
		return err
	}
	root, err := vfs.HostDir(dir, vfs.HostDirOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	s, err := b.host.Create(ctx, sandbox.Options{Image: b.image, Mounts: []sandbox.Mount{{Path: "/bench", Root: root}}})
	if err != nil {
		return err
	}
	defer s.Close()
	run := func(argv ...string) (string, error) {
		var out bytes.Buffer
		exit, err := s.Run(ctx, sandbox.Command{Argv: argv, Stdout: &out, Stderr: &out})
		if err == nil && exit.Code != 0 {
			err = fmt.Errorf("%v: exit code %d: %s", argv, exit.Code, out.String())
		}
		return strings.TrimSpace(out.String()), err
	}
	drop := func() error {
		_, err := run("sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
		return err
	}
	timed := func(argv ...string) (float64, error) {
		if err := drop(); err != nil {
			return 0, err
		}
		began := time.Now()
		_, err := run(argv...)
		return time.Since(began).Seconds(), err
	}
	// small makes files, looks at them or removes them, right after they were made as
	// programs do, or with the guest's caches dropped before.
	small := func(what string, cold bool) func() (float64, error) {
		return func() (float64, error) {
			if what != "create" {
				if _, err := run("python3", "-c", smallFiles, "create"); err != nil {
					return 0, err
				}
			}
			if cold {
				if err := drop(); err != nil {
					return 0, err
				}
			}
			out, err := run("python3", "-c", smallFiles, what)
			if err != nil {
				return 0, err
			}
			if what != "unlink" {
				if _, err := run("python3", "-c", smallFiles, "unlink"); err != nil {
					return 0, err
				}
			}
			return strconv.ParseFloat(out, 64)
		}
	}
	return errors.Join(
		b.measure(row{Name: "mount, sequential read", Unit: "MB/s", Original: 14, Bar: 60, more: true}, 7, func() (float64, error) {
			took, err := timed("dd", "if=/bench/big", "of=/dev/null", "bs=1M", "status=none")
			return bigFile / mb / took, err
		}),
		b.measure(row{Name: "mount, sequential write", Unit: "MB/s", more: true}, 7, func() (float64, error) {
			took, err := timed("dd", "if=/dev/zero", "of=/bench/written", "bs=1M", "count=64", "status=none")
			return (64 << 20) / mb / took, err
		}),
		b.measure(row{Name: "mount, create small files", Unit: "ops/s", Original: 133, Bar: 500, more: true}, 5, small("create", false)),
		b.measure(row{Name: "mount, stat small files", Unit: "ops/s", Original: 725, Bar: 5000, more: true}, 5, small("stat", false)),
		b.measure(row{Name: "mount, stat small files, caches dropped", Unit: "ops/s", more: true}, 3, small("stat", true)),
		b.measure(row{Name: "mount, unlink small files", Unit: "ops/s", Original: 242, Bar: 700, more: true}, 5, small("unlink", false)),
		b.measure(row{Name: "mount, find over 5000 files", Unit: "s", Original: 7.8, Bar: 0.8}, 7, func() (float64, error) {
			return timed("sh", "-c", "find /bench/tree | wc -l > /dev/null")
		}),
	)
}

const bigFile = 128 << 20

// fill makes the files that are measured.
func fill(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "big"), bytes.Repeat([]byte("0123456789abcdef"), bigFile/16), 0o644); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "small"), 0o777); err != nil {
		return err
	}
	for i := range 50 {
		sub := filepath.Join(dir, "tree", strconv.Itoa(i))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
		for j := range 100 {
			if err := os.WriteFile(filepath.Join(sub, strconv.Itoa(j)), []byte("x"), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}
