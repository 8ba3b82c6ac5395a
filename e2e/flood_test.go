package e2e

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/e2e/inguest"
	"github.com/gondolin-go/gondolin/netguard/policy"
	"github.com/gondolin-go/gondolin/sandbox"
)

// TestAFloodOfAGuestDoesNotGrowTheHost lets one guest connect and look up as often as it
// can, read nothing and send a byte a second: this process's memory hardly grows, and
// another session is served all the while.
func TestAFloodOfAGuestDoesNotGrowTheHost(t *testing.T) {
	length := time.Duration(amount(15, 60)) * time.Second
	defer debug.SetGCPercent(debug.SetGCPercent(50)) // as in gondolin-mcp
	big := make([]byte, 8<<20)
	_, _ = rand.Read(big)
	o := newOutside(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/big" {
			w.Write(big)
		}
		io.WriteString(w, "well\n")
	}), nil)
	open := []string{"127.0.0.1"}
	p, err := policy.Compile(policy.Spec{Rules: []policy.Rule{{
		Name: "flood", Action: policy.ActionAllow, Hosts: []string{"example.com", "*.flood.example"}, AllowAddresses: open,
		Ports: []string{fmt.Sprint(portOf(t, o.plain)), fmt.Sprint(portOf(t, o.secure))},
	}}})
	require.NoError(t, err)
	o.network.Policy = p
	opts := small
	opts.Network = o.network
	h := newHost(t, sandbox.HostOptions{})
	bad, good := newSession(t, h, opts), newSession(t, h, opts)
	require.Equal(t, "well", sh(t, good, "curl -sS "+o.url(t, true)))
	_, err = bad.WriteFile(t.Context(), "/root/flood.py", bytes.NewReader([]byte(inguest.Flood)), sandbox.WriteOptions{})
	require.NoError(t, err)

	debug.FreeOSMemory()
	grown := resetPeak(t)
	begun := &signalled{word: []byte("begun"), seen: make(chan struct{})}
	type end struct {
		exit sandbox.Exit
		err  error
	}
	ended := make(chan end, 1)
	go func() {
		exit, err := bad.Run(t.Context(), sandbox.Command{
			Shell:  fmt.Sprintf("ulimit -n 4096; exec python3 /root/flood.py example.com %d %f", portOf(t, o.plain), length.Seconds()),
			Stdout: begun, Stderr: begun, Timeout: length + 2*time.Minute,
		})
		ended <- end{exit, err}
	}()
	<-begun.seen
	served := 0
	var e end
	for over := false; !over; {
		select {
		case e = <-ended:
			over = true
		default:
			require.Equal(t, "well", sh(t, good, "curl -sS --max-time 60 "+o.url(t, true)), "the other session is served")
			served++
		}
	}
	require.NoError(t, e.err)
	require.Zero(t, e.exit.Code, begun.text.String())
	peak := grown()
	t.Logf("connects and names: %s; the other session's requests: %d; memory grew by %d MiB", begun.text.String(), served, peak>>20)
	require.Less(t, peak, int64(100<<20))
	require.NotZero(t, served)
	require.Equal(t, "well", sh(t, bad, "curl -sS --max-time 60 "+o.url(t, true)), "and the guest itself, once it has ended")
}

// signalled closes seen when a word has been written, which comes in one piece.
type signalled struct {
	word []byte
	seen chan struct{}
	text bytes.Buffer
	done bool
}

func (s *signalled) Write(b []byte) (int, error) {
	s.text.Write(b)
	if !s.done && bytes.Contains(s.text.Bytes(), s.word) {
		s.done = true
		close(s.seen)
	}
	return len(b), nil
}
