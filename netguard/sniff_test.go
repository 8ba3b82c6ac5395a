package netguard

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// helloBytes is what crypto/tls says first.
func helloBytes(t testing.TB, c *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Client(client, c).Handshake()
	}()
	buf := make([]byte, maxSniff)
	n, err := server.Read(buf)
	require.NoError(t, err)
	server.Close()
	client.Close()
	<-done
	return buf[:n]
}

func TestAClientHelloIsReadHoweverItIsCut(t *testing.T) {
	raw := helloBytes(t, &tls.Config{ServerName: "ok.example", NextProtos: []string{"h2", "http/1.1"}})
	whole, more, err := parseClientHello(raw)
	require.NoError(t, err)
	require.False(t, more)
	assert.Equal(t, &clientHello{serverName: "ok.example", alpn: []string{"h2", "http/1.1"}}, whole)
	for i := range raw {
		_, more, err := parseClientHello(raw[:i])
		require.NoError(t, err)
		require.True(t, more, i)
	}
	var records []byte // one byte in each
	for _, b := range raw[5:] {
		records = append(records, recordHandshake, 3, 1, 0, 1, b)
	}
	again, more, err := parseClientHello(records)
	require.NoError(t, err)
	require.False(t, more)
	assert.Equal(t, whole, again)
}

func TestAClientHelloWithTwoNamesIsRefused(t *testing.T) {
	raw := helloBytes(t, &tls.Config{ServerName: "ok.example"})
	at := bytes.Index(raw, []byte("ok.example")) - 9 // the extension's type
	ext := raw[at : at+4+2+3+len("ok.example")]
	twice := append(bytes.Clone(raw[:at]), append(bytes.Clone(ext), raw[at:]...)...)
	n := len(ext)
	add := func(i int) {
		v := int(twice[i])<<8 | int(twice[i+1]) + 0
		v += n
		twice[i], twice[i+1] = byte(v>>8), byte(v)
	}
	add(3)
	add(7)
	session := int(raw[43])
	suites := int(raw[44+session])<<8 | int(raw[45+session])
	compression := int(raw[46+session+suites])
	add(47 + session + suites + compression)
	_, _, err := parseClientHello(twice)
	assert.ErrorContains(t, err, "twice")
}

func TestMalformedClientHellosAreRefused(t *testing.T) {
	raw := helloBytes(t, &tls.Config{ServerName: "ok.example"})
	change := func(at int, b byte) []byte { c := bytes.Clone(raw); c[at] = b; return c }
	for name, b := range map[string][]byte{
		"SSL 2":           change(1, 2),
		"another message": change(5, 2),
		"absurd length":   change(6, 0xff),
		"empty record":    {recordHandshake, 3, 1, 0, 0},
		"long record":     {recordHandshake, 3, 1, 0xff, 0xff, 1},
		"cut inside":      append([]byte{recordHandshake, 3, 1, 0, 8, 1, 0, 0, 4}, 3, 3, 0, 0),
	} {
		_, more, err := parseClientHello(b)
		assert.Error(t, err, name)
		assert.False(t, more, name)
	}
}

func TestProtocolsAreRecognised(t *testing.T) {
	for text, want := range map[string]sniffedProtocol{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n": sniffedHTTP,
		"PROPFIND /a HTTP/1.0\r\n":          sniffedHTTP,
		"M-SEARCH * HTTP/1.1\r\n":           sniffedHTTP,
		http2Preface:                        sniffedHTTP,
		"SSH-2.0-OpenSSH_9.9\r\n":           sniffedSSH,
	} {
		s, more, err := recognise([]byte(text))
		require.NoError(t, err, text)
		assert.False(t, more, text)
		assert.Equal(t, want, s.protocol, text)
	}
	for _, text := range []string{
		"\x00\x00\x00\x08", "\r\n", " GET / HTTP/1.1\r\n", "HELO mail\r\n", "USER anonymous\r\n", "{\"id\":1}\n",
		"GET /\r\n", "GET / HTTP/2.0\r\n", strings.Repeat("A", 33), "\x80\x2e\x01", "PRI * HTTP/1.1\x00", "*1\r\n$4\r\nPING\r\n",
	} {
		_, more, err := recognise([]byte(text))
		if !more || text != "PRI * HTTP/1.1\x00" {
			assert.Error(t, err, "%q", text)
		}
	}
	long := "GET /" + strings.Repeat("a", maxSniff)
	s, more, err := recognise([]byte(long)[:maxSniff])
	require.NoError(t, err)
	assert.False(t, more)
	assert.Equal(t, sniffedHTTP, s.protocol)
}

func TestSniffedBytesAreReadAgain(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	go func() {
		for _, part := range []string{"GE", "T /x HT", "TP/1.1\r\nHost: OK.Example:80\r\n", "\r\nbody"} {
			_, _ = client.Write([]byte(part))
		}
		client.Close()
	}()
	s, err := sniff(server, time.Second)
	require.NoError(t, err)
	all, err := io.ReadAll(s.conn)
	require.NoError(t, err)
	assert.Equal(t, "GET /x HTTP/1.1\r\nHost: OK.Example:80\r\n\r\nbody", string(all))
	s.head = all
	assert.Equal(t, "ok.example", s.host())
}

func TestAByteASecondDoesNotStretchTheDeadline(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_, _ = client.Write([]byte("A"))
			case <-stop:
				return
			}
		}
	}()
	begin := time.Now()
	_, err := sniff(server, 200*time.Millisecond)
	assert.ErrorContains(t, err, "too few to tell")
	assert.Less(t, time.Since(begin), time.Second)
	close(stop)
	server.Close()
	<-done
}

func FuzzClientHello(f *testing.F) {
	f.Add(helloBytes(f, &tls.Config{ServerName: "ok.example", NextProtos: []string{"h2"}}))
	f.Add([]byte{recordHandshake, 3, 1, 0, 4, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		hello, more, err := parseClientHello(b)
		if err == nil && !more && hello == nil {
			t.Fatal("nothing")
		}
		if err == nil && more && len(b) > 6*maxSniff+64 {
			t.Fatal("it would read for ever")
		}
	})
}

func FuzzRecognise(f *testing.F) {
	for _, s := range []string{"GET / HTTP/1.1\r\n", http2Preface, "SSH-2.0-x", "\x16\x03\x01", "HELO x\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = b[:min(len(b), maxSniff)]
		s, more, err := recognise(b)
		if err == nil && !more && s == nil {
			t.Fatal("nothing")
		}
		if s != nil && err == nil && !more {
			s.head = b
			_ = s.host()
		}
	})
}
