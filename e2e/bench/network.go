package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gondolin-go/gondolin/e2e/inguest"
	"github.com/gondolin-go/gondolin/netguard"
	"github.com/gondolin-go/gondolin/netguard/policy"
	"github.com/gondolin-go/gondolin/sandbox"
)

const download = 64 << 20

// served is a server on loopback that guests know as example.com.
type served struct {
	plain, secure *httptest.Server
	network       *sandbox.Network
}

func serveDownloads() (*served, error) {
	block := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	mux := http.NewServeMux()
	mux.HandleFunc("/small", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "well") })
	mux.HandleFunc("/big", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(download))
		for range download / len(block) {
			if _, err := w.Write(block); err != nil {
				return // the guest has gone
			}
		}
	})
	s := &served{plain: httptest.NewServer(mux), secure: httptest.NewUnstartedServer(mux)}
	s.secure.EnableHTTP2 = true
	s.secure.StartTLS()
	roots := x509.NewCertPool()
	roots.AddCert(s.secure.Certificate())
	p, err := policy.Compile(policy.Spec{Rules: []policy.Rule{{
		Name: "bench", Action: policy.ActionAllow, Hosts: []string{"example.com", "*.flood.example"}, Ports: []string{port(s.plain), port(s.secure)},
		AllowAddresses: []string{"127.0.0.1"},
	}}})
	if err != nil {
		s.close()
		return nil, err
	}
	s.network = &sandbox.Network{Policy: p, Upstream: netguard.Upstream{
		TLS: &tls.Config{RootCAs: roots}, Hosts: map[string]netip.Addr{"example.com": netip.MustParseAddr("127.0.0.1")},
	}}
	return s, nil
}

func (s *served) close() { s.plain.Close(); s.secure.Close() }

func port(s *httptest.Server) string {
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String()) // it is one's own
	return port
}

// network measures what a guest gets from servers, through everything that is judged.
func (b *bench) network(ctx context.Context) error {
	servers, err := serveDownloads()
	if err != nil {
		return err
	}
	defer servers.close()
	s, err := b.host.Create(ctx, sandbox.Options{Image: b.image, Network: servers.network})
	if err != nil {
		return err
	}
	defer s.Close()
	plain, secure := "http://example.com:"+port(servers.plain), "https://example.com:"+port(servers.secure)
	for range 2 { // the first ones read the disk
		for _, url := range []string{plain + "/big", secure + "/big", secure + "/small"} {
			if _, err := curl(ctx, s, url); err != nil {
				return err
			}
		}
	}
	fetch := func(url string) func() (float64, error) {
		return func() (float64, error) {
			took, err := curl(ctx, s, url)
			return download / mb / took.Seconds(), err
		}
	}
	const urls = 50
	return errors.Join(
		b.measure(row{Name: "HTTP download 64 MiB", Unit: "MB/s", Original: 21.8, Bar: 65, more: true}, 7, fetch(plain+"/big")),
		b.measure(row{Name: "HTTPS download 64 MiB", Unit: "MB/s", Original: 14.3, Bar: 45, more: true}, 7, fetch(secure+"/big")),
		b.measure(row{Name: "HTTPS small requests, one client, 50 URLs", Unit: "ms", Original: 420, Bar: 8}, 7, func() (float64, error) {
			took, err := curl(ctx, s, slices.Repeat([]string{secure + "/small"}, urls)...)
			return ms(took) / urls, err
		}),
		b.measure(row{Name: "HTTPS first request of a fresh process", Unit: "ms", Original: 646, Bar: 200}, 15, func() (float64, error) {
			took, err := curl(ctx, s, secure+"/small")
			return ms(took), err
		}),
		b.besideFlood(ctx, servers),
	)
}

// curl fetches URLs one after another, and tells how long it took to run it.
func curl(ctx context.Context, s *sandbox.Session, urls ...string) (time.Duration, error) {
	argv := []string{"curl", "-sSf"}
	for _, u := range urls {
		argv = append(argv, "-o", "/dev/null", u)
	}
	var out bytes.Buffer
	began := time.Now()
	exit, err := s.Run(ctx, sandbox.Command{Argv: argv, Stdout: &out, Stderr: &out})
	took := time.Since(began)
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("curl: exit code %d: %s", exit.Code, out.String())
	}
	return took, err
}

// besideFlood measures how much longer requests of one session take while another one
// floods the host: the median's share of the quiet one.
func (b *bench) besideFlood(ctx context.Context, servers *served) error {
	r := row{Name: "HTTP beside a flood, p50 in times of the quiet one", Unit: "x", Bar: 2}
	if b.skips(r) {
		return nil
	}
	pair := make([]*sandbox.Session, 2)
	for i := range pair {
		s, err := b.host.Create(ctx, sandbox.Options{Image: b.image, Network: servers.network, Limits: sandbox.Limits{CPUs: 1}})
		if err != nil {
			return err
		}
		defer s.Close()
		pair[i] = s
	}
	good, bad := pair[0], pair[1]
	// One process makes all requests, and says how long each took.
	url := "http://example.com:" + port(servers.plain) + "/small"
	p50 := func() (float64, error) {
		var out, errs bytes.Buffer
		exit, err := good.Run(ctx, sandbox.Command{
			Shell: fmt.Sprintf("for i in $(seq 60); do echo url=%s; echo output=/dev/null; done | curl -sSf -w '%%{time_total}\\n' -K -", url), Stdout: &out, Stderr: &errs,
		})
		if err != nil || exit.Code != 0 {
			return 0, errors.Join(err, fmt.Errorf("curl: exit code %d: %s", exit.Code, errs.String()))
		}
		var times []float64
		for line := range strings.Lines(out.String()) {
			var v float64
			if _, err := fmt.Sscan(line, &v); err != nil {
				return 0, fmt.Errorf("curl wrote %q: %w", line, err)
			}
			times = append(times, v)
		}
		slices.Sort(times)
		return times[len(times)/2], nil
	}
	if _, err := p50(); err != nil {
		return err
	}
	quiet, err := p50()
	if err != nil {
		return err
	}
	flooding, stop := context.WithCancel(ctx)
	begun, ended := newSignal(), make(chan error, 1)
	go func() {
		_, err := bad.Run(flooding, sandbox.Command{
			Shell: fmt.Sprintf("ulimit -n 4096; exec python3 - example.com %s 60", port(servers.plain)), Stdin: strings.NewReader(inguest.Flood), Stdout: begun, Stderr: begun,
		})
		ended <- err
	}()
	defer func() { stop(); <-ended }()
	select {
	case <-begun.seen:
	case err := <-ended:
		ended <- err
		return fmt.Errorf("the flood ended before it began: %w", err)
	}
	return b.measure(r, 7, func() (float64, error) {
		v, err := p50()
		return v / quiet, err
	})
}

// signal is a writer that closes seen at the first byte.
type signal struct {
	seen chan struct{}
	done bool
}

func newSignal() *signal { return &signal{seen: make(chan struct{})} }

// Write implements io.Writer.
func (s *signal) Write(p []byte) (int, error) {
	if !s.done && len(p) > 0 {
		s.done = true
		close(s.seen)
	}
	return len(p), nil
}
