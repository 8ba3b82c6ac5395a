//go:build linux

package inguest

import (
	"bytes"
	"context"
	"crypto/tls"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop/grpc_testing"
)

// setting is what the test on the host says, which runs these inside a guest.
func setting(t *testing.T, name string) (context.Context, string) {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		t.Skip("runs inside a guest")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx, v
}

func TestNetWebSocketEchoes(t *testing.T) {
	ctx, url := setting(t, "GONDOLIN_WS")
	ws, _, err := websocket.Dial(ctx, url, nil)
	require.NoError(t, err)
	defer ws.CloseNow()
	ws.SetReadLimit(1 << 20)
	for _, size := range []int{0, 1, 126, 70_000, 500_000} {
		msg := bytes.Repeat([]byte{byte(size)}, size)
		require.NoError(t, ws.Write(ctx, websocket.MessageBinary, msg))
		kind, got, err := ws.Read(ctx)
		require.NoError(t, err)
		require.Equal(t, websocket.MessageBinary, kind)
		require.True(t, bytes.Equal(msg, got), "a message of %d bytes", size)
	}
	require.NoError(t, ws.Ping(ws.CloseRead(ctx)))
	require.NoError(t, ws.Close(websocket.StatusNormalClosure, "bye"))
}

func TestNetGRPCStreamsBothWays(t *testing.T) {
	ctx, addr := setting(t, "GONDOLIN_GRPC")
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{})))
	require.NoError(t, err)
	defer conn.Close()
	stream, err := grpc_testing.NewTestServiceClient(conn).FullDuplexCall(ctx)
	require.NoError(t, err)
	for i := range 50 {
		body := bytes.Repeat([]byte{byte(i)}, i*1000)
		require.NoError(t, stream.Send(&grpc_testing.StreamingOutputCallRequest{Payload: &grpc_testing.Payload{Body: body}}))
		got, err := stream.Recv()
		require.NoError(t, err, "each is answered before the next is sent")
		require.True(t, bytes.Equal(body, got.GetPayload().GetBody()))
	}
	require.NoError(t, stream.CloseSend())
	_, err = stream.Recv()
	require.ErrorContains(t, err, "EOF", "the trailers say that all is well")
	_, err = grpc_testing.NewTestServiceClient(conn).EmptyCall(ctx, &grpc_testing.Empty{})
	require.ErrorContains(t, err, "Unimplemented", "the server's own status")
}

func TestNetDNSAnswersOverUDPAndTCP(t *testing.T) {
	_, _ = setting(t, "GONDOLIN_GRPC")
	conf, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	require.NoError(t, err)
	server := conf.Servers[0] + ":53"
	for _, network := range []string{"udp", "tcp"} {
		client := &dns.Client{Net: network, Timeout: 10 * time.Second}
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
			answer, _, err := client.Exchange(new(dns.Msg).SetQuestion("example.com.", kind), server)
			require.NoError(t, err, network)
			require.Equal(t, dns.RcodeSuccess, answer.Rcode)
			require.NotEmpty(t, answer.Answer)
		}
		denied := new(dns.Msg).SetQuestion("denied.example.", dns.TypeA)
		denied.SetEdns0(1232, false)
		answer, _, err := client.Exchange(denied, server)
		require.NoError(t, err, network)
		require.Equal(t, dns.RcodeNameError, answer.Rcode)
		require.True(t, strings.Contains(answer.String(), "EDE"), "the reason comes along: %s", answer)
	}
}
