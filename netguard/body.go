package netguard

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/gondolin-go/gondolin/netguard/secret"
)

// requestBody is what net/http's transport reads of the guest's body. It is read
// when the server takes it, so that the guest is held up by the server and nothing piles
// up in between.
type requestBody struct {
	x       *exchange
	in      io.Reader    // from the guest
	out     io.Reader    // in, looked through for placeholders
	secrets *secret.Body // out; nil if there are no secrets
	left    int64        // that the guest announced; below 0 if it did not
	trailer http.Header  // to be filled at the end; nil if there is none

	begun atomic.Bool // something has been read, so that it cannot be sent again
	mu    sync.Mutex
	err   error // what ended it, but for the end itself
	over  bool
}

// guestReader reads a body from the guest, which is a sign of life.
type guestReader struct{ b *requestBody }

func (g guestReader) Read(p []byte) (int, error) {
	x := g.b.x
	n, err := g.b.in.Read(p)
	if n > 0 {
		x.watch.touch()
	}
	return n, err
}

// Read implements io.Reader.
func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	over := b.over
	b.mu.Unlock()
	if over {
		return 0, errBodyOver
	}
	b.begun.Store(true)
	n, err := b.out.Read(p)
	if n > 0 { // as it leaves: decoded, it may be a thousand times what came
		b.x.sent.Add(int64(n))
		if lerr := b.x.p.limiter.Bytes(b.x.ruled(), n); lerr != nil {
			err = lerr
		}
	}
	if errors.Is(err, io.EOF) {
		err = b.end()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.err == nil {
			b.err = err
		}
		// Not a byte more: the server must not take the request for whole.
		return 0, err
	}
	return n, err
}

var errBodyOver = errors.New("the request is over")

// end passes on the trailer, and says io.EOF or why the request must not end.
func (b *requestBody) end() error {
	x := b.x
	if b.secrets != nil {
		x.note(b.secrets.Use())
	}
	if b.trailer == nil {
		return io.EOF
	}
	head := secret.Head{Header: x.r.Trailer.Clone()}
	if !x.p.secrets.Empty() {
		use, err := x.p.secrets.Inject(x.ctx, x.target(), &head)
		if err != nil {
			return err
		}
		x.note(use)
	}
	for name := range b.trailer {
		b.trailer[name] = head.Header[name]
	}
	return io.EOF
}

// Close implements io.Closer. The guest's body is its server's to close.
func (b *requestBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
	if b.secrets != nil {
		return b.secrets.Close()
	}
	return nil
}

// failure is why the body did not come to its end, if it is not the server's doing.
func (b *requestBody) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}
