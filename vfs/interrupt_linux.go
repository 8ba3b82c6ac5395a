package vfs

import (
	"slices"
	"syscall"
	"time"
)

// patience is how long an interrupted request may go on. Programs that catch
// signals (those of the Go runtime preempt themselves by some) do not expect EINTR from
// files, and nearly every request ends by itself sooner.
const patience = 500 * time.Millisecond

// interrupt notes the kernel's wish that the request unique ends. There is no
// reply: one would make the kernel ask again.
func (c *conn) interrupt(unique uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.jobs[unique]
	if j == nil || !j.until.IsZero() {
		return
	}
	j.until = time.Now().Add(patience)
	c.stopped = append(c.stopped, j)
	select {
	case c.hurry <- struct{}{}:
	default:
	}
}

// endInterrupted ends requests that were interrupted and do not end by themselves,
// until the connection ends.
func (c *conn) endInterrupted() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.hurry:
		case <-timer.C:
		}
		waiting, next := c.expire(time.Now())
		for _, j := range waiting {
			err := c.write(errorReply(make([]byte, outHeader), j.in, syscall.EINTR))
			c.finish(j)
			if err != nil {
				c.fail(err)
			}
		}
		timer.Reset(next)
	}
}

// expire tells the running requests whose time has come, takes those that wait from
// the queue and returns them, with the time until it has to look again.
func (c *conn) expire(now time.Time) (waiting []*job, next time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.stopped) > 0 {
		j := c.stopped[0]
		if left := j.until.Sub(now); left > 0 {
			return waiting, left
		}
		c.stopped = c.stopped[1:]
		if c.jobs[j.in.unique()] != j {
			continue // it has ended
		}
		if i := slices.Index(c.queue, j); i >= 0 {
			c.queue = slices.Delete(c.queue, i, i+1)
			waiting = append(waiting, j)
			continue
		}
		j.cancel()
	}
	return waiting, time.Hour
}

// cancel tells a running request to end; conn.mu is held.
func (j *job) cancel() {
	if !j.told {
		j.told = true
		close(j.canceled)
	}
}

// cancelAll forgets the requests that wait and tells those that run to end.
func (c *conn) cancelAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, j := range c.queue {
		delete(c.jobs, j.in.unique())
		c.bytes -= j.weight
		putBuffer(j.buf)
	}
	c.queue = nil
	for _, j := range c.jobs {
		j.cancel()
	}
}

// canceled returns what ends when the request unique shall end.
func (c *conn) canceled(unique uint64) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if j := c.jobs[unique]; j != nil {
		return j.canceled
	}
	return nil
}
