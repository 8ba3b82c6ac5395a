package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/gondolin-go/gondolin/netguard"
	"github.com/gondolin-go/gondolin/sandbox"
)

// metrics are figures about all sessions for Prometheus. Labels have few values, whatever
// a guest does: no host, path or command is among them.
type metrics struct {
	registry  *prometheus.Registry
	decisions *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	execs     *prometheus.HistogramVec
}

func newMetrics(b *sandboxes) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gondolin_network_decisions_total",
			Help: "Recorded decisions about the network; what was allowed and failed counts as allow and as error. Refusals beyond the record's pace are in gondolin_network_denials_total alone.",
		}, []string{"protocol", "verdict"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gondolin_network_bytes_total", Help: "Bytes of requests and connections that ended, from the guest (sent) and to it (received).",
		}, []string{"direction"}),
		execs: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gondolin_exec_duration_seconds", Help: "How long commands ran that somebody waited for.",
			Buckets: prometheus.ExponentialBuckets(0.005, 4, 9),
		}, []string{"outcome"}),
	}
	m.registry.MustRegister(m.decisions, m.bytes, m.execs, &sessionFigures{b})
	return m
}

// protocols are what the label protocol may say.
var protocols = map[string]bool{"http": true, "https": true, "ws": true, "wss": true, "ssh": true, "tcp": true, "dns": true}

// decided counts what the network has decided.
func (m *metrics) decided(e netguard.Event) {
	done := e.Duration > 0 || e.Status > 0
	if done {
		m.bytes.WithLabelValues("sent").Add(float64(max(e.Sent, 0)))
		m.bytes.WithLabelValues("received").Add(float64(max(e.Received, 0)))
	}
	if e.Verdict == "allow" && done {
		return // the end of what was counted when it began
	}
	protocol := e.Protocol
	if !protocols[protocol] {
		protocol = "other"
	}
	m.decisions.WithLabelValues(protocol, e.Verdict).Inc()
}

// ran counts a command.
func (m *metrics) ran(exit sandbox.Exit, err error) {
	outcome := "success"
	switch {
	case err != nil:
		outcome = "error"
	case exit.TimedOut:
		outcome = "timeout"
	case exit.Signal != "":
		outcome = "signal"
	case exit.Code != 0:
		outcome = "failure"
	}
	m.execs.WithLabelValues(outcome).Observe(exit.Duration.Seconds())
}

// sessionFigures reads the sessions when it is asked.
type sessionFigures struct{ b *sandboxes }

var _ prometheus.Collector = (*sessionFigures)(nil)

var (
	sessionsFigure = prometheus.NewDesc("gondolin_sessions", "Sessions that exist.", []string{"state", "origin"}, nil)
	startedFigure  = prometheus.NewDesc("gondolin_sessions_started_total", "Sessions that have been started.", nil, nil)
	flowsFigure    = prometheus.NewDesc("gondolin_network_flows", "Connections of guests that are open.", nil, nil)
	denialsFigure  = prometheus.NewDesc("gondolin_network_denials_total", "What the network has refused.", nil, nil)
)

// Describe implements prometheus.Collector.
func (*sessionFigures) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{sessionsFigure, startedFigure, flowsFigure, denialsFigure} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (f *sessionFigures) Collect(to chan<- prometheus.Metric) {
	type kind struct{ state, origin string }
	count, flows := map[kind]int{}, 0
	f.b.mu.Lock()
	denials, begun := f.b.denied, f.b.started
	for _, s := range f.b.open {
		info, net := s.Info(), s.NetworkStats()
		count[kind{string(info.State), string(info.Origin)}]++
		flows += net.Flows
		denials += net.Denials
	}
	f.b.mu.Unlock()
	for k, n := range count {
		to <- prometheus.MustNewConstMetric(sessionsFigure, prometheus.GaugeValue, float64(n), k.state, k.origin)
	}
	to <- prometheus.MustNewConstMetric(startedFigure, prometheus.CounterValue, float64(begun))
	to <- prometheus.MustNewConstMetric(flowsFigure, prometheus.GaugeValue, float64(flows))
	to <- prometheus.MustNewConstMetric(denialsFigure, prometheus.CounterValue, float64(denials))
}

// metered is a Recorder that counts.
type metered struct {
	netguard.Recorder
	metrics *metrics
}

// Record implements netguard.Recorder.
func (m metered) Record(e netguard.Event) error {
	m.metrics.decided(e)
	return m.Recorder.Record(e)
}

// scrapeTime bounds one request for the figures.
const scrapeTime = 10 * time.Second

// serve answers at address until stop is called, which waits for it.
func (m *metrics) serve(ctx context.Context, address string, failed func(error)) (stop func(), err error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("serving metrics (metrics.listen): %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", byAddress(l.Addr(), promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: scrapeTime})))
	server := &http.Server{Handler: mux, ReadTimeout: scrapeTime, WriteTimeout: 2 * scrapeTime, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			failed(err)
		}
	}()
	return func() {
		_ = server.Close() // nothing is lost that the next scrape would not have
		<-done
	}, nil
}

// byAddress lets nobody in who calls a listener on loopback by another name: a page in the user's browser
// can have its own name lead here, and would read what it is answered.
func byAddress(at net.Addr, next http.Handler) http.Handler {
	if a, err := netip.ParseAddrPort(at.String()); err != nil || !a.Addr().Unmap().IsLoopback() {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := (&url.URL{Host: r.Host}).Hostname()
		if _, err := netip.ParseAddr(host); err != nil && !strings.EqualFold(host, "localhost") {
			http.Error(w, "use the address that metrics.listen names", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}
