package netguard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

func TestAnAllowedRequestReachesTheServerAsItWasSent(t *testing.T) {
	for _, over := range []string{"http", "https"} {
		t.Run(over, func(t *testing.T) {
			h := func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				w.Header()["Date"] = nil
				w.Header().Set("Server", "theirs")
				w.Header().Set(refusedHeader, "made up")
				fmt.Fprintf(w, "%s %s %s %s %q %q", r.Method, r.RequestURI, r.Host, body, r.Header.Get("X-Mine"), r.Header.Values("X-Forwarded-For"))
			}
			s, port := plainServer(t, h), "80"
			o := rigOptions{rules: allowAll("example.com")}
			if over == "https" {
				s, port = tlsServer(t, h), "443"
				o.roots = rootsOf(s)
			}
			r := newRig(t, o)
			r.serve("example.com:"+port, s)
			req, err := http.NewRequest("POST", over+"://example.com/a%2Fb/%7Ec?x=1&y=%20", strings.NewReader("hello"))
			require.NoError(t, err)
			req.Header.Set("X-Mine", "v")
			req.Header.Set("Proxy-Authorization", "Basic xx")
			resp, err := r.client().Do(req)
			require.NoError(t, err)
			assert.Equal(t, `POST /a%2Fb/%7Ec?x=1&y=%20 example.com hello "v" []`, readBody(t, resp))
			assert.Equal(t, "theirs", resp.Header.Get("Server"))
			assert.NotContains(t, resp.Header, "Date")
			assert.NotContains(t, resp.Header, "Via")
			assert.NotContains(t, resp.Header, refusedHeader)
			e := r.last()
			assert.Equal(t, "allow", e.Verdict)
			assert.Equal(t, "open", e.Rule)
			assert.Equal(t, "/a%2Fb/%7Ec", e.Path)
			assert.Equal(t, 200, e.Status)
			assert.EqualValues(t, 5, e.Sent)
			assert.Equal(t, publicAddr, e.Addr)
			assert.Equal(t, over, e.Protocol)
		})
	}
}

func TestARefusalIsAnAnswerThatNamesRuleAndRemedy(t *testing.T) {
	r := newRig(t, rigOptions{rules: []policy.Rule{
		{Name: "no-admin", Action: policy.ActionDeny, Hosts: []string{"example.com"}, Paths: []string{"/admin/**"}},
		{Name: "read", Action: policy.ActionAllow, Hosts: []string{"example.com"}, Methods: []string{"GET"}},
	}})
	c := r.client()
	for _, tt := range []struct{ method, url, header, rule string }{
		{"GET", "http://example.com/admin/x", "no-admin", "no-admin"},
		{"POST", "https://example.com/x", "default", ""},
		{"GET", "https://other.example/", "default", ""},
	} {
		req, err := http.NewRequest(tt.method, tt.url, nil)
		require.NoError(t, err)
		resp, err := c.Do(req)
		require.NoError(t, err)
		b := readRefusal(t, resp)
		assert.Equal(t, 403, resp.StatusCode)
		assert.Equal(t, tt.header, resp.Header.Get(refusedHeader))
		assert.Equal(t, tt.rule, b.Rule)
		assert.Equal(t, "refused", b.Error)
		assert.NotEmpty(t, b.Reason)
		assert.NotEmpty(t, b.Remedy)
	}
	assert.Zero(t, r.dials.Load(), "nothing may leave for what is refused")
	for _, e := range r.record() {
		assert.Equal(t, "deny", e.Verdict)
	}
}

func TestAnAddressThatThePolicyClosesIsARefusalWithItsReason(t *testing.T) {
	s := plainServer(t, func(http.ResponseWriter, *http.Request) {})
	r := newRig(t, rigOptions{rules: allowAll("internal.example")})
	r.serve("internal.example:80", s, "10.0.0.1", "127.0.0.1")
	resp, err := r.client().Get("http://internal.example/")
	require.NoError(t, err)
	b := readRefusal(t, resp)
	assert.Equal(t, 403, resp.StatusCode)
	assert.Contains(t, b.Reason, "10.0.0.1")
	assert.Contains(t, b.Remedy, "allow_addresses")
	assert.Equal(t, "deny", r.last().Verdict)
}

func TestAPooledConnectionIsOnlyUsedForWhatThePolicyAllowsAtItsAddress(t *testing.T) {
	s := plainServer(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	r := newRig(t, rigOptions{rules: []policy.Rule{
		{Name: "inside", Action: policy.ActionAllow, Hosts: []string{"a.example"}, Ports: []string{"80"}, Paths: []string{"/inside"}, AllowAddresses: []string{"10.0.0.1"}},
		{Name: "rest", Action: policy.ActionAllow, Hosts: []string{"a.example"}, Ports: []string{"80"}},
	}})
	r.serve("a.example:80", s, "10.0.0.1")
	c := r.client()
	resp, err := c.Get("http://a.example/inside")
	require.NoError(t, err)
	assert.Equal(t, "ok", readBody(t, resp))
	resp, err = c.Get("http://a.example/inside")
	require.NoError(t, err)
	assert.Equal(t, "ok", readBody(t, resp))
	assert.EqualValues(t, 1, r.dials.Load(), "the connection is used again")
	resp, err = c.Get("http://a.example/other")
	require.NoError(t, err)
	assert.Contains(t, readRefusal(t, resp).Reason, "10.0.0.1")
	assert.Equal(t, 403, resp.StatusCode)
}

func TestHoleRedirectToAnInternalAddress(t *testing.T) {
	s := plainServer(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://169.254.169.254/latest/meta-data", http.StatusFound)
	})
	r := newRig(t, rigOptions{rules: allowAll("example.com")})
	r.serve("example.com:80", s)
	c := r.client()
	resp, err := c.Get("http://example.com/")
	require.NoError(t, err)
	readBody(t, resp)
	assert.Equal(t, 302, resp.StatusCode)
	resp, err = c.Get(resp.Header.Get("Location"))
	require.NoError(t, err)
	readRefusal(t, resp)
	assert.Equal(t, 403, resp.StatusCode)
	assert.EqualValues(t, 1, r.dials.Load())
}

func TestADecisionThatCannotBeRecordedIsARefusal(t *testing.T) {
	s := plainServer(t, func(http.ResponseWriter, *http.Request) { t.Error("the request left") })
	r := newRig(t, rigOptions{rules: allowAll("example.com")})
	r.serve("example.com:80", s)
	r.broken = errors.New("disk full")
	resp, err := r.client().Get("http://example.com/")
	require.NoError(t, err)
	assert.Equal(t, 503, resp.StatusCode)
	assert.Equal(t, "audit", resp.Header.Get(refusedHeader))
	assert.NotContains(t, readRefusal(t, resp).Reason, "disk full")
	assert.Zero(t, r.dials.Load())
}

func TestHoleAHooksErrorFailsOpen(t *testing.T) {
	hooks := map[string]Hooks{
		"request error":  {OnRequest: func(context.Context, *http.Request) error { return errors.New("not today") }},
		"request panic":  {OnRequest: func(context.Context, *http.Request) error { panic("not today") }},
		"response error": {OnResponse: func(context.Context, *http.Response) error { return errors.New("not today") }},
		"response panic": {OnResponse: func(context.Context, *http.Response) error { panic("not today") }},
		"no header": {OnRequest: func(_ context.Context, r *http.Request) error {
			r.Header = nil
			return nil
		}},
		"no answer": {OnResponse: func(_ context.Context, r *http.Response) error {
			r.StatusCode = 101
			return nil
		}},
	}
	for name, h := range hooks {
		t.Run(name, func(t *testing.T) {
			reached := false
			s := plainServer(t, func(w http.ResponseWriter, _ *http.Request) {
				reached = true
				io.WriteString(w, "the server's")
			})
			r := newRig(t, rigOptions{rules: allowAll("example.com"), hooks: h})
			r.serve("example.com:80", s)
			resp, err := r.client().Get("http://example.com/")
			require.NoError(t, err)
			assert.Equal(t, 403, resp.StatusCode)
			assert.Equal(t, "hook", resp.Header.Get(refusedHeader))
			readRefusal(t, resp)
			assert.Equal(t, h.OnResponse != nil, reached)
		})
	}
}

func TestAHookMayChangeARequestButNotWhereItGoesNorPastThePolicy(t *testing.T) {
	s := plainServer(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Host, " ", r.RequestURI, " ", r.Header.Get("X-Added"))
	})
	r := newRig(t, rigOptions{
		rules: []policy.Rule{
			{Action: policy.ActionDeny, Hosts: []string{"example.com"}, Paths: []string{"/secret"}},
			{Action: policy.ActionAllow, Hosts: []string{"example.com"}},
		},
		hooks: Hooks{
			OnRequest: func(_ context.Context, r *http.Request) error {
				r.Header.Set("X-Added", "yes")
				r.Host, r.URL.Host = "evil.example", "evil.example"
				if r.URL.Path == "/to-secret" {
					r.URL.Path = "/secret"
				}
				return nil
			},
			OnResponse: func(_ context.Context, r *http.Response) error {
				r.Header.Set("X-Seen", "yes")
				return nil
			},
		},
	})
	r.serve("example.com:80", s)
	resp, err := r.client().Get("http://example.com/a?b=c")
	require.NoError(t, err)
	assert.Equal(t, "example.com /a?b=c yes", readBody(t, resp))
	assert.Equal(t, "yes", resp.Header.Get("X-Seen"))
	resp, err = r.client().Get("http://example.com/to-secret")
	require.NoError(t, err)
	assert.Equal(t, 403, resp.StatusCode)
	readRefusal(t, resp)
}

type askFunc func(context.Context, policy.Decision) (bool, error)

func (f askFunc) Ask(ctx context.Context, d policy.Decision) (bool, error) { return f(ctx, d) }

func TestWhatAHumanMustAllowIsRefusedWithoutAYes(t *testing.T) {
	s := plainServer(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	rules := []policy.Rule{{Name: "careful", Action: policy.ActionAsk, Hosts: []string{"example.com"}}}
	for name, tt := range map[string]struct {
		asker  Asker
		status int
	}{
		"nobody": {nil, 403},
		"no":     {askFunc(func(context.Context, policy.Decision) (bool, error) { return false, nil }), 403},
		"error":  {askFunc(func(context.Context, policy.Decision) (bool, error) { return true, errors.New("gone") }), 403},
		"yes":    {askFunc(func(context.Context, policy.Decision) (bool, error) { return true, nil }), 200},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, rigOptions{rules: rules, asker: tt.asker})
			r.serve("example.com:80", s)
			resp, err := r.client().Get("http://example.com/")
			require.NoError(t, err)
			readBody(t, resp)
			assert.Equal(t, tt.status, resp.StatusCode)
			if tt.status == 403 {
				assert.Zero(t, r.dials.Load())
			}
		})
	}
}

func TestQuotasAndRatesAreKept(t *testing.T) {
	s := plainServer(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 1000)) })
	r := newRig(t, rigOptions{rules: []policy.Rule{
		{Name: "two", Action: policy.ActionAllow, Hosts: []string{"a.example"}, Quota: &policy.Quota{Requests: 2}},
		{Name: "slow", Action: policy.ActionAllow, Hosts: []string{"b.example"}, Rate: &policy.Rate{PerSecond: 0.01, Burst: 1}},
		{Name: "small", Action: policy.ActionAllow, Hosts: []string{"c.example"}, Quota: &policy.Quota{Bytes: 1500}},
	}})
	for _, h := range []string{"a", "b", "c"} {
		r.serve(h+".example:80", s)
	}
	get := func(url string) (int, http.Header, error) {
		resp, err := r.client().Get(url)
		require.NoError(t, err)
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, resp.Header, err
	}
	for _, want := range []int{200, 200, 403} {
		status, _, _ := get("http://a.example/")
		assert.Equal(t, want, status)
	}
	get("http://b.example/")
	status, h, _ := get("http://b.example/")
	assert.Equal(t, 429, status)
	assert.NotEmpty(t, h.Get("Retry-After"))
	assert.Equal(t, "slow", h.Get(refusedHeader))
	_, _, err := get("http://c.example/")
	require.NoError(t, err)
	for range 2 {
		status, h, _ = get("http://c.example/")
		assert.Equal(t, 403, status)
		assert.Equal(t, "small", h.Get(refusedHeader))
	}
}

func TestEarlyHints103PassAndTheFinalAnswerFollows(t *testing.T) {
	s := plainServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		w.Header().Set("X-Final", "1")
		io.WriteString(w, "done")
	})
	r := newRig(t, rigOptions{rules: allowAll("example.com")})
	r.serve("example.com:80", s)
	var hints []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		hints = append(hints, fmt.Sprint(code, h.Get("Link")))
		return nil
	}})
	req, err := http.NewRequestWithContext(ctx, "GET", "http://example.com/", nil)
	require.NoError(t, err)
	resp, err := r.client().Do(req)
	require.NoError(t, err)
	assert.Equal(t, "done", readBody(t, resp))
	assert.Equal(t, []string{"103</style.css>; rel=preload"}, hints)
	assert.Empty(t, resp.Header.Get("Link"))
	assert.Equal(t, "1", resp.Header.Get("X-Final"))
}

func TestARequestThatIsNotAllowedAnyMoreEndsWhenThePolicyChanges(t *testing.T) {
	s := plainServer(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begun")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	r := newRig(t, rigOptions{rules: allowAll("example.com")})
	r.serve("example.com:80", s)
	resp, err := r.client().Get("http://example.com/")
	require.NoError(t, err)
	defer resp.Body.Close()
	_, err = io.ReadFull(resp.Body, make([]byte, 5))
	require.NoError(t, err)
	r.p.policyChanged() // still allowed
	none, err := policy.Compile(policy.Spec{})
	require.NoError(t, err)
	r.p.policy = func() *policy.Policy { return none }
	r.p.policyChanged()
	_, err = io.ReadAll(resp.Body)
	require.Error(t, err)
	assert.Contains(t, r.last().Reason, "policy has changed")
}

func TestWhatDoesNotMoveEndsWithAReason(t *testing.T) {
	release := make(chan struct{})
	s := plainServer(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	r := newRig(t, rigOptions{rules: allowAll("example.com"), limits: Limits{Idle: 200 * time.Millisecond}})
	r.serve("example.com:80", s)
	resp, err := r.client().Get("http://example.com/")
	require.NoError(t, err)
	assert.Equal(t, 504, resp.StatusCode)
	assert.Contains(t, readRefusal(t, resp).Reason, "200ms")
}
