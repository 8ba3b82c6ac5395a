package tools

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
)

// progressEvery is the time between two notifications of one call.
const progressEvery = 500 * time.Millisecond

// progress tells a client that asked for it how a call is getting on.
type progress struct {
	mu   sync.Mutex
	what func() string
	end  func()
}

// say sets what the next notifications report.
func (p *progress) say(what func() string) {
	p.mu.Lock()
	p.what = what
	p.mu.Unlock()
}

func (p *progress) message(elapsed time.Duration) string {
	p.mu.Lock()
	what := p.what
	p.mu.Unlock()
	m := fmt.Sprintf("%.0f s", elapsed.Seconds())
	if what != nil {
		if w := what(); w != "" {
			m += ": " + w
		}
	}
	return m
}

// startProgress begins to notify if the request has a token. After stop has
// returned, no notification of the call is under way any more.
func (s *Server) startProgress(ctx context.Context, meta *mcp.Meta) *progress {
	p := &progress{end: func() {}}
	if meta == nil || meta.ProgressToken == nil {
		return p
	}
	ticks, stopTicks := s.ticker(progressEvery)
	done := make(chan struct{})
	var wg sync.WaitGroup
	began := time.Now()
	wg.Go(func() {
		last := 0.0
		for {
			select {
			case <-ticks:
				elapsed := time.Since(began)
				// The protocol wants a value that only ever grows.
				last = max(last+0.001, elapsed.Seconds())
				s.notify(ctx, "notifications/progress", map[string]any{
					"progressToken": meta.ProgressToken,
					"progress":      last,
					"message":       p.message(elapsed),
				})
			case <-done:
				return
			}
		}
	})
	p.end = func() {
		stopTicks()
		close(done)
		wg.Wait()
	}
	return p
}

func (p *progress) stop() { p.end() }
