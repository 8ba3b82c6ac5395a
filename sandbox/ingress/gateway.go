package ingress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"
)

// Bounds of one gateway.
const (
	maxConns       = 256
	maxHeader      = 64 << 10  // of a request
	maxGuestHeader = 256 << 10 // of an answer
	maxIdle        = 4         // connections to the guest that are kept for the next request
	headTime       = 20 * time.Second
	idleTime       = 2 * time.Minute
	guestIdleTime  = 30 * time.Second
)

// What Dial may say of a connection that it could not make.
var (
	ErrNobody = errors.New("nothing listens on that port")
	ErrBusy   = errors.New("too many connections")
)

// Options of a gateway. Dial and Routes are required.
type Options struct {
	// Dial connects to a port of the guest's loopback.
	Dial func(ctx context.Context, port uint16) (net.Conn, error)
	// Routes returns the routes as they are now. It is asked at each request.
	Routes func(ctx context.Context) ([]Route, error)
	Hosts  []string // names that requests may give it, beside its address and localhost
	Token  string   // what requests must have; empty: nothing
	// Chosen says that somebody chose the port, so that it will be another server's later, whose pages
	// must not be those that this guest has left in a browser: nothing is cached, and no service
	// worker installed.
	Chosen bool

	// OnRequest sees a request before the guest does and may change it. An error refuses it: with
	// the status and the words of a *Refusal, or as forbidden.
	OnRequest func(*http.Request) error
	// OnResponse sees the head of an answer and may change it. An error puts a page in its place.
	OnResponse func(*http.Response) error

	Begin  func() (end func()) // called at each request; may be nil
	Logger *slog.Logger        // default: discard
}

// Refusal is an error of a hook that says how to answer.
type Refusal struct {
	Status int // such as http.StatusForbidden
	Reason string
}

func (r *Refusal) Error() string { return r.Reason }

// Gateway serves HTTP of one guest on one listener.
type Gateway struct {
	opts   Options
	names  names
	port   string
	ln     net.Listener
	server *http.Server
	plain  *http.Transport // HTTP/1.1
	h2c    *http.Transport // HTTP/2 without TLS
	proxy  *httputil.ReverseProxy
	life   context.Context // ends with Close, and with it what has left net/http's hands
	end    context.CancelFunc

	mu     sync.Mutex
	closed bool
	served sync.WaitGroup // requests under way
}

// New makes a gateway for a listener, which it owns from then on. Serve serves it.
func New(ctx context.Context, ln net.Listener, o Options) *Gateway {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	g := &Gateway{opts: o, names: newNames(ln.Addr(), o.Hosts), ln: netutil.LimitListener(ln, maxConns)}
	_, g.port, _ = net.SplitHostPort(ln.Addr().String())
	g.life, g.end = context.WithCancel(ctx)
	g.plain, g.h2c = g.transport(false), g.transport(true)
	log := slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug)
	g.proxy = &httputil.ReverseProxy{
		Rewrite: rewrite, Transport: roundTripper(g.roundTrip), ModifyResponse: g.onResponse, ErrorHandler: g.failed,
		FlushInterval: -1, ErrorLog: log,
	}
	g.server = &http.Server{
		Handler: g, ReadHeaderTimeout: headTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader, ErrorLog: log,
		DisableGeneralOptionsHandler: true,
		BaseContext:                  func(net.Listener) context.Context { return g.life },
		ConnContext:                  func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		Protocols:                    protocols(true, true), HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 100},
	}
	return g
}

func protocols(h1, h2 bool) *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(h1)
	p.SetUnencryptedHTTP2(h2)
	return p
}

func (g *Gateway) transport(h2 bool) *http.Transport {
	return &http.Transport{
		Protocols: protocols(!h2, h2), DisableCompression: true, MaxResponseHeaderBytes: maxGuestHeader,
		MaxIdleConns: maxIdle, MaxIdleConnsPerHost: maxIdle, IdleConnTimeout: guestIdleTime, ExpectContinueTimeout: time.Second,
		ReadBufferSize: 64 << 10, WriteBufferSize: 64 << 10,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			_, port, _ := net.SplitHostPort(addr)
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil {
				return nil, err
			}
			return g.opts.Dial(ctx, uint16(n))
		},
	}
}

// Serve serves the listener until Close.
func (g *Gateway) Serve() error {
	err := g.server.Serve(g.ln)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Addr is where it listens.
func (g *Gateway) Addr() net.Addr { return g.ln.Addr() }

// URL is what to open, with the token if there is one.
func (g *Gateway) URL() string {
	u := "http://" + g.ln.Addr().String() + "/"
	if g.opts.Token != "" {
		u += strings.TrimPrefix(tokenPath, "/") + g.opts.Token + "/"
	}
	return u
}

// Close ends the listener and every connection, and waits for their requests.
func (g *Gateway) Close() error {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.end()
	err := errors.Join(g.server.Close(), g.ln.Close())
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	g.served.Wait()
	g.plain.CloseIdleConnections()
	g.h2c.CloseIdleConnections()
	return err
}

// target is what ServeHTTP has found out for the proxy's functions.
type target struct {
	route   Route
	cookies []string // of ours, for the answer
}

type targetKey struct{}

// connKey is that of the client's connection in a request's context.
type connKey struct{}

// ServeHTTP leads one request through the gateway.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return
	}
	g.served.Add(1)
	g.mu.Unlock()
	defer g.served.Done()
	if g.opts.Begin != nil {
		defer g.opts.Begin()()
	}
	onlyWebSockets(r)
	if conn, ok := r.Context().Value(connKey{}).(net.Conn); ok && isUpgrade(r) && r.ProtoMajor == 1 {
		// net/http has no hold on a connection that it has handed over, and a client that reads
		// nothing would keep us from ending.
		defer context.AfterFunc(g.life, func() { conn.Close() })()
	}
	if !g.admit(w, r) {
		return
	}
	routes, err := g.opts.Routes(r.Context())
	if err != nil {
		g.page(w, r, pageRoutes, err.Error())
		return
	}
	if r.Method == http.MethodConnect || !strings.HasPrefix(r.URL.Path, "/") {
		g.page(w, r, pageForm, "")
		return
	}
	if g.opts.Chosen && r.Header.Get("Service-Worker") != "" {
		g.page(w, r, pageWorker, "")
		return
	}
	route, ok := match(routes, r.URL.EscapedPath())
	if !ok {
		g.page(w, r, pageRoute, short(r.URL.Path))
		return
	}
	if g.opts.OnRequest != nil {
		if err := g.opts.OnRequest(r); err != nil {
			g.refuse(w, r, err)
			return
		}
	}
	to := target{route, w.Header()["Set-Cookie"]}
	w.Header().Del("Set-Cookie")
	ctx, cancel := context.WithCancelCause(context.WithValue(r.Context(), targetKey{}, to))
	defer cancel(nil)
	g.proxy.ServeHTTP(&lastWord{ResponseWriter: w, cancel: cancel}, r.WithContext(ctx))
}

// lastWord keeps the guest's informational answers (103 and the like) from the client: they pass by onResponse.
type lastWord struct {
	http.ResponseWriter
	cancel   context.CancelCauseFunc
	informed atomic.Int64
}

// maxInformed is how many informational answers a guest may send before its answer; net/http allows 5 to
// whom nobody listens.
const maxInformed = 16

var errInformed = fmt.Errorf("the server sent more than %d informational answers (1xx) and no other", maxInformed)

// WriteHeader may be called by the connection's goroutine for what comes before the answer.
func (w *lastWord) WriteHeader(code int) {
	switch {
	case code >= 200 || code == http.StatusSwitchingProtocols:
		w.ResponseWriter.WriteHeader(code)
	case w.informed.Add(1) > maxInformed:
		w.cancel(errInformed)
	}
}

// Unwrap is for http.ResponseController.
func (w *lastWord) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// rewrite turns a request into the one that the guest gets. It keeps its Host, by which the
// guest's server makes links and judges origins.
func rewrite(p *httputil.ProxyRequest) {
	route := p.In.Context().Value(targetKey{}).(target).route
	p.Out.URL.Scheme, p.Out.URL.Host = "http", net.JoinHostPort("guest", strconv.Itoa(int(route.Port)))
	p.Out.Host = p.In.Host
	p.SetXForwarded()
	if route.Strip && strip(p.Out.URL, route.Prefix) == nil && route.Prefix != "/" {
		p.Out.Header.Set("X-Forwarded-Prefix", route.Prefix)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// roundTrip speaks HTTP/2 to the guest where the request needs it, which is with gRPC. Other servers
// may know HTTP/1.1 only.
func (g *Gateway) roundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		return g.h2c.RoundTrip(r)
	}
	return g.plain.RoundTrip(r)
}

// onResponse takes off what would outlive the session in a browser, and asks the hook.
func (g *Gateway) onResponse(r *http.Response) error {
	for _, name := range []string{"Alt-Svc", "Clear-Site-Data", "Strict-Transport-Security", headerName} {
		r.Header.Del(name)
	}
	keepTokens(r.Header)
	for _, c := range r.Request.Context().Value(targetKey{}).(target).cookies {
		r.Header.Add("Set-Cookie", c)
	}
	if g.opts.Chosen {
		r.Header.Set("Cache-Control", "no-store")
	}
	if g.opts.OnResponse == nil {
		return nil
	}
	if err := g.opts.OnResponse(r); err != nil {
		return hookError{err}
	}
	return nil
}

// hookError sets an error of OnResponse apart from those of the guest.
type hookError struct{ error }

func (e hookError) Unwrap() error { return e.error }

// failed answers a request that the guest has not answered.
func (g *Gateway) failed(w http.ResponseWriter, r *http.Request, err error) {
	to := r.Context().Value(targetKey{}).(target)
	port := fmt.Sprint(to.route.Port)
	for _, c := range to.cookies {
		w.Header().Add("Set-Cookie", c)
	}
	var hook hookError
	switch {
	case errors.Is(context.Cause(r.Context()), errInformed):
		g.page(w, r, pageFailed, port+": "+errInformed.Error())
	case r.Context().Err() != nil: // nobody is there to read it
	case errors.As(err, &hook):
		g.refuse(w, r, hook.error)
	case errors.Is(err, ErrNobody):
		g.page(w, r, pageNobody, port)
	case errors.Is(err, ErrBusy):
		g.page(w, r, pageBusy, port)
	default:
		g.opts.Logger.Debug("a request to the guest failed", "port", port, "err", err)
		g.page(w, r, pageFailed, port+": "+short(err.Error()))
	}
}

// refuse answers for a hook.
func (g *Gateway) refuse(w http.ResponseWriter, r *http.Request, err error) {
	p := pageRefused
	var refusal *Refusal
	if errors.As(err, &refusal) && refusal.Status >= 400 && refusal.Status < 600 {
		p.status = refusal.Status
	}
	g.page(w, r, p, err.Error())
}
