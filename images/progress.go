package images

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// Progress is told what a build does. Implementations are called from several goroutines.
type Progress interface {
	// Note says one thing that happened, without a newline.
	Note(text string)
	// Start begins a piece of work of total bytes; 0 or less means that the size is not known.
	Start(what string, total int64) Task
}

// Task is one piece of work of a Progress.
type Task interface {
	Add(n int64)
	Done()
}

// Quiet shows nothing.
var Quiet Progress = quiet{}

type quiet struct{}

func (quiet) Note(string)              {}
func (quiet) Start(string, int64) Task { return quiet{} }
func (quiet) Add(int64)                {}
func (quiet) Done()                    {}

// NewProgress shows bars with bytes and rate when w is a terminal, and otherwise plain lines, at most
// one every few seconds for each piece of work.
func NewProgress(w io.Writer) Progress {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return &bars{w: w}
	}
	return &lines{w: w, every: 5 * time.Second, now: time.Now}
}

type bars struct {
	mu sync.Mutex
	w  io.Writer
}

func (b *bars) Note(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fmt.Fprintf(b.w, "\r\x1b[K%s\n", oneLine(text))
}

func (b *bars) Start(what string, total int64) Task {
	if total <= 0 {
		total = -1
	}
	bar := progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(b.w), progressbar.OptionSetDescription(oneLine(what)),
		progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true), progressbar.OptionFullWidth(),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionShowCount(),
		progressbar.OptionOnCompletion(func() { fmt.Fprintln(b.w) }))
	return &barTask{bar: bar}
}

type barTask struct{ bar *progressbar.ProgressBar }

func (t *barTask) Add(n int64) { _ = t.bar.Add64(n) }

// Done leaves the bar where it is when the work ended early.
func (t *barTask) Done() { _ = t.bar.Exit() }

type lines struct {
	mu    sync.Mutex
	w     io.Writer
	every time.Duration
	now   func() time.Time
}

func (l *lines) Note(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintln(l.w, oneLine(text))
}

func (l *lines) Start(what string, total int64) Task {
	now := l.now()
	return &lineTask{l: l, what: what, total: total, start: now, last: now}
}

type lineTask struct {
	l           *lines
	what        string
	total, done int64
	start, last time.Time
	ended       bool
}

func (t *lineTask) Add(n int64) {
	t.l.mu.Lock()
	defer t.l.mu.Unlock()
	t.done += n
	if now := t.l.now(); now.Sub(t.last) >= t.l.every {
		t.last = now
		t.print(now)
	}
}

func (t *lineTask) Done() {
	t.l.mu.Lock()
	defer t.l.mu.Unlock()
	if !t.ended {
		t.ended = true
		t.print(t.l.now())
	}
}

func (t *lineTask) print(now time.Time) {
	size := FormatBytes(t.done)
	if t.total > 0 {
		size += " of " + FormatBytes(t.total)
	}
	rate := ""
	if s := now.Sub(t.start).Seconds(); s > 0.1 {
		rate = fmt.Sprintf(", %s/s", FormatBytes(int64(float64(t.done)/s)))
	}
	fmt.Fprintf(t.l.w, "%s: %s%s\n", oneLine(t.what), size, rate)
}

// oneLine keeps names that strangers chose from moving the cursor.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// taskReader reports what is read and stops with the context.
type taskReader struct {
	ctx  context.Context
	r    io.Reader
	task Task
}

func (t *taskReader) Read(p []byte) (int, error) {
	if err := t.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := t.r.Read(p)
	t.task.Add(int64(n))
	return n, err
}
