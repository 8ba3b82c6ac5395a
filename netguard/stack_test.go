package netguard

import (
	"bytes"
	"crypto/rand"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A guest that looks up an allowed name of the address does not make the map of the address that name's.
func TestAMapOfAnAddressIsJudgedAsTheAddress(t *testing.T) {
	g := &Guard{maps: map[mapKey]mapTarget{{"192.0.2.7", 5432}: {"tcp", "127.0.0.1:1"}, {"b.example", 22}: {"tcp", "127.0.0.1:2"}}}
	f := &openFlow{Flow: Flow{Dst: netip.MustParseAddrPort("192.0.2.7:5432")}, names: []string{"a.example", "b.example"}}
	_, ok := g.mapped(f)
	require.True(t, ok)
	assert.Equal(t, "192.0.2.7", f.Host())
	f = &openFlow{Flow: Flow{Dst: netip.MustParseAddrPort("192.0.2.7:22")}, names: []string{"a.example", "b.example"}}
	_, ok = g.mapped(f)
	require.True(t, ok)
	assert.Equal(t, "b.example", f.Host())
}

func TestAGuestReachesWhatIsMapped(t *testing.T) {
	server := echoServer(t)
	g := newTestGuest(t, Options{
		Policy: allowing(t, "pg.internal"),
		Maps:   []Map{{Host: "pg.internal", Port: 5432, To: server}},
	})
	for _, network := range []string{"tcp4", "tcp6"} {
		conn, err := g.Dial(t.Context(), network, "pg.internal:5432")
		require.NoError(t, err)
		data := make([]byte, 3<<20)
		_, _ = rand.Read(data)
		go func() {
			_, _ = conn.Write(data)
			_ = conn.(interface{ CloseWrite() error }).CloseWrite()
		}()
		got, err := io.ReadAll(conn)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(data, got), network)
		conn.Close()
	}
	require.Eventually(t, func() bool { return g.Guard.Stats().Flows == 0 }, 5*time.Second, 10*time.Millisecond)
}

func TestARefusedConnectionIsResetAtOnce(t *testing.T) {
	g := newTestGuest(t, Options{Policy: allowing(t, "ok.example")})
	begin := time.Now()
	for _, host := range []string{"192.0.2.1", "2001:db8::1", "169.254.169.254", "198.18.0.1", "198.19.7.7"} {
		_, err := g.DialTCP(host, 80)
		assert.ErrorContains(t, err, "refused", host)
	}
	assert.Less(t, time.Since(begin), time.Second)
	denials := g.Guard.Denials(0)
	require.Len(t, denials, 5)
	assert.Equal(t, "192.0.2.1", denials[0].Host)
	assert.Equal(t, uint16(80), denials[0].Port)
	assert.NotEmpty(t, denials[0].Reason)
}

func TestDNSIsAnsweredByWhateverAddressIsAsked(t *testing.T) {
	g := newTestGuest(t, Options{Policy: allowing(t, "ok.example")})
	m := new(dns.Msg).SetQuestion("ok.example.", dns.TypeA)
	b, err := m.Pack()
	require.NoError(t, err)
	for _, to := range []string{"8.8.8.8", "2001:4860:4860::8888"} {
		answer, err := g.UDP(netip.MustParseAddr(to), 53, b)
		require.NoError(t, err)
		in := new(dns.Msg)
		require.NoError(t, in.Unpack(answer))
		require.Len(t, in.Answer, 1)
	}
}
