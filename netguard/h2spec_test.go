package netguard

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

// deviations are what h2spec finds and net/http decides; docs/network.md has the reasons.
var deviations = []string{"http2/3.5/2", "http2/6.5.3/1", "http2/8.1.2.2/1", "http2/8.1.2.2/2"}

// TestH2SpecFindsOnlyTheKnownDeviations has h2spec for the guest.
func TestH2SpecFindsOnlyTheKnownDeviations(t *testing.T) {
	ts := plainServer(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("body ", 1000)) })
	r := newRig(t, rigOptions{rules: allowAll("127.0.0.1")})
	front, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := portOf(t, front.Addr().String())
	r.serve(front.Addr().String(), ts)
	r.wg.Go(func() {
		for {
			conn, err := front.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() {
				r.p.serveHTTP(r.ctx, &Flow{ID: r.flows.Add(1), Conn: conn, Dst: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)}, conn)
			})
		}
	})
	defer front.Close()
	// It prints what it does.
	stdout := os.Stdout
	os.Stdout, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	require.NoError(t, err)
	c := &config.Config{Host: "127.0.0.1", Port: int(port), Path: "/", Timeout: 2 * time.Second, MaxHeaderLen: 4000}
	passed, failed := 0, map[string]string{}
	for _, group := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		group.Test(c)
		passed += group.PassedCount
		findings(group, failed)
	}
	os.Stdout.Close()
	os.Stdout = stdout
	assert.GreaterOrEqual(t, passed, 141)
	for id, what := range failed {
		if !slices.Contains(deviations, id) {
			t.Errorf("%s: %s", id, what)
		}
	}
	for _, id := range deviations {
		assert.Contains(t, failed, id, "mended: take it off the list, and off docs/network.md")
	}
}

// findings collects what failed, by h2spec's names.
func findings(g *spec.TestGroup, into map[string]string) {
	for i, c := range append(slices.Clone(g.Tests), g.StrictTests...) {
		if c.Result != nil && c.Result.Failed {
			into[fmt.Sprintf("%s/%d", g.ID(), i+1)] = fmt.Sprintf("%s: %v", c.Desc, c.Result.Error)
		}
	}
	for _, sub := range g.Groups {
		findings(sub, into)
	}
}
