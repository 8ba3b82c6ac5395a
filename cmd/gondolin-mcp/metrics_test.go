package main

import (
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/netguard"
	"github.com/gondolin-go/gondolin/sandbox"
)

func TestMetricsCountWhatTheNetworkDecidesAndWhatIsRun(t *testing.T) {
	b := boxes(t, nil, "--audit=false")
	n, err := b.network(t.Context())
	require.NoError(t, err)
	rec, err := n.Recorder("vm-1")
	require.NoError(t, err)
	for _, e := range []netguard.Event{
		{Protocol: "https", Host: "a.example", Verdict: "allow"},
		{Protocol: "https", Host: "a.example", Verdict: "allow", Status: 200, Sent: 10, Received: 3000, Duration: time.Second},
		{Protocol: "ssh", Host: "b.example", Verdict: "deny", Reason: "no"},
		{Protocol: "https", Host: "c.example", Verdict: "error", Status: 502, Duration: time.Second},
		{Protocol: "made up by a guest", Verdict: "deny"},
	} {
		require.NoError(t, rec.Record(e))
	}
	b.metrics.ran(sandbox.Exit{Duration: time.Second}, nil)
	b.metrics.ran(sandbox.Exit{Code: 3, Duration: 20 * time.Millisecond}, nil)
	b.metrics.ran(sandbox.Exit{Code: 143, Signal: "SIGTERM", TimedOut: true}, nil)

	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	at := l.Addr().String()
	require.NoError(t, l.Close())
	stop, err := b.metrics.serve(t.Context(), at, func(err error) { t.Error(err) })
	require.NoError(t, err)
	defer stop()
	_, err = b.metrics.serve(t.Context(), at, nil)
	assert.ErrorContains(t, err, "metrics.listen", "the mistake names the key")
	rebound, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+at+"/metrics", nil)
	require.NoError(t, err)
	rebound.Host = "page.example:9464"
	refused, err := http.DefaultClient.Do(rebound)
	require.NoError(t, err)
	require.NoError(t, refused.Body.Close())
	assert.Equal(t, http.StatusMisdirectedRequest, refused.StatusCode, "a name that a page of a browser leads here")
	resp, err := http.Get("http://" + at + "/metrics")
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	for _, line := range []string{
		`gondolin_network_decisions_total{protocol="https",verdict="allow"} 1`,
		`gondolin_network_decisions_total{protocol="https",verdict="error"} 1`,
		`gondolin_network_decisions_total{protocol="ssh",verdict="deny"} 1`,
		`gondolin_network_decisions_total{protocol="other",verdict="deny"} 1`,
		`gondolin_network_bytes_total{direction="received"} 3000`,
		`gondolin_network_bytes_total{direction="sent"} 10`,
		`gondolin_exec_duration_seconds_count{outcome="success"} 1`,
		`gondolin_exec_duration_seconds_count{outcome="failure"} 1`,
		`gondolin_exec_duration_seconds_count{outcome="timeout"} 1`,
		`gondolin_sessions_started_total 0`,
		`gondolin_network_denials_total 0`,
		`gondolin_network_flows 0`,
	} {
		assert.Contains(t, string(text), line+"\n")
	}
	assert.NotContains(t, string(text), "example", "no host is told")
}
