package netguard

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/gondolin-go/gondolin/netguard/ca"
)

// heap is what is in use after a collection, in bytes.
func heap() int64 {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

func viewOf(b []byte) *buffer.View { return buffer.NewViewWithData(b) }

// syn is a segment of the guest's that opens a connection.
func syn(dst netip.Addr, srcPort, dstPort uint16) []byte {
	b := make([]byte, header.TCPMinimumSize)
	h := header.TCP(b)
	h.Encode(&header.TCPFields{SrcPort: srcPort, DstPort: dstPort, SeqNum: 1, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 65535})
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, toStack(guest4), toStack(dst), uint16(len(b)))
	h.SetChecksum(^h.CalculateChecksum(sum))
	return packet(guest4, dst, header.TCPProtocolNumber, b)
}

// discardFrames reads what the guard sends until the link ends, and returns the count of
// TCP resets when it does.
func discardFrames(conn net.Conn) chan int {
	done := make(chan int, 1)
	go func() {
		resets := 0
		defer func() { done <- resets }()
		var size [4]byte
		frame := make([]byte, maxFrame)
		for {
			if _, err := io.ReadFull(conn, size[:]); err != nil {
				return
			}
			n := binary.BigEndian.Uint32(size[:])
			if _, err := io.ReadFull(conn, frame[:n]); err != nil {
				return
			}
			if n == 14+20+20 && header.TCP(frame[34:]).Flags().Contains(header.TCPFlagRst) {
				resets++
			}
		}
	}()
	return done
}

func TestASYNFloodHoldsNoMoreThanItsBound(t *testing.T) {
	o := Options{Policy: allowing(t, "ok.example", "192.0.2.1")}
	o.Policy = allowing(t, "192.0.2.1")
	g := newGuard(t, o)
	conn := serveGuard(t, g)
	done := discardFrames(conn)
	before := heap()
	allowed, denied := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for i := range 10_000 {
		writeFrame(t, conn, syn(allowed, uint16(1024+i), uint16(1+i/100)))
		writeFrame(t, conn, syn(denied, uint16(1024+i), uint16(1+i/100)))
	}
	assert.LessOrEqual(t, g.Stats().Flows, defaultHalfOpen)
	assert.Less(t, heap()-before, int64(32<<20))
	assert.LessOrEqual(t, len(g.Denials(0)), maxDenials)
	// Nobody completes them: they are given up long before the stack would.
	require.Eventually(t, func() bool { return g.Stats().Flows == 0 }, 3*handshakeTimeout, 50*time.Millisecond)
	conn.Close()
	assert.Positive(t, <-done)
}

// flood opens n mapped connections to a server at once.
func flood(t testing.TB, g *testGuest, n int) []net.Conn {
	addrs, err := g.Lookup("pg.internal", dns.TypeA)
	require.NoError(t, err)
	var mu sync.Mutex
	var conns []net.Conn
	var work sync.WaitGroup
	gate := make(chan struct{}, 64)
	for range n {
		work.Add(1)
		gate <- struct{}{}
		go func() {
			defer work.Done()
			defer func() { <-gate }()
			conn, err := g.DialTCP(addrs[0].String(), 5432)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			conns = append(conns, conn)
		}()
	}
	work.Wait()
	return conns
}

func TestMoreConnectionsThanTheLimitAreReset(t *testing.T) {
	g := mappedGuest(t, echoServer(t), Options{Limits: Limits{Flows: 50}})
	conns := flood(t, g, 200)
	assert.LessOrEqual(t, len(conns), 50)
	assert.GreaterOrEqual(t, len(conns), 40)
	expectEcho(t, conns[0], "hello")
	denials := g.Guard.Denials(0)
	require.NotEmpty(t, denials)
	assert.Contains(t, denials[0].Reason, "50 connections are open")
	for _, c := range conns {
		c.Close()
	}
	require.Eventually(t, idle(g), 10*time.Second, 10*time.Millisecond)
	expectEcho(t, dialMapped(t, g), "hello")
}

func TestClientsThatNeverReadHoldNoMoreThanTheirBuffers(t *testing.T) {
	var written atomic.Int64
	chunk := make([]byte, 64<<10)
	big := tcpServer(t, func(c net.Conn) {
		for range 200 { // more than the buffers of the host's sockets
			n, err := c.Write(chunk)
			written.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	g := mappedGuest(t, big, Options{})
	// The guest's stack is in this process: its receive buffers are kept small.
	require.Nil(t, g.stack.SetTransportProtocolOption(header.TCPProtocolNumber, &tcpip.TCPReceiveBufferSizeRangeOption{Min: 1024, Default: 4096, Max: 4096}))
	before := heap()
	conns := flood(t, g, defaultFlows)
	require.Greater(t, len(conns), defaultFlows*9/10)
	last := int64(-1)
	require.Eventually(t, func() bool { // all writers are held up
		now := written.Load()
		defer func() { last = now }()
		return now == last
	}, 30*time.Second, 300*time.Millisecond)
	grown := heap() - before
	t.Logf("%d connections that nobody reads hold %d MiB, the guest's stack included", len(conns), grown>>20)
	assert.Less(t, grown, int64(110<<20))
	for _, c := range conns {
		c.Close()
	}
}

func TestServersThatNeverReadHoldNoMoreThanTheBuffers(t *testing.T) {
	stop := make(chan struct{})
	var stopped sync.Once
	deaf := tcpServer(t, func(c net.Conn) {
		_ = c.(*net.TCPConn).SetReadBuffer(4096)
		<-stop
	})
	t.Cleanup(func() { stopped.Do(func() { close(stop) }) })
	g := mappedGuest(t, deaf, Options{})
	require.Nil(t, g.stack.SetTransportProtocolOption(header.TCPProtocolNumber, &tcpip.TCPSendBufferSizeRangeOption{Min: 1024, Default: 4096, Max: 4096}))
	before := heap()
	conns := flood(t, g, 96)
	var written atomic.Int64
	var work sync.WaitGroup
	chunk := make([]byte, 64<<10)
	for _, c := range conns {
		work.Add(1)
		go func() {
			defer work.Done()
			for {
				n, err := c.Write(chunk)
				written.Add(int64(n))
				if err != nil {
					return
				}
				if n == 0 {
					return
				}
			}
		}()
	}
	last := int64(-1)
	require.Eventually(t, func() bool {
		now := written.Load()
		defer func() { last = now }()
		return now == last
	}, 60*time.Second, 500*time.Millisecond)
	grown := heap() - before
	t.Logf("%d uploads that no server reads hold %d MiB, the guest's stack included", len(conns), grown>>20)
	assert.Less(t, grown, int64(110<<20))
	stopped.Do(func() { close(stop) })
	for _, c := range conns {
		c.Close()
	}
	work.Wait()
}

func TestTinyWritesThatNobodyReadsCostNoMoreThanLargeOnes(t *testing.T) {
	wrote := make(chan int, 1)
	stop := make(chan struct{})
	g := newTestGuest(t, Options{Policy: allowing(t, "ok.example"), Hooks: Hooks{OnFlow: func(ctx context.Context, f *Flow) error {
		n := 0
		_ = f.Conn.SetWriteDeadline(time.Now().Add(2 * time.Second))
		for ; n < 4<<20; n++ {
			if _, err := f.Conn.Write([]byte{'x'}); err != nil {
				break
			}
		}
		wrote <- n
		<-stop
		return io.EOF
	}}})
	require.Nil(t, g.stack.SetTransportProtocolOption(header.TCPProtocolNumber, &tcpip.TCPReceiveBufferSizeRangeOption{Min: 1024, Default: 4096, Max: 4096}))
	before := heap()
	conn, err := g.DialTCP("ok.example", 80)
	require.NoError(t, err)
	defer conn.Close()
	n := <-wrote
	t.Logf("%d single bytes hold %d KiB", n, (heap()-before)>>10)
	assert.Less(t, n, 64<<10)
	assert.Less(t, heap()-before, int64(16<<20))
	close(stop)
}

func TestAFlowThatIsNotReadToItsEndMakesRoom(t *testing.T) {
	table := newFlowTable(2)
	dst := netip.MustParseAddrPort("192.0.2.1:1")
	a, b := table.add(dst, nil), table.add(dst, nil)
	assert.Nil(t, table.add(dst, nil))
	a.served, b.served = true, true
	c := table.add(dst, nil)
	require.NotNil(t, c)
	assert.True(t, a.aborted)
	assert.False(t, b.aborted)
	assert.Equal(t, uint64(3), c.ID)
}

func TestRefusalsAreRememberedButDoNotFillTheRecord(t *testing.T) {
	now := time.Now()
	r := &recorded{}
	l := newLedger(r, func() time.Time { return now })
	for i := range 10_000 {
		require.NoError(t, l.Record(Event{Verdict: "deny", Host: fmt.Sprint(i), Reason: "no"}))
	}
	assert.Len(t, r.all(), denialsBurst)
	last := l.since(0)
	assert.Len(t, last, maxDenials)
	assert.Equal(t, "9999", last[maxDenials-1].Host)
	mark := l.seen()
	assert.Empty(t, l.since(mark))
	now = now.Add(time.Second)
	require.NoError(t, l.Record(Event{Verdict: "deny", Host: "x", Reason: "no"}))
	require.NoError(t, l.Record(Event{Verdict: "deny", Host: "x", Reason: "no"}))
	assert.Len(t, l.since(mark), 1)
	assert.Contains(t, r.all()[denialsBurst].Reason, "9800 refusals")
	require.NoError(t, l.Record(Event{Verdict: "allow", Host: "x"}))
	assert.Len(t, l.since(mark), 1)
}

// A guest whose programs do not trust the session fails in a loop.
func TestFailedHandshakesDoNotFillTheRecord(t *testing.T) {
	authority, err := ca.New(ca.Options{Session: "test"})
	require.NoError(t, err)
	log := &recorded{}
	g := newTestGuest(t, Options{Policy: allowing(t, "ok.example"), CA: authority, Recorder: log})
	addrs, err := g.Lookup("ok.example", dns.TypeA)
	require.NoError(t, err)
	began := time.Now()
	const tries = 40
	for range tries {
		conn, err := g.DialTCP(addrs[0].String(), 443)
		require.NoError(t, err)
		require.Error(t, tls.Client(conn, &tls.Config{ServerName: "ok.example", RootCAs: x509.NewCertPool()}).Handshake())
		conn.Close()
	}
	failures := func() (n int) {
		for _, e := range log.all() {
			if e.Verdict == "error" {
				n++
			}
		}
		return n
	}
	require.Eventually(t, func() bool { return idle(g)() && failures() > 0 }, 10*time.Second, 10*time.Millisecond)
	assert.LessOrEqual(t, failures(), 2+int(time.Since(began)/sameDenial), "equal ones within a second are one line")
	require.NoError(t, g.Guard.recorder.settle())
	told := 0
	for _, e := range log.all() {
		var n int
		if at := strings.LastIndex(e.Reason, "("); at >= 0 {
			fmt.Sscanf(e.Reason[at:], "(%d refusals and failed", &n)
		}
		fmt.Sscanf(e.Reason, "%d refusals and failed", &n)
		told += n
	}
	assert.Equal(t, tries, failures()+told, "and how many there were is told")
}

func BenchmarkDownloadThroughAMap(b *testing.B) { benchmarkMap(b, false) }
func BenchmarkUploadThroughAMap(b *testing.B)   { benchmarkMap(b, true) }

func benchmarkMap(b *testing.B, up bool) {
	const size = 64 << 20
	server := tcpServer(b, func(c net.Conn) {
		if up {
			_, _ = io.Copy(io.Discard, c)
			return
		}
		chunk := make([]byte, 256<<10)
		for range size / len(chunk) {
			if _, err := c.Write(chunk); err != nil {
				return
			}
		}
	})
	g := mappedGuest(b, server, Options{})
	b.SetBytes(size)
	for b.Loop() {
		conn, err := g.DialTCP("pg.internal", 5432)
		require.NoError(b, err)
		if up {
			chunk := make([]byte, 256<<10)
			for range size / len(chunk) {
				_, err := conn.Write(chunk)
				require.NoError(b, err)
			}
			require.NoError(b, conn.(interface{ CloseWrite() error }).CloseWrite())
		}
		buf := make([]byte, 256<<10)
		for {
			if _, err := conn.Read(buf); err != nil {
				break
			}
		}
		conn.Close()
	}
}

func BenchmarkConnect(b *testing.B) {
	g := mappedGuest(b, echoServer(b), Options{})
	addrs, err := g.Lookup("pg.internal", dns.TypeA)
	require.NoError(b, err)
	for b.Loop() {
		conn, err := g.DialTCP(addrs[0].String(), 5432)
		require.NoError(b, err)
		conn.Close()
	}
}

func BenchmarkLookup(b *testing.B) {
	g := newGuard(b, Options{Policy: allowing(b, "*.example")})
	q, err := question("ok.example", dns.TypeA).Pack()
	require.NoError(b, err)
	for b.Loop() {
		g.dns.answer(b.Context(), q)
	}
}
