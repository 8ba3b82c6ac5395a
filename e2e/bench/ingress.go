package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"time"

	"github.com/gondolin-go/gondolin/sandbox"
)

// webServer answers each GET with as many bytes as its path says.
const webServer = `
import http.server
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def do_GET(self):
        n = int(self.path[1:])
        self.send_response(200); self.send_header("Content-Length", str(n)); self.end_headers()
        part = bytes(1 << 18)
        while n: self.wfile.write(part[:n]); n -= min(n, len(part))
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), H).serve_forever()
`

// reached measures the ways into a session.
func (b *bench) reached(ctx context.Context) error {
	s, err := b.create(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.StartJob(ctx, sandbox.Command{Argv: []string{"python3", "-c", webServer}}); err != nil {
		return err
	}
	gate, err := s.Ingress(ctx, sandbox.IngressOptions{Port: 8000})
	if err != nil {
		return err
	}
	wait := sandbox.Command{Shell: "until curl -sf http://127.0.0.1:8000/1 >/dev/null; do sleep 0.1; done"}
	if _, err := s.Run(ctx, wait); err != nil {
		return err
	}
	fetch := func(n int64) (int64, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s%d", gate.URL, n), nil)
		if err != nil {
			return 0, err
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		return io.Copy(io.Discard, resp.Body)
	}
	way, err := s.SSH(ctx, sandbox.SSHOptions{})
	if err != nil {
		return err
	}
	client := func(command string, stdin io.Reader) error {
		argv := append(way.Argv("ssh"), sandbox.SSHName, command)
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Stdin = stdin
		var out bytes.Buffer
		cmd.Stderr = &out
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%w: %s", err, out.String())
		}
		return nil
	}
	const stream = 64 << 20
	return errors.Join(
		b.measure(row{Name: "ingress, small request", Unit: "ms"}, 200, func() (float64, error) {
			began := time.Now()
			_, err := fetch(100)
			return ms(time.Since(began)), err
		}),
		b.measure(row{Name: "ingress, download 64 MiB", Unit: "MB/s", more: true}, 5, func() (float64, error) {
			return rate(func() (int64, error) { return fetch(stream) })
		}),
		b.measure(row{Name: "ssh, login and /bin/true", Unit: "ms"}, 20, func() (float64, error) {
			began := time.Now()
			err := client("/bin/true", nil)
			return ms(time.Since(began)), err
		}),
		b.measure(row{Name: "ssh, stdin 64 MiB", Unit: "MB/s", more: true}, 3, func() (float64, error) {
			return rate(func() (int64, error) { return stream, client("cat > /dev/null", zeros(stream)) })
		}),
	)
}
