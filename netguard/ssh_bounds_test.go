package netguard

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

func TestSSHCarriesLargeInputAndOutputUnchanged(t *testing.T) {
	r := newSSHRig(t, nil, everything())
	s, err := r.dial().NewSession()
	require.NoError(t, err)
	data := make([]byte, 32<<20)
	_, _ = rand.Read(data)
	s.Stdin = bytes.NewReader(data)
	sum := sha256.New()
	s.Stdout = sum
	began := time.Now()
	require.NoError(t, s.Run("cat"))
	t.Logf("%.0f MB/s each way at once", 32*1.048576/time.Since(began).Seconds())
	want := sha256.Sum256(data)
	assert.Equal(t, want[:], sum.Sum(nil))
	e := r.last()
	assert.Equal(t, int64(len(data)), e.Sent)
	assert.Equal(t, int64(len(data)), e.Received)
	assert.Zero(t, r.g.ssh.backlog.Load())
}

func TestSSHAStalledChannelHoldsUpNoOther(t *testing.T) {
	r := newSSHRig(t, nil, everything())
	c := r.dial()
	s, err := c.NewSession()
	require.NoError(t, err)
	out, err := s.StdoutPipe()
	require.NoError(t, err)
	in, err := s.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, s.Start("exec cat /dev/zero")) // neither side reads
	wrote := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(in, rand.Reader)
		wrote <- n
	}()
	for range 3 {
		got, _, _ := r.run(c, "head -c 8000000 /dev/zero", "")
		assert.Len(t, got, 8000000)
	}
	_, err = io.CopyN(io.Discard, out, 8<<20)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	assert.Less(t, <-wrote, int64(16<<20), "what nobody reads is not taken from the guest")
	require.Eventually(t, func() bool { return r.server.runs() == 0 }, 10*time.Second, time.Millisecond)
}

func TestSSHACommandEndsWhenTheGuestLeaves(t *testing.T) {
	r := newSSHRig(t, nil, everything())
	c := r.dial()
	s, err := c.NewSession()
	require.NoError(t, err)
	require.NoError(t, s.Start("exec sleep 60"))
	other, err := c.NewSession()
	require.NoError(t, err)
	require.NoError(t, other.Start("exec sleep 61"))
	require.Eventually(t, func() bool { return r.server.runs() == 2 }, 5*time.Second, time.Millisecond)
	require.NoError(t, s.Close())
	require.Eventually(t, func() bool { return r.server.runs() == 1 }, 5*time.Second, time.Millisecond)
	require.NoError(t, c.Close())
	require.Eventually(t, func() bool { return r.server.runs() == 0 }, 5*time.Second, time.Millisecond)
	assert.Contains(t, r.last().Reason, "the guest broke it off")
}

func TestSSHInputSentBeforeTheGuestLeavesArrives(t *testing.T) {
	r := newSSHRig(t, nil, everything())
	c := r.dial()
	s, err := c.NewSession()
	require.NoError(t, err)
	in, err := s.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, s.Start("cat >got; mv got done"))
	_, err = io.WriteString(in, "last words")
	require.NoError(t, err)
	in.Close()
	s.Close()
	c.Close()
	require.Eventually(t, func() bool { return r.last().Sent == 10 }, 5*time.Second, time.Millisecond)
}

func TestSSHChannelsAndConnectionsAreBounded(t *testing.T) {
	r := newSSHRig(t, nil, everything())
	c := r.dial()
	for range maxSSHChannels {
		_, reqs, err := c.OpenChannel("session", nil)
		require.NoError(t, err)
		go ssh.DiscardRequests(reqs)
	}
	_, _, err := c.OpenChannel("session", nil)
	assert.ErrorContains(t, err, "too many SSH channels")
	clients := []*ssh.Client{c}
	for range maxSSHConns - 1 {
		clients = append(clients, r.dial())
	}
	conn, err := net.Dial("tcp", r.front.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.ReadAll(conn)
	_ = err // a reset, or an end
	denials := r.g.Denials(0)
	assert.Contains(t, denials[len(denials)-1].Reason, "32 SSH connections are open")
	for _, c := range clients {
		c.Close()
	}
	require.Eventually(t, func() bool {
		r.g.ssh.mu.Lock()
		defer r.g.ssh.mu.Unlock()
		return len(r.g.ssh.conns) == 0 && r.g.ssh.channels == 0
	}, 5*time.Second, time.Millisecond)
}

func TestSSHTinyPacketsThatNobodyTakesEndTheConnection(t *testing.T) {
	r := newSSHRig(t, nil, everything())
	before := heap()
	c := r.dial()
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	var work sync.WaitGroup
	for range 2 {
		ch, reqs, err := c.OpenChannel("session", nil) // and starts nothing that would read
		require.NoError(t, err)
		work.Add(2)
		go func() { defer work.Done(); ssh.DiscardRequests(reqs) }()
		go func() {
			defer work.Done()
			for {
				if _, err := ch.Write([]byte{1}); err != nil {
					return
				}
			}
		}()
	}
	look := time.NewTicker(300 * time.Millisecond)
	defer look.Stop()
	peak, began := int64(0), time.Now()
	for over := false; !over; {
		select {
		case <-ended:
			over = true
		case <-look.C:
			peak = max(peak, heap()-before)
			require.Less(t, time.Since(began), time.Minute)
		}
	}
	work.Wait()
	t.Logf("held %d MiB", peak>>20)
	assert.Less(t, peak, int64(100<<20))
	require.Eventually(t, func() bool { return r.g.ssh.backlog.Load() == 0 }, 5*time.Second, time.Millisecond)
	out, _, _ := r.run(r.dial(), "echo fine", "")
	assert.Equal(t, "fine\n", out)
}

func TestSSHSilenceEndsAConnectionWithTheReason(t *testing.T) {
	r := newSSHRig(t, func(_ *sshRig, o *Options) { o.Limits.Idle = 300 * time.Millisecond }, everything())
	_, errs, status := r.run(r.dial(), "exec sleep 60", "")
	assert.Equal(t, 1, status)
	assert.Contains(t, errs, "gondolin: failed: nothing was sent for 300ms; ")
	require.Eventually(t, func() bool { return r.server.runs() == 0 }, 5*time.Second, time.Millisecond)
}

func TestSSHADeadServerIsAnAnswer(t *testing.T) {
	r := newSSHRig(t, func(r *sshRig, _ *Options) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		r.port = portOf(t, l.Addr().String())
		l.Close()
	}, everything())
	_, errs, status := r.run(r.dial(), "id", "")
	assert.Equal(t, 1, status)
	assert.Contains(t, errs, "gondolin: failed: connecting to git.example:")
	assert.Contains(t, errs, "connection refused")
}

func TestSSHQuotasHold(t *testing.T) {
	rule := everything()
	rule.Quota = &policy.Quota{Bytes: 100_000, Requests: 2}
	r := newSSHRig(t, nil, rule)
	c := r.dial()
	out, errs, status := r.run(c, "head -c 10000000 /dev/zero", "")
	assert.Equal(t, 1, status)
	assert.LessOrEqual(t, len(out), 100_000)
	assert.Contains(t, errs, "used up")
	_, errs, status = r.run(c, "echo", "")
	assert.Equal(t, 1, status)
	assert.Contains(t, errs, "used up")
}

func TestSSHOnlyHarmlessVariablesPass(t *testing.T) {
	for name, want := range map[string]bool{
		"LANG": true, "LC_ALL": true, "GIT_PROTOCOL": true, "LD_PRELOAD": false, "PATH": false, "GIT_SSH_COMMAND": false, "LANGUAGE": false, "": false,
		"LC_" + strings.Repeat("x", 100): false, "LC_A\nB": false,
	} {
		_, ok := parseSSHEnv(ssh.Marshal(sshEnv{name, "x"}))
		assert.Equal(t, want, ok, name)
	}
	_, ok := parseSSHEnv(ssh.Marshal(sshEnv{"LANG", strings.Repeat("x", maxSSHEnvValue+1)}))
	assert.False(t, ok)
	_, ok = parseSSHEnv([]byte{0, 0, 0, 9})
	assert.False(t, ok)
}

func FuzzSSHRequests(f *testing.F) {
	f.Add("exec", ssh.Marshal(sshText{"git-upload-pack 'o/r'"}))
	f.Add("env", ssh.Marshal(sshEnv{"LANG", "C"}))
	f.Add("direct-tcpip", ssh.Marshal(sshDirect{"db.example", 5432, "::1", 1}))
	f.Add("shell", []byte{})
	f.Fuzz(func(t *testing.T, kind string, payload []byte) {
		if call, err := parseSSHStart(kind, payload); err == nil && kind == "exec" && !bytes.Equal(ssh.Marshal(sshText{call.Command}), payload) {
			t.Fatal("what is judged is not what was sent")
		}
		if v, ok := parseSSHEnv(payload); ok && (!plainText(v.Value) || !strings.HasPrefix(v.Name, "LC_") && v.Name != "LANG" && v.Name != "GIT_PROTOCOL") {
			t.Fatal(v)
		}
		if call, out, err := parseSSHDirect(payload); err == nil {
			var d sshDirect
			if ssh.Unmarshal(out, &d) != nil || net.JoinHostPort(d.Host, fmt.Sprint(d.Port)) != call.Command || d.OriginHost != "127.0.0.1" {
				t.Fatal(d)
			}
		}
		parseSSHSignal(payload)
	})
}
