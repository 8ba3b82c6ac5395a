package sandbox

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/guest/wire"
)

func TestDenialsAreBoundedAndTheNewestStay(t *testing.T) {
	var l DenialLog
	began := time.Now().Add(-time.Second)
	for i := range 10 * maxDenials {
		l.Add(Denial{Kind: "file", Path: strconv.Itoa(i)})
	}
	got := l.Since(began)
	require.Len(t, got, maxDenials)
	require.Equal(t, strconv.Itoa(10*maxDenials-1), got[maxDenials-1].Path)
	require.Empty(t, l.Since(time.Now()))
}

func TestWhatIsTriedInALoopIsToldOnce(t *testing.T) {
	var l DenialLog
	for range 1000 {
		l.Add(Denial{Kind: "file", What: "write", Path: "/a"})
		l.Add(Denial{Kind: "file", What: "write", Path: "/b"})
	}
	got := l.Since(time.Time{})
	require.Len(t, got, 2)
	require.Equal(t, 1000, got[0].Count)
}

// A guest with long paths must not hide from `inspect` what it was refused.
func TestTheLatestRefusalsFitIntoADescription(t *testing.T) {
	var log DenialLog
	for i := range 2 * maxDenials {
		log.Add(Denial{Kind: "file", What: "write", Path: fmt.Sprint(i, "/", strings.Repeat("x", 4096)), Reason: strings.Repeat("r", 4096)})
	}
	all := log.Since(time.Time{})
	reply := func(list []Denial) error { return wire.SendReply(io.Discard, description{Denials: list}, nil) }
	require.ErrorIs(t, reply(all), wire.ErrTooLarge)
	some := latest(all, maxDescribed)
	require.NoError(t, reply(some))
	require.Greater(t, len(some), 50)
	require.Equal(t, all[len(all)-1], some[len(some)-1])
	require.Equal(t, all, latest(all, 1<<30))
}
