package netguard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// Map leads what the guest connects to at Host and Port to a place of the
// operator's choice, whatever is spoken. The policy has to allow the protocol tcp to Host
// and Port; To is not judged, so that it may be an address that is blocked otherwise.
type Map struct {
	Host string // a name or an address
	Port uint16
	To   string // "127.0.0.1:5432", "db.example:5432" or "unix:/run/postgresql/.s.PGSQL.5432"
}

type mapKey struct {
	host string
	port uint16
}

type mapTarget struct{ network, address string }

// parseMaps checks maps and reports all mistakes at once.
func parseMaps(maps []Map) (map[mapKey]mapTarget, error) {
	out := map[mapKey]mapTarget{}
	var errs []error
	for i, m := range maps {
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("map %d (%s:%d): %w", i+1, m.Host, m.Port, fmt.Errorf(format, args...)))
		}
		host, err := policy.ParseHost(m.Host)
		if err != nil {
			bad("%w", err)
			continue
		}
		key := mapKey{host.String(), m.Port}
		target, err := parseTarget(m.To)
		_, twice := out[key]
		switch {
		case err != nil:
			bad("%w", err)
		case m.Port == 0:
			bad("the port is missing")
		case m.Port == dnsPort:
			bad("port %d is for DNS", dnsPort)
		case twice:
			bad("it is there twice")
		default:
			out[key] = target
		}
	}
	return out, errors.Join(errs...)
}

func parseTarget(to string) (mapTarget, error) {
	if path, ok := strings.CutPrefix(to, "unix:"); ok {
		if !strings.HasPrefix(path, "/") {
			return mapTarget{}, fmt.Errorf("the socket's path %q is not absolute", path)
		}
		return mapTarget{"unix", path}, nil
	}
	host, port, err := net.SplitHostPort(to)
	if err != nil || host == "" {
		return mapTarget{}, fmt.Errorf("%q is neither host:port nor unix:/path", to)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return mapTarget{}, fmt.Errorf("%q has no port from 1 to 65535", to)
	}
	return mapTarget{"tcp", to}, nil
}

// mapped is where a flow is mapped to, if it is.
func (g *Guard) mapped(f *openFlow) (mapTarget, bool) {
	for _, host := range append(f.hosts(), f.Dst.Addr().String()) {
		if m, ok := g.maps[mapKey{host, f.Dst.Port()}]; ok {
			f.meant(host)
			f.setProtocols(policy.TCP)
			return m, true
		}
	}
	return mapTarget{}, false
}

// serveMapped carries a mapped connection.
func (g *Guard) serveMapped(f *openFlow, m mapTarget) {
	d := g.Policy().Decide(policy.Request{Protocol: policy.TCP, Host: f.Host(), Port: f.Dst.Port()})
	d, ok := g.ask(f.ctx, d)
	if ok {
		if err := g.limiter.Request(d); err != nil {
			ok, d.Reason = false, err.Error()
		}
	}
	if !ok {
		g.refuseFlow(f, d)
		f.abort()
		return
	}
	e := Event{Flow: f.ID, Protocol: string(policy.TCP), Host: f.Host(), Port: f.Dst.Port(), Addr: m.address, Verdict: "allow", Rule: d.Rule, Reason: d.Reason}
	if err := g.recorder.Record(e); err != nil {
		g.o.Log.Error("recording a connection; it is refused", "error", err)
		d.Reason = "the decision cannot be recorded"
		g.refuseFlow(f, d)
		f.abort()
		return
	}
	err := g.carry(f, m, d)
	if err != nil {
		e.Verdict, e.Reason = "error", err.Error()
		f.abort()
	}
	e.Sent, e.Received, e.Duration = f.conn.sent.Load(), f.conn.received.Load(), time.Since(f.began)
	if err := g.recorder.Record(e); err != nil {
		g.o.Log.Error("recording the end of a connection", "error", err, "flow", f.ID)
	}
}

func (g *Guard) carry(f *openFlow, m mapTarget, d policy.Decision) error {
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(f.ctx, m.network, m.address)
	if err != nil {
		return fmt.Errorf("connecting to what %s:%d is mapped to: %w", f.Host(), f.Dst.Port(), err)
	}
	defer conn.Close()
	p := &piping{
		idle: g.o.Limits.Idle, buffer: copyBuffer(g.flows.size()), conns: [2]net.Conn{f.conn, conn},
		count: func(n int) error { return g.limiter.Bytes(d, n) },
	}
	return p.run(f.ctx)
}

// halfCloser is a connection of which one direction can be ended.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// piping copies between two connections.
type piping struct {
	idle   time.Duration
	buffer int             // of each direction, in bytes
	count  func(int) error // is asked before bytes are passed on
	conns  [2]net.Conn
	moved  atomic.Int64 // when the last byte did, in ns
	over   atomic.Bool
}

// run returns when both directions have ended, one has failed, nothing has moved for
// idle, count has refused or ctx is done. The end of one direction is passed on, and the
// other goes on.
func (p *piping) run(ctx context.Context) error {
	p.moved.Store(time.Now().UnixNano())
	stop := context.AfterFunc(ctx, p.stop)
	defer stop()
	errs := make(chan error, 1)
	go func() { errs <- p.copy(p.conns[1], p.conns[0]) }()
	err := p.copy(p.conns[0], p.conns[1])
	if other := <-errs; err == nil {
		err = other
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (p *piping) copy(dst, src net.Conn) (err error) {
	defer func() {
		if err != nil {
			p.stop() // the other direction as well
		}
	}()
	buf := make([]byte, p.buffer)
	for {
		last := time.Unix(0, p.moved.Load())
		if err := src.SetReadDeadline(last.Add(p.idle)); err != nil {
			return err
		}
		if p.over.Load() { // stop may have come before the deadline was set
			return net.ErrClosed
		}
		n, err := src.Read(buf)
		if n > 0 {
			p.moved.Store(time.Now().UnixNano())
			if err := p.count(n); err != nil {
				return err
			}
			if err := dst.SetWriteDeadline(time.Now().Add(p.idle)); err != nil {
				return err
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
			p.moved.Store(time.Now().UnixNano())
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			if w, ok := dst.(halfCloser); ok {
				return w.CloseWrite()
			}
			return nil
		case isTimeout(err) && !p.over.Load():
			if time.Since(time.Unix(0, p.moved.Load())) < p.idle {
				continue // the other direction was busy
			}
			return fmt.Errorf("nothing was sent for %s", p.idle)
		default:
			return err
		}
	}
}

// stop makes both directions return.
func (p *piping) stop() {
	p.over.Store(true)
	for _, c := range p.conns {
		_ = c.SetDeadline(time.Unix(1, 0))
	}
}
