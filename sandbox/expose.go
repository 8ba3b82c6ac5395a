package sandbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gondolin-go/gondolin/sandbox/ingress"
)

// ListenersFile is where the guest declares routes; see ingress.ParseRoutes.
const ListenersFile = "/etc/gondolin/listeners"

// routesEvery is how old what is known of ListenersFile may be: a page loads many files.
const routesEvery = 250 * time.Millisecond

// maxExposed bounds the gateways of a session.
const maxExposed = 16

// IngressOptions say how a session's HTTP servers are reached. The zero value leads a free
// port of an own loopback address to what the guest declares in ListenersFile.
type IngressOptions struct {
	// Listen is host:port; port 0 is a free one. An empty host is a loopback address of the
	// session's own where the system has more than one, so that cookies of other servers on this computer
	// stay theirs: browsers share them between ports. On another than a loopback address requests need the
	// token in the gateway's URL.
	Listen string
	Port   uint16 // of the guest, for all paths; 0: Routes
	Routes []ingress.Route
	Hosts  []string // names that requests may give the gateway, beside its address and localhost

	OnRequest  func(*http.Request) error // see ingress.Options
	OnResponse func(*http.Response) error

	own bool
}

// Ingress is a gateway into a session.
type Ingress struct {
	URL  string // what to open, with the token if it needs one
	Port uint16 // of the guest; 0: by routes
	Own  bool   // Expose made it
	// Secret says that URL holds a token: who knows it gets in, from other computers too.
	Secret bool

	gateway *ingress.Gateway
	session *Session
	closing sync.Once
	closed  error
}

// Close ends the gateway and its connections. The session's end does that too.
func (i *Ingress) Close() error {
	i.closing.Do(func() {
		i.closed = i.gateway.Close()
		i.session.exposed.forget(i)
	})
	return i.closed
}

// Answers says whether something listens on the port now.
func (i *Ingress) Answers(ctx context.Context) bool {
	if i.Port == 0 {
		return false
	}
	conn, err := i.session.dialGuest(ctx, i.Port)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// exposed are a session's gateways.
type exposed struct {
	mu    sync.Mutex
	list  []*Ingress // oldest first
	host  netip.Addr // the session's own address; see ownLoopback
	calls sync.Mutex // held by Expose
}

func (e *exposed) forget(i *Ingress) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = slices.DeleteFunc(e.list, func(o *Ingress) bool { return o == i })
}

// Ingress opens a gateway for HTTP into the guest. It is closed with the session.
func (s *Session) Ingress(ctx context.Context, o IngressOptions) (*Ingress, error) {
	ln, err := s.listen(ctx, o.Listen)
	if err != nil {
		return nil, err
	}
	opts := ingress.Options{
		Dial: s.dialGuest, Routes: s.routesOf(o), Hosts: o.Hosts, OnRequest: o.OnRequest, OnResponse: o.OnResponse,
		Begin: s.use, Logger: s.log,
	}
	if _, port, err := net.SplitHostPort(o.Listen); err == nil && port != "0" {
		opts.Chosen = true
	}
	if !isLoopback(ln.Addr()) {
		opts.Token = strings.ToLower(rand.Text())
	}
	i := &Ingress{Port: o.Port, Own: o.own, Secret: opts.Token != "", gateway: ingress.New(s.life, ln, opts), session: s}
	i.URL = i.gateway.URL()
	s.exposed.mu.Lock()
	full := len(s.exposed.list) >= maxExposed
	if !full {
		s.exposed.list = append(s.exposed.list, i)
	}
	s.exposed.mu.Unlock()
	if full {
		i.Close()
		return nil, fmt.Errorf("the session has %d gateways, the most that it may have: close one: %w", maxExposed, ErrLimit)
	}
	serving := s.work(func() {
		if err := i.gateway.Serve(); err != nil {
			s.log.Warn("serving the session's ingress", "url", i.gateway.Addr(), "err", err)
		}
	}) && s.work(func() {
		<-s.life.Done()
		i.Close()
	})
	if !serving {
		i.Close()
		return nil, s.closedError()
	}
	s.log.Info("the session is reachable", "address", i.gateway.Addr(), "port", o.Port)
	return i, nil
}

// Expose returns the gateway for all paths of a guest's port, and opens one if there is none
// yet. Port 0 is that for the routes of ListenersFile.
func (s *Session) Expose(ctx context.Context, port uint16, o IngressOptions) (*Ingress, error) {
	s.exposed.calls.Lock()
	defer s.exposed.calls.Unlock()
	for _, i := range s.Exposed() {
		if i.Own && i.Port == port {
			return i, nil
		}
	}
	o.Port, o.own = port, true
	return s.Ingress(ctx, o)
}

// Exposed returns the session's gateways, oldest first.
func (s *Session) Exposed() []*Ingress {
	s.exposed.mu.Lock()
	defer s.exposed.mu.Unlock()
	return slices.Clone(s.exposed.list)
}

// listen opens the listener of a gateway.
func (s *Session) listen(ctx context.Context, at string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(at)
	if at == "" {
		host, port, err = "", "0", nil
	}
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil {
		return nil, fmt.Errorf("listening at %q: write host:port, %s: %w", at, "where the port is 0 to 65535", errors.Join(ErrInvalid, err))
	} else if host == "" {
		s.exposed.mu.Lock()
		if !s.exposed.host.IsValid() {
			s.exposed.host = ownLoopback()
		}
		host, port = s.exposed.host.String(), strconv.FormatUint(n, 10)
		s.exposed.mu.Unlock()
	}
	network := "tcp"
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is4() {
		network = "tcp4" // to Go, 0.0.0.0 is all addresses of IPv6 too
	}
	ln, err := new(net.ListenConfig).Listen(ctx, network, net.JoinHostPort(host, port))
	if err != nil {
		return nil, fmt.Errorf("listening for the session's ingress: %w", err)
	}
	return ln, nil
}

func isLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// routesOf returns what a gateway asks for its routes.
func (s *Session) routesOf(o IngressOptions) func(context.Context) ([]ingress.Route, error) {
	routes := o.Routes
	if o.Port != 0 {
		routes = []ingress.Route{{Prefix: "/", Port: o.Port}}
	}
	if routes != nil {
		return func(context.Context) ([]ingress.Route, error) { return routes, nil }
	}
	return (&listeners{s: s, turn: make(chan struct{}, 1)}).routes
}

// listeners are the routes that the guest declares. They are read when a request comes: a session
// that nobody asks anything costs nothing.
type listeners struct {
	s    *Session
	turn chan struct{} // held by who reads

	at    time.Time // when they were looked at
	stamp FileInfo
	known []ingress.Route
	err   error // what is wrong with the file
}

func (l *listeners) routes(ctx context.Context) ([]ingress.Route, error) {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if time.Since(l.at) < routesEvery {
		return l.known, l.err
	}
	info, err := l.s.Stat(ctx, ListenersFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		l.known, l.err, l.stamp = nil, nil, FileInfo{}
	case err != nil:
		return nil, err
	case info.Type != "file":
		l.known, l.err, l.stamp = nil, fmt.Errorf("it is no file but of type %s", info.Type), FileInfo{}
	case info != l.stamp:
		text, err := l.read(ctx)
		if err != nil {
			return nil, err
		}
		l.known, l.err = ingress.ParseRoutes(text)
		l.stamp = info
	}
	l.at = time.Now()
	return l.known, l.err
}

func (l *listeners) read(ctx context.Context) ([]byte, error) {
	r, _, err := l.s.Open(ctx, ListenersFile, 0, ingress.MaxRoutesFile+1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, ingress.MaxRoutesFile+1))
}
