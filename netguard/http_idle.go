package netguard

import (
	"sync"
	"time"
)

// idleWatch calls a function when nothing has moved for a time. Moving it on is
// cheap: the clock is looked at when the timer fires.
type idleWatch struct {
	limit time.Duration
	fire  func()

	mu     sync.Mutex
	timer  *time.Timer
	last   time.Time
	paused bool
	over   bool
}

// watchIdle starts the watch; stop ends it.
func watchIdle(limit time.Duration, fire func()) *idleWatch {
	w := &idleWatch{limit: limit, fire: fire, last: time.Now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(limit, w.look)
	return w
}

func (w *idleWatch) look() {
	w.mu.Lock()
	if w.over || w.paused {
		w.mu.Unlock()
		return
	}
	if left := w.limit - time.Since(w.last); left > 0 {
		w.timer.Reset(left)
		w.mu.Unlock()
		return
	}
	w.over = true
	w.mu.Unlock()
	w.fire()
}

// touch says that something moved.
func (w *idleWatch) touch() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = time.Now()
}

// pause lets the clock stand while a human thinks.
func (w *idleWatch) pause() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.paused = true
}

func (w *idleWatch) resume() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.paused, w.last = false, time.Now()
	if !w.over {
		w.timer.Reset(w.limit)
	}
}

func (w *idleWatch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	w.timer.Stop()
}
