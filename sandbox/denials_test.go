package sandbox

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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
