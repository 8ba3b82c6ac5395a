package tools

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
)

// requestHeader carries the key of a request from mcp-go's hook to the handler.
const requestHeader = "Gondolin-Request"

// requests is the table of what the client has asked and not been answered. It
// sees a request before mcp-go does and its answer after, so that a cancellation
// finds its call in any state and no id is answered twice.
type requests struct {
	mu       sync.Mutex
	open     map[string]*request
	bytes    int64
	maxOpen  int
	maxBytes int64
}

type request struct {
	size      int
	cancelled bool
	cancel    context.CancelFunc // once a handler runs
}

func newRequests(maxOpen int, maxBytes int64) *requests {
	return &requests{open: make(map[string]*request), maxOpen: maxOpen, maxBytes: maxBytes}
}

// add notes a new request of size bytes.
func (r *requests) add(key string, size int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.open[key] != nil:
		return errors.New("a request with this id is still under way; ids must be unique")
	case len(r.open) >= r.maxOpen:
		return fmt.Errorf("%d requests are under way, which is the most; wait for answers", len(r.open))
	case len(r.open) > 0 && r.bytes+int64(size) > r.maxBytes:
		return fmt.Errorf("the requests under way hold %d bytes and this one %d more; wait for answers", r.bytes, size)
	}
	r.open[key] = &request{size: size}
	r.bytes += int64(size)
	return nil
}

// finish removes an answered request and says whether it was open.
func (r *requests) finish(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	q, ok := r.open[key]
	if ok {
		delete(r.open, key)
		r.bytes -= int64(q.size)
	}
	return ok
}

// cancel cancels a request, whether it runs or has yet to begin.
func (r *requests) cancel(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if q := r.open[key]; q != nil {
		q.cancelled = true
		if q.cancel != nil {
			q.cancel()
		}
	}
}

// attach ties a handler's context to the request. It comes back cancelled when
// the cancellation was first. A key that is not in the table is no mistake:
// another transport than ours brought the request.
func (r *requests) attach(ctx context.Context, key string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if q := r.open[key]; q != nil {
		q.cancel = cancel
		if q.cancelled {
			cancel()
		}
	}
	return ctx, cancel
}

// clear forgets everything at the end of a connection.
func (r *requests) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.open)
	r.bytes = 0
}

var errID = errors.New("id must be a string of at most 256 bytes or an integer within ±2^53")

// rawKey makes the table's key from an id as it is on the wire. It refuses ids
// that mcp-go would give back changed, because their answer would reach no one.
func rawKey(raw json.RawMessage) (string, error) {
	var id any
	if json.Unmarshal(raw, &id) != nil {
		return "", errID
	}
	switch v := id.(type) {
	case string:
		if len(v) > 256 || strings.ToValidUTF8(v, "") != v {
			return "", errID
		}
		return decodedKey(v), nil
	case float64:
		if v != float64(int64(v)) || v > 1<<53 || v < -(1<<53) {
			return "", errID
		}
		if n, err := strconv.ParseInt(string(raw), 10, 64); err == nil && (n > 1<<53 || n < -(1<<53)) {
			return "", errID
		}
		return decodedKey(v), nil
	}
	return "", errID
}

// decodedKey makes the key from an id as encoding/json decodes it. "1" and 1
// are different ids.
func decodedKey(id any) string {
	switch v := id.(type) {
	case string:
		return "s:" + v
	case float64:
		return "n:" + strconv.FormatInt(int64(v), 10)
	}
	return ""
}
