//go:build linux

package sandboxd

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCommandsWaitWhileProcessesAreHeldAndStartInOneMachineOnly(t *testing.T) {
	for _, copied := range []bool{false, true} {
		d := &door{}
		require.True(t, d.enter())
		require.False(t, d.shut(5*time.Millisecond), "somebody is inside")
		d.leave()
		require.True(t, d.shut(time.Second))
		in := make(chan bool)
		go func() { in <- d.enter() }()
		require.Eventually(t, func() bool {
			waits := !d.entry.TryLock()
			if !waits {
				d.entry.Unlock()
			}
			return waits
		}, 5*time.Second, time.Millisecond)
		if copied {
			d.copies.Add(1)
		}
		d.open()
		require.Equal(t, !copied, <-in)
		if !copied {
			d.leave()
		}
		require.True(t, d.enter(), "after it, as before")
	}
}
