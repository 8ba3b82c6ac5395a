//go:build linux

package sandboxd

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/gondolin-go/gondolin/guest/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func chunkOf(b []byte) *wire.Chunk {
	c := wire.NewChunk(max(len(b), 1))
	c.Append(b)
	return c
}

func TestBlockingSpoolStopsItsWriterUntilOutputIsAcknowledged(t *testing.T) {
	s := newSpool(minSpool, true, false)
	s.add(wire.FrameStdout, chunkOf(make([]byte, minSpool)))
	added := make(chan struct{})
	go func() {
		s.add(wire.FrameStdout, chunkOf([]byte("more")))
		close(added)
	}()
	select {
	case <-added:
		t.Fatal("a full spool took more")
	case <-time.After(50 * time.Millisecond):
	}
	s.ack(minSpool)
	<-added
	require.Equal(t, int64(4), s.held())
}

func TestAbandonedSpoolLetsItsWriterGoOn(t *testing.T) {
	s := newSpool(minSpool, true, false)
	s.add(wire.FrameStdout, chunkOf(make([]byte, minSpool)))
	var wg sync.WaitGroup
	wg.Go(func() { s.add(wire.FrameStdout, chunkOf([]byte("more"))) })
	s.abandon()
	wg.Wait()
	require.Zero(t, s.held())
	require.Nil(t, s.next(0, nil))
}

func TestRetainedOutputIsReadFromAnyPositionAndOldOutputIsDroppedFirst(t *testing.T) {
	s := newSpool(minSpool, false, true)
	var all bytes.Buffer
	for i := range 1000 {
		b := bytes.Repeat([]byte{byte(i)}, 200)
		all.Write(b)
		s.add(wire.FrameStdout+wire.Kind(i%2), chunkOf(b))
	}
	s.finish()
	require.LessOrEqual(t, s.held(), int64(minSpool))
	got, first := s.copyFrom(0, wire.MaxOutput, 0, nil)
	require.Equal(t, all.Bytes()[first:], got, "what is left is the newest, whole")
	mid := first + 12345
	got, at := s.copyFrom(mid, 100, 0, nil)
	require.Equal(t, mid, at)
	require.Equal(t, all.Bytes()[mid:mid+100], got)
	got, at = s.copyFrom(-1, 50, 0, nil)
	require.Equal(t, int64(all.Len()-50), at)
	require.Equal(t, all.Bytes()[at:], got)
}

func TestCursorWaitsForOutputAndForTheEnd(t *testing.T) {
	s := newSpool(0, false, true)
	var wg sync.WaitGroup
	wg.Go(func() {
		got, _ := s.copyFrom(0, 10, time.Minute, nil)
		require.Equal(t, "late", string(got))
		got, _ = s.copyFrom(4, 10, time.Minute, nil)
		require.Empty(t, got)
	})
	s.add(wire.FrameStdout, chunkOf([]byte("late")))
	s.finish()
	wg.Wait()
	got, _ := s.copyFrom(99, 10, 0, nil)
	require.Empty(t, got, "a cursor past the end is no error")
}

func TestOneByteWritesAreBoundedToo(t *testing.T) {
	s := newSpool(minSpool, false, true)
	for i := range 200000 {
		s.add(wire.FrameStdout+wire.Kind(i%2), chunkOf([]byte{1})) // never joined
	}
	require.Less(t, len(s.chunks), 2000)
}

// Whatever is written, dropped connections and re-reads included, the reader
// gets every byte once and in order.
func TestReaderThatComesBackLosesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSpool(minSpool, true, rapid.Bool().Draw(t, "retain"))
		want := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 1, 30000), 1, 12).Draw(t, "writes")
		var all bytes.Buffer
		for _, b := range want {
			all.Write(b)
		}
		go func() {
			for _, b := range want {
				s.add(wire.FrameStdout, chunkOf(b))
			}
			s.finish()
		}()
		var got []byte
		acked := 0
		for {
			pos := int64(len(got))
			if rapid.IntRange(0, 3).Draw(t, "reconnect") == 0 {
				got = got[:acked] // what was under way is lost
				pos = int64(acked)
			}
			e := s.next(pos, nil)
			if e == nil {
				break
			}
			got = append(got, e.chunk.Payload()[pos-e.off:]...)
			if rapid.Bool().Draw(t, "ack") || len(got)-acked > minSpool/2 {
				acked = len(got)
				s.ack(int64(acked))
			}
		}
		if !bytes.Equal(all.Bytes(), got) {
			t.Fatalf("got %d bytes of %d, or others", len(got), all.Len())
		}
	})
}

// A background child that floods must not push out what the command itself wrote.
func TestBackgroundChildPushesOutNoUnreadOutput(t *testing.T) {
	s := newSpool(minSpool, true, false)
	s.add(wire.FrameStdout, chunkOf([]byte("own output")))
	s.finish()
	for range 100 {
		s.add(wire.FrameStdout, chunkOf(make([]byte, 32<<10)))
	}
	e := s.next(0, nil)
	require.NotNil(t, e)
	require.Equal(t, "own output", string(e.chunk.Payload()))
	require.Nil(t, s.next(e.end(), nil), "the child's output is not the command's")
	s.ack(e.end())
	for range 100 {
		s.add(wire.FrameStdout, chunkOf(make([]byte, 32<<10)))
	}
	require.LessOrEqual(t, s.held(), int64(2*minSpool), "and it is bounded afterwards")
}

func TestOneByteWritesWaitForTheReaderBeforeTheyFillTheMemory(t *testing.T) {
	s := newSpool(maxSpool, true, false)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for i := range 4 * maxUnacked {
			s.add(wire.FrameStdout+wire.Kind(i%2), chunkOf([]byte{1})) // never joined
		}
	}()
	select {
	case <-stopped:
		t.Error("nothing stopped the writer")
	case <-time.After(100 * time.Millisecond):
	}
	s.mu.Lock()
	n := len(s.chunks)
	s.mu.Unlock()
	require.LessOrEqual(t, n, maxUnacked)
	s.abandon()
	<-stopped
}
