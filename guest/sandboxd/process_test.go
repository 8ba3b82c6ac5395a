//go:build linux

package sandboxd

import (
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// A program that does not read its terminal must not hold its writer for ever.
func TestWritesToATerminalEndWithTheirDeadline(t *testing.T) {
	fs, err := openTTY(&wire.Size{Rows: 24, Cols: 80})
	if err != nil {
		t.Skip("no terminals here:", err)
	}
	defer fs.closeAll()
	require.NoError(t, setSize(fs.stdin, wire.Size{Rows: 30, Cols: 100}))
	require.NoError(t, fs.stdin.SetWriteDeadline(time.Now().Add(50*time.Millisecond)))
	line := append(make([]byte, 4000), '\n')
	for range 1000 {
		if _, err = fs.stdin.Write(line); err != nil {
			break
		}
	}
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	size, err := unix.IoctlGetWinsize(int(fs.child[0].Fd()), unix.TIOCGWINSZ)
	require.NoError(t, err)
	require.Equal(t, [2]uint16{30, 100}, [2]uint16{size.Row, size.Col})
}

func TestDigestOfWhatIsNoRegularFileIsRefusedAtOnce(t *testing.T) {
	fifo := t.TempDir() + "/fifo"
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	require.ErrorContains(t, sameContent(fifo, "00"), "not a regular file")
}

func TestKernelFileThatChangedIsNotWritten(t *testing.T) {
	path := t.TempDir() + "/file"
	require.NoError(t, os.WriteFile(path, []byte("old"), 0o600))
	_, err := openInPlace(path, "00")
	require.ErrorContains(t, err, "read it again")
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "old", string(b), "it was not emptied before the digest was compared")
}

func TestTheEndOfAProcessIsNotSeenBeforeItEnds(t *testing.T) {
	hold, release, err := os.Pipe()
	require.NoError(t, err)
	defer hold.Close()
	pidfd := -1
	p, err := os.StartProcess("/bin/cat", []string{"cat"}, &os.ProcAttr{Files: []*os.File{hold, os.Stdout, os.Stderr}, Sys: &syscall.SysProcAttr{PidFD: &pidfd}})
	require.NoError(t, err)
	ended := make(chan struct{})
	go func() { defer close(ended); awaitEnd(pidfd) }()
	select {
	case <-ended:
		t.Error("it still waits for its input")
	case <-time.After(100 * time.Millisecond):
	}
	require.NoError(t, release.Close())
	<-ended
	state, err := p.Wait()
	require.NoError(t, err)
	require.True(t, state.Exited())
	require.ErrorIs(t, unix.Close(pidfd), unix.EBADF, "the handle was given back")
}
