//go:build linux

package port

import (
	"bufio"
	"fmt"
	"io"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// Greet announces the guest on a port until a host has answered, and answers its hello with
// what apply says of it. An error is one of the port, or apply's, which the host has been told.
func Greet(p io.ReadWriter, announce wire.Announce, apply func(*wire.Hello) error) error {
	for {
		// The write waits until a host has opened the port.
		if err := wire.WriteHandshake(p, announce); err != nil {
			return fmt.Errorf("announcing: %w", err)
		}
		var h wire.Hello
		// Buffered: a host that comes again sends a long reset first, which took seconds byte by
		// byte. What is read too much is nothing: the host waits for the answer.
		if err := wire.ReadHandshake(bufio.NewReaderSize(p, 64<<10), &h); err != nil {
			continue // the host closed the port again
		}
		err := error(nil)
		if h.Version != wire.Version {
			err = fmt.Errorf("the host speaks protocol version %d and this guest %d; start the session with the guest that comes with the host", h.Version, wire.Version)
		} else {
			err = apply(&h)
		}
		ready := wire.Ready{}
		if err != nil {
			ready.Err = err.Error()
		}
		if werr := wire.WriteHandshake(p, ready); werr != nil {
			return fmt.Errorf("answering the hello: %w", werr)
		}
		return err
	}
}
