package sandbox

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// A holder that dies while it ends a session cannot clear up: who asked for the end does, and does not wait for it.
func TestEndingASessionSurvivesTheDeathOfItsHolder(t *testing.T) {
	const id = "abcdefghij"
	base := t.TempDir()
	dir := filepath.Join(base, id)
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.Chmod(base, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, lockName), nil, 0o600)) // which nobody holds
	l, err := net.Listen("unix", filepath.Join(dir, socketName))
	require.NoError(t, err)
	defer l.Close()
	go dyingHolder(t, l, id)

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	a, err := Attach(ctx, base, id, nil)
	require.NoError(t, err)
	defer a.Close()
	asked := time.Now()
	require.NoError(t, a.End(ctx, "test"))
	require.Less(t, time.Since(asked), 2*time.Second)
	require.NoDirExists(t, dir)
}

// dyingHolder answers one program until that wants the session's end.
func dyingHolder(t *testing.T, l net.Listener, id string) {
	conn, err := l.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	var visit wire.Visit
	if wire.WriteHandshake(conn, wire.Announce{Version: wire.Version, Session: id}) != nil || wire.ReadHandshake(conn, &visit) != nil ||
		wire.WriteHandshake(conn, wire.Ready{}) != nil {
		return
	}
	mux, err := wire.Server(conn)
	if err != nil {
		return
	}
	defer mux.Close()
	for {
		st, err := mux.AcceptStream()
		if err != nil {
			return
		}
		var req wire.Request
		if wire.ReadMessage(st, &req) != nil {
			return
		}
		switch req.Op {
		case wire.OpWatch: // never answered
		case wire.OpEnd:
			_ = wire.SendReply(st, nil, nil)
			_, _ = st.Read(make([]byte, 1)) // until it has read that
			return
		default:
			_ = wire.SendReply(st, description{Info: Info{ID: id}}, nil)
			_ = st.Close()
		}
	}
}
