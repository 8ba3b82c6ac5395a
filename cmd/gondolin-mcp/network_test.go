package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/netguard"
	"github.com/gondolin-go/gondolin/netguard/policy"
	"github.com/gondolin-go/gondolin/netguard/secret"
	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/sandbox/audit"
	"github.com/gondolin-go/gondolin/tools"
)

func TestTheNetworkOfASessionIsWhatTheConfigurationSays(t *testing.T) {
	t.Setenv("TOKEN_OF_THE_TEST", "hunter2-hunter2")
	t.Setenv("SSH_AUTH_SOCK", "/agent.sock")
	dir := t.TempDir()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	ca := filepath.Join(dir, "ca.pem")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	file := filepath.Join(dir, "config.yaml")
	require.NoError(t, os.WriteFile(file, []byte("version: 1\nnetwork:\n  ssh_agent: true\n  ssh_keys: [key]\n  upstream_ca: [ca.pem]\n  limits: {flows: 7, idle: 1m}\n"), 0o600))
	c, err := configs.Load(configs.Sources{File: file, Flags: parsed(t, "--dns=trusted", "--allow-host=a.test", "--secret=TOKEN_OF_THE_TEST@a.test",
		"--tcp-map=pg.internal:5432=unix:/pg", "--audit-dir="+dir+"/audit")})
	require.NoError(t, err)
	b := newSandboxes(t.Context(), c, slog.New(slog.DiscardHandler))
	defer b.close()
	n, err := b.network(t.Context())
	require.NoError(t, err)

	assert.True(t, n.Policy.Decide(policy.Request{Protocol: policy.TCP, Host: "pg.internal", Port: 5432}).Allowed())
	assert.Equal(t, netguard.DNSTrusted, n.DNS)
	assert.Equal(t, []netguard.Map{{Host: "pg.internal", Port: 5432, To: "unix:/pg"}}, n.Maps)
	assert.Equal(t, netguard.Limits{Flows: 7, HalfOpen: 128, Names: 4096, Sniff: 15 * time.Second, Idle: time.Minute}, n.Limits)
	_, err = server.Certificate().Verify(verifyWith(n.Upstream.TLS.RootCAs))
	require.NoError(t, err)
	assert.Equal(t, "/agent.sock", n.SSH.Agent)
	assert.Equal(t, []string{filepath.Join(dir, "key")}, n.SSH.KeyFiles)
	assert.Contains(t, n.SSH.KnownHosts, "/etc/ssh/ssh_known_hosts")
	set, err := n.Secrets.Session()
	require.NoError(t, err)
	assert.NotContains(t, set.Env()["TOKEN_OF_THE_TEST"], "hunter2")
	assert.NotEmpty(t, set.For(secret.Target{Host: "a.test", Port: 443, TLS: true}))
	assert.Empty(t, set.For(secret.Target{Host: "b.test", Port: 443, TLS: true}))

	rec, err := n.Recorder("vm-1")
	require.NoError(t, err)
	require.NoError(t, rec.Record(netguard.Event{Protocol: "https", Host: "a.test", Port: 443, Method: "GET", Path: "/", Status: 200, Verdict: "allow", Secrets: []string{"T"}, Duration: time.Second}))
	require.NoError(t, n.close("it was closed"))
	results, err := audit.Verify(dir + "/audit")
	require.NoError(t, err)
	require.Len(t, results, 1)
	assert.Empty(t, results[0].Problem)
	assert.Equal(t, audit.StateClosed, results[0].State)
	assert.Error(t, rec.Record(netguard.Event{Verdict: "allow"}), "what cannot be recorded is an error")
	_, err = n.Recorder("vm-1")
	assert.Error(t, err, "and so is a record that cannot be begun")
}

func TestASecretThatCannotBeHadKeepsSessionsFromStartingUntilItCan(t *testing.T) {
	b := boxes(t, nil, "--secret=TOKEN_OF_THE_TEST@a.test")
	_, err := b.network(t.Context())
	assert.ErrorContains(t, err, "the environment variable TOKEN_OF_THE_TEST is not set")
	t.Setenv("TOKEN_OF_THE_TEST", "hunter2-hunter2")
	n, err := b.network(t.Context())
	require.NoError(t, err)
	again, err := b.network(t.Context())
	require.NoError(t, err)
	assert.Same(t, n.Secrets, again.Secrets, "sessions share the store")
}

func TestWithoutAuditNothingIsWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	b := boxes(t, nil, "--audit=false", "--audit-dir="+dir)
	n, err := b.network(t.Context())
	require.NoError(t, err)
	rec, err := n.Recorder("vm-1")
	require.NoError(t, err)
	require.NoError(t, rec.Record(netguard.Event{Protocol: "https", Verdict: "deny"}), "it is only counted")
	require.NoError(t, n.close("it was closed"))
	assert.NoDirExists(t, dir)
}

func TestTheAskerNamesTheSessionAndWithoutAClientNobodyIsAsked(t *testing.T) {
	b := boxes(t, nil, "--audit=false")
	n, err := b.network(t.Context())
	require.NoError(t, err)
	_, err = n.Asker.Ask(t.Context(), policy.Decision{})
	assert.ErrorContains(t, err, "there is nobody to ask")

	var got tools.Question
	b.ask = func(_ context.Context, q tools.Question) (bool, error) { got = q; return true, nil }
	n, err = b.network(t.Context())
	require.NoError(t, err)
	_, err = n.Recorder("vm-9")
	require.NoError(t, err)
	yes, err := n.Asker.Ask(t.Context(), policy.Decision{Rule: "r", Reason: "because"})
	require.NoError(t, err)
	assert.True(t, yes)
	assert.Equal(t, tools.Question{Session: "vm-9", Rule: "r", What: "because"}, got)
}

func TestCommandsAreRecordedBeforeTheyRunAndAfter(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	b := boxes(t, nil, "--audit-dir="+dir)
	r := &record{audit: b.config.Audit}
	require.NoError(t, r.open("vm-1"))
	cmd := sandbox.Command{Argv: []string{"ls", "-l"}}
	reach := func(host string) {
		require.NoError(t, r.Record(netguard.Event{Protocol: "https", Host: host, Port: 443, Verdict: "allow"}))
	}
	reach("before.test")
	first, err := r.runs(cmd)
	require.NoError(t, err)
	reach("first.test")
	second, err := r.runs(cmd)
	require.NoError(t, err)
	reach("either.test")
	require.NoError(t, r.ended(first, cmd, sandbox.Exit{ID: "p1", Code: 2, Duration: time.Second}, nil))
	reach("second.test")
	require.NoError(t, r.ended(second, cmd, sandbox.Exit{}, errors.New("the machine died")))
	reach("after.test")
	job, err := r.runs(cmd)
	require.NoError(t, err)
	r.leave(job, "7")
	reach("job.test")
	r.saw(sandbox.Job{ID: "8", State: sandbox.JobExited})
	r.saw(sandbox.Job{ID: "7", State: sandbox.JobRunning})
	reach("still.test")
	r.saw(sandbox.Job{ID: "7", State: sandbox.JobExited})
	reach("none.test")
	require.NoError(t, r.close("it was closed"))
	out, _, err := runCommand(t, "audit", "show", "--audit-dir="+dir)
	require.NoError(t, err)
	var lines []string
	for line := range strings.Lines(out) {
		lines = append(lines, strings.TrimSpace(line[len("2006-01-02 15:04:05.000"):]))
	}
	assert.Equal(t, []string{
		"session  started",
		"network  allow  https://before.test",
		"exec  command 1  \"ls -l\"  started",
		"network  command 1  allow  https://first.test",
		"exec  command 2  \"ls -l\"  started",
		"network  allow  https://either.test",
		"exec  command 1  \"ls -l\"  -> 2  ended  in 1s",
		"network  command 2  allow  https://second.test",
		"exec  command 2  error  \"ls -l\"  (the machine died)",
		"network  allow  https://after.test",
		"exec  command 3  \"ls -l\"  started",
		"network  command 3  allow  https://job.test",
		"network  command 3  allow  https://still.test",
		"network  allow  https://none.test",
	}, lines[1:15])

	s := &session{record: r}
	_, err = s.Run(t.Context(), cmd)
	assert.ErrorContains(t, err, "what is not recorded does not happen")
	_, err = s.StartJob(t.Context(), cmd)
	assert.ErrorContains(t, err, "what is not recorded does not happen")
}

func TestTheAuditCommandsShowVerifyAndExport(t *testing.T) {
	dir := t.TempDir()
	log, err := audit.Open(dir, "vm-1")
	require.NoError(t, err)
	for _, e := range []audit.Event{
		{Kind: audit.KindNetwork, Protocol: "https", Host: "a.test", Port: 443, Method: "GET", Path: "/ok", Status: 200, Verdict: audit.Allow, Rule: "api", Received: 5, Seconds: 0.2, Done: true},
		{Kind: audit.KindNetwork, Protocol: "https", Host: "b.test\x1b[31m", Port: 443, Method: "GET", Path: "/no", Status: 403, Verdict: audit.Deny, Reason: "no rule"},
	} {
		require.NoError(t, log.Record(e))
	}
	require.NoError(t, log.Close())
	flag := "--audit-dir=" + dir
	out, _, err := runCommand(t, "audit", "verify", flag)
	require.NoError(t, err)
	assert.Contains(t, out, "ok      vm-1  closed, 4 records in 1 file, ")
	out, _, err = runCommand(t, "audit", "show", flag, "--refused")
	require.NoError(t, err)
	assert.Equal(t, 1, strings.Count(out, "\n"))
	assert.Contains(t, out, "network  deny  GET  https://b.test?[31m/no  -> 403  (no rule)\n")
	out, _, err = runCommand(t, "audit", "tail", "vm-1", "-n", "2", flag)
	require.NoError(t, err)
	assert.Equal(t, 2, strings.Count(out, "\n"))
	out, _, err = runCommand(t, "audit", "export", "--har", flag)
	require.NoError(t, err)
	assert.Contains(t, out, `"url": "https://a.test/ok"`)

	path := filepath.Join(dir, "vm-1.000001.jsonl")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, bytes.Replace(text, []byte("/ok"), []byte("/ko"), 1), 0o600))
	out, _, err = runCommand(t, "audit", "verify", flag)
	assert.ErrorContains(t, err, "1 record broken of 1")
	assert.Contains(t, out, "BROKEN  vm-1")
	assert.Contains(t, out, "vm-1.000001.jsonl:3: the record 2 before it is not the one that was written")
}

func TestFollowingARecordPrintsWhatComesLater(t *testing.T) {
	dir := t.TempDir()
	log, err := audit.Open(dir, "vm-1")
	require.NoError(t, err)
	defer log.Close()
	ctx, cancel := context.WithCancel(t.Context())
	out := &lockedText{}
	done := make(chan error, 1)
	reader, last, err := lastRecords(dir, "vm-1", 5)
	require.NoError(t, err)
	require.Len(t, last, 1)
	go func() { done <- followRecord(ctx, out, reader, printRecord, dir) }()
	require.NoError(t, log.Record(audit.Event{Kind: audit.KindExec, Command: "make"}))
	require.Eventually(t, func() bool { return strings.Contains(out.String(), `exec  "make"`) }, 20*time.Second, 10*time.Millisecond)
	assert.NotContains(t, out.String(), "begin")
	require.NoError(t, log.Close())
	second, err := audit.Open(dir, "vm-2")
	require.NoError(t, err)
	defer second.Close()
	require.NoError(t, second.Record(audit.Event{Kind: audit.KindExec, Command: "again"}))
	require.Eventually(t, func() bool { return strings.Contains(out.String(), `exec  "again"`) }, 20*time.Second, 10*time.Millisecond)
	assert.Equal(t, 1, strings.Count(out.String(), "make"), "nothing is shown twice")
	cancel()
	assert.NoError(t, <-done)
}

// reloading is a reloader on a file of the test.
func reloading(t *testing.T) (r *reloader, file string, log *lockedText) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "config.yaml")
	writeRules(t, file, "a.test")
	a := &app{file: file, flags: configs.Flags()}
	c, err := a.load()
	require.NoError(t, err)
	log = &lockedText{}
	return a.newReloader(c, newPolicies(c), slog.New(slog.NewTextHandler(log, nil))), file, log
}

func writeRules(t *testing.T, file, hosts string) {
	t.Helper()
	require.NoError(t, os.WriteFile(file, []byte("version: 1\nnetwork:\n  rules:\n    - {action: allow, hosts: ["+hosts+"]}\n"), 0o600))
}

func allows(p *policy.Policy, host string) bool {
	return p.Decide(policy.Request{Protocol: policy.DNS, Host: host}).Allowed()
}

func TestAChangedPolicyReachesEverySessionAndABrokenFileChangesNothing(t *testing.T) {
	r, file, log := reloading(t)
	var seen []*policy.Policy
	stop := r.policies.follow(func(p *policy.Policy) { seen = append(seen, p) })
	require.Len(t, seen, 1, "a session that came meanwhile has what is in force")
	assert.True(t, allows(seen[0], "a.test"))

	writeRules(t, file, "b.test")
	r.reload("test")
	require.Len(t, seen, 2)
	assert.True(t, allows(seen[1], "b.test"))
	assert.False(t, allows(seen[1], "a.test"))
	assert.Same(t, seen[1], r.policies.current())

	writeRules(t, file, "c.test], nope: [x")
	r.reload("test")
	assert.Len(t, seen, 2)
	assert.Contains(t, log.String(), "the network policy stays as it is")
	assert.Contains(t, log.String(), "unknown key network.rules[0].nope")

	stop()
	require.NoError(t, os.WriteFile(file, []byte("version: 1\nlimits: {cpus: 3}\n"), 0o600))
	r.reload("test")
	assert.Len(t, seen, 2, "a session that ended hears nothing")
	assert.False(t, allows(r.policies.current(), "b.test"))
	assert.Contains(t, log.String(), "other settings changed as well")
}

func TestTheFileIsReadAgainWhenItHasChangedAndStandsStillOrASignalComes(t *testing.T) {
	r, file, log := reloading(t)
	hangup, tick := make(chan os.Signal), make(chan time.Time)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.run(ctx, hangup, tick) }()
	look := func() { tick <- time.Now() }

	look()
	writeRules(t, file, "b.test, b2.test")
	look()
	look()
	look() // the look before has been worked through
	assert.True(t, allows(r.policies.current(), "b.test"))
	assert.Equal(t, 1, strings.Count(log.String(), "was read again"))

	writeRules(t, file, "c.test")
	hangup <- os.Interrupt
	look()
	assert.True(t, allows(r.policies.current(), "c.test"))

	require.NoError(t, os.Remove(file))
	look()
	look()
	look()
	assert.True(t, allows(r.policies.current(), "c.test"), "a file that is gone changes nothing")
	assert.Contains(t, log.String(), "the configuration file is gone")
	cancel()
	<-done
}

type lockedText struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
