package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/gondolin-go/gondolin/sandbox"
)

// attaching measures what another process waits for that works in a session.
func (b *bench) attaching(ctx context.Context) error {
	s, err := b.create(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	truth := sandbox.Command{Argv: []string{"/bin/true"}}
	a, err := sandbox.Attach(ctx, b.dir, s.ID(), nil)
	if err != nil {
		return err
	}
	defer a.Close()
	for range 20 { // the first ones read the disk
		if _, err := a.Run(ctx, truth); err != nil {
			return err
		}
	}
	const stream = 64 << 20
	return errors.Join(
		b.measure(row{Name: "attach, in a process", Unit: "ms"}, 100, func() (float64, error) {
			began := time.Now()
			one, err := sandbox.Attach(ctx, b.dir, s.ID(), nil)
			if err != nil {
				return 0, err
			}
			took := ms(time.Since(began))
			return took, one.Close()
		}),
		b.measure(row{Name: "attached, exec /bin/true", Unit: "ms"}, 100, func() (float64, error) {
			began := time.Now()
			_, err := a.Run(ctx, truth)
			return ms(time.Since(began)), err
		}),
		b.measure(row{Name: "attached, stdout stream", Unit: "MB/s", more: true}, 5, func() (float64, error) {
			return rate(func() (int64, error) {
				exit, err := a.Run(ctx, sandbox.Command{
					Argv: []string{"dd", "if=/dev/zero", "bs=128k", fmt.Sprintf("count=%d", stream>>17), "status=none"}, Stdout: io.Discard,
				})
				return exit.Stdout, err
			})
		}),
		b.measure(row{Name: "gondolin-mcp exec ID -- true", Unit: "ms"}, 30, func() (float64, error) {
			cmd := exec.CommandContext(ctx, b.program, "exec", s.ID(), "--", "true")
			cmd.Env, cmd.Stderr = append(os.Environ(), "GONDOLIN_PATHS_RUNTIME="+b.dir), os.Stderr
			began := time.Now()
			err := cmd.Run()
			return ms(time.Since(began)), err
		}),
	)
}
