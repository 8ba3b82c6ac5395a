package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/gondolin-go/gondolin/sandbox"
)

const mb = 1e6

func (b *bench) create(ctx context.Context) (*sandbox.Session, error) {
	return b.host.Create(ctx, sandbox.Options{Image: b.image})
}

// running measures one session that runs.
func (b *bench) running(ctx context.Context) error {
	s, err := b.create(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	truth := sandbox.Command{Argv: []string{"/bin/true"}}
	for range 20 { // the first ones read the disk
		if _, err := s.Run(ctx, truth); err != nil {
			return err
		}
	}
	const stream = 128 << 20
	const file = 4 << 20
	return errors.Join(
		b.measure(row{Name: "exec /bin/true", Unit: "ms", Original: 12.1, Bar: 8}, 300, func() (float64, error) {
			began := time.Now()
			_, err := s.Run(ctx, truth)
			return ms(time.Since(began)), err
		}),
		b.measure(row{Name: "stat request", Unit: "ms"}, 300, func() (float64, error) {
			began := time.Now()
			_, err := s.Stat(ctx, "/")
			return ms(time.Since(began)), err
		}),
		b.measure(row{Name: "stdout stream", Unit: "MB/s", Original: 6.8, Bar: 60, more: true}, 7, func() (float64, error) {
			return rate(func() (int64, error) {
				exit, err := s.Run(ctx, sandbox.Command{
					Argv: []string{"dd", "if=/dev/zero", "bs=128k", fmt.Sprintf("count=%d", stream>>17), "status=none"}, Stdout: io.Discard,
				})
				return exit.Stdout, err
			})
		}),
		b.measure(row{Name: "stdin stream", Unit: "MB/s", Original: 8.3, Bar: 50, more: true}, 7, func() (float64, error) {
			return rate(func() (int64, error) {
				_, err := s.Run(ctx, sandbox.Command{Argv: []string{"dd", "of=/dev/null", "bs=128k", "status=none"}, Stdin: zeros(stream)})
				return stream, err
			})
		}),
		b.measure(row{Name: "write file 4 MiB", Unit: "MB/s", Original: 35, Bar: 70, more: true}, 31, func() (float64, error) {
			return rate(func() (int64, error) {
				w, err := s.WriteFile(ctx, "/root/bench", zeros(file), sandbox.WriteOptions{})
				return w.Bytes, err
			})
		}),
		b.measure(row{Name: "read file 4 MiB", Unit: "MB/s", Original: 61, Bar: 80, more: true}, 31, func() (float64, error) {
			return rate(func() (int64, error) {
				f, _, err := s.Open(ctx, "/root/bench", 0, 0)
				if err != nil {
					return 0, err
				}
				defer f.Close()
				return io.Copy(io.Discard, f)
			})
		}),
	)
}

// idle measures what a session costs that does nothing.
func (b *bench) idle(ctx context.Context) error {
	s, err := b.create(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.Run(ctx, sandbox.Command{Argv: []string{"/bin/true"}}); err != nil {
		return err
	}
	pids, err := childQEMUs()
	if err != nil {
		return err
	}
	pid := pids[0]
	settle := time.NewTimer(5 * time.Second)
	<-settle.C
	return errors.Join(
		b.measure(row{Name: "idle session, PSS of QEMU", Unit: "MiB", Original: 265, Bar: 60}, 3, func() (float64, error) {
			return pss(pid)
		}),
		b.measure(row{Name: "idle session, CPU of QEMU", Unit: "% of a core", Original: 8.5, Bar: 0.5}, 5, func() (float64, error) {
			before, err := cpuTicks(pid)
			if err != nil {
				return 0, err
			}
			wait := time.NewTimer(4 * time.Second)
			<-wait.C
			after, err := cpuTicks(pid)
			return (after - before) / 4, err // a tick is 10 ms: ticks a second are per cent
		}),
		b.fourIdle(ctx),
		b.server(ctx),
	)
}

// fourIdle measures what one of four sessions takes: they share the pages of the template, and QEMU's.
func (b *bench) fourIdle(ctx context.Context) error {
	r := row{Name: "one of 4 idle sessions, PSS of QEMU", Unit: "MiB"}
	if b.skips(r) {
		return nil
	}
	for range 3 { // beside the one that is there
		if s := b.first(ctx, b.host); s.err != nil {
			return s.err
		} else {
			defer s.session.Close()
		}
	}
	settle := time.NewTimer(5 * time.Second)
	<-settle.C
	return b.measure(r, 3, func() (float64, error) {
		pids, err := childQEMUs()
		if err != nil {
			return 0, err
		}
		var sum float64
		for _, pid := range pids {
			one, err := pss(pid)
			if err != nil {
				return 0, err
			}
			sum += one
		}
		return sum / float64(len(pids)), nil
	})
}

// server measures the program as clients start it, with the session of one.
func (b *bench) server(ctx context.Context) error {
	r := row{Name: "gondolin-mcp serve with a session, RSS", Unit: "MiB", Original: 70, Bar: 40}
	if b.skips(r) {
		return nil
	}
	cmd := exec.CommandContext(ctx, b.program, "serve")
	cmd.Env = append(os.Environ(), "GONDOLIN_PATHS_RUNTIME="+b.dir)
	client, err := mcp.NewClient(&mcp.Implementation{Name: "bench"}, nil).Connect(ctx, &mcp.CommandTransport{Command: cmd}, nil)
	if err != nil {
		return err
	}
	defer client.Close()
	for range 20 {
		res, err := client.CallTool(ctx, &mcp.CallToolParams{Name: "exec", Arguments: map[string]any{"command": "true"}})
		if err != nil {
			return err
		}
		if res.IsError {
			return fmt.Errorf("the tool exec failed: %v", res.Content)
		}
	}
	settle := time.NewTimer(5 * time.Second)
	<-settle.C
	return b.measure(r, 3, func() (float64, error) {
		kib, err := field(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid), "VmRSS:")
		return kib / 1024, err
	})
}

// pss is a process's proportional set size in MiB; proc_pid_smaps(5).
func pss(pid int) (float64, error) {
	kib, err := field(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:")
	return kib / 1024, err
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func rate(f func() (int64, error)) (float64, error) {
	began := time.Now()
	n, err := f()
	return float64(n) / mb / time.Since(began).Seconds(), err
}

func zeros(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func childQEMUs() ([]int, error) {
	out, err := exec.Command("pgrep", "-P", strconv.Itoa(os.Getpid()), "qemu").Output()
	if err != nil {
		return nil, fmt.Errorf("finding QEMU: %w", err)
	}
	var pids []int
	for _, word := range strings.Fields(string(out)) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// field reads a number behind a name from a file of /proc.
func field(path, name string) (float64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), name); ok {
			return strconv.ParseFloat(strings.Fields(rest)[0], 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, name)
}

// cpuTicks is a process's CPU time in clock ticks; proc_pid_stat(5).
func cpuTicks(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, err1 := strconv.ParseFloat(fields[11], 64)
	sys, err2 := strconv.ParseFloat(fields[12], 64)
	return user + sys, errors.Join(err1, err2)
}
