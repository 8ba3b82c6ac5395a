package qemu

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBootThatWorksIsLeftAloneOnALoadedHost(t *testing.T) {
	var w bootWatch
	for i := range 1000 { // a hundredth of a processor
		require.NoError(t, w.look(time.Duration(i)*10*time.Millisecond))
	}
}

func TestBootThatStandsStillIsStalled(t *testing.T) {
	w := bootWatch{}
	require.NoError(t, w.look(2*time.Second))
	for i := range idleTicks - 1 {
		require.NoError(t, w.look(2*time.Second+time.Duration(i)*time.Millisecond))
	}
	require.ErrorIs(t, w.look(2*time.Second+14*time.Millisecond), ErrStalled)
}

func TestBootThatWorksForEverIsStalled(t *testing.T) {
	var w bootWatch
	require.NoError(t, w.look(89*time.Second))
	require.ErrorIs(t, w.look(90*time.Second), ErrStalled)
}
