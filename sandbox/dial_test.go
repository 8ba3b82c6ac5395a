package sandbox

import (
	"context"
	"log/slog"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/guest/wire"
	"github.com/gondolin-go/gondolin/sandbox/ingress"
)

// A page that is loaded again and again while the guest says nothing costs a bounded number of
// goroutines, and each load ends.
func TestAGuestThatOpensNoWayInKeepsNobodyAndNothing(t *testing.T) {
	host, guest := net.Pipe()
	mux, err := wire.Client(host)
	require.NoError(t, err)
	deaf, err := wire.Server(guest) // takes requests and answers none
	require.NoError(t, err)
	defer deaf.Close()
	s := &Session{}
	s.init(t.Context(), "deaf", slog.New(slog.DiscardHandler))
	s.setMux(mux)
	before := runtime.NumGoroutine()
	var last error
	for range 5 * wire.MaxDials {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		_, last = s.dialGuest(ctx, 80)
		cancel()
		require.Error(t, last)
	}
	require.ErrorIs(t, last, ingress.ErrBusy)
	require.Less(t, runtime.NumGoroutine(), before+2*wire.MaxDials+20)
	s.cancel()
	mux.Close()
	s.workers.Wait()
}
