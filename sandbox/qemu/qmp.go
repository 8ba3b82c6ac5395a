package qemu

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// maxQMPLine bounds one message of the monitor.
const maxQMPLine = 1 << 20

// qmpTimeout bounds the wait for the monitor's answer. On a host that has far more to do than it
// can, starting QEMU took ten seconds.
const qmpTimeout = 30 * time.Second

// Event is an asynchronous message of the monitor.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

// qmp is a client of QEMU's machine protocol
// (qemu/docs/interop/qmp-spec). Its reader goroutine ends with the connection.
type qmp struct {
	conn    net.Conn
	onEvent func(Event)

	mu      sync.Mutex // one command at a time
	replies chan qmpReply
	gone    chan struct{}
}

type qmpReply struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event
}

func newQMP(conn net.Conn, onEvent func(Event)) *qmp {
	q := &qmp{conn: conn, onEvent: onEvent, replies: make(chan qmpReply, 1), gone: make(chan struct{})}
	go q.read()
	return q
}

func (q *qmp) read() {
	defer close(q.gone)
	lines := bufio.NewScanner(q.conn)
	lines.Buffer(nil, maxQMPLine)
	for lines.Scan() {
		var m qmpReply
		if json.Unmarshal(lines.Bytes(), &m) != nil {
			return
		}
		switch {
		case m.Name != "":
			q.onEvent(m.Event)
		case m.Return != nil || m.Error != nil:
			select {
			case q.replies <- m:
			default: // an answer nobody waits for any more
			}
		}
	}
}

// execute runs one command and decodes its result into out, which may be nil.
func (q *qmp) execute(command string, args, out any) error {
	return q.executeWith(command, args, out, nil)
}

// executeWith is execute with a descriptor that goes along; getfd of the protocol takes it.
func (q *qmp) executeWith(command string, args, out any, pass *os.File) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	msg, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	select {
	case <-q.replies: // of a command that timed out
	default:
	}
	if err := q.conn.SetWriteDeadline(time.Now().Add(qmpTimeout)); err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	if err := q.send(append(msg, '\n'), pass); err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	r, err := q.reply()
	switch {
	case err != nil:
		return fmt.Errorf("qmp %s: %w", command, err)
	case r.Error != nil:
		return fmt.Errorf("qmp %s: %s: %s", command, r.Error.Class, r.Error.Desc)
	case out == nil:
		return nil
	}
	return json.Unmarshal(r.Return, out)
}

func (q *qmp) send(msg []byte, pass *os.File) error {
	if pass == nil {
		_, err := q.conn.Write(msg)
		return err
	}
	unix, ok := q.conn.(*net.UnixConn)
	if !ok {
		return errors.New("the monitor takes no descriptors")
	}
	_, _, err := unix.WriteMsgUnix(msg, syscall.UnixRights(int(pass.Fd())), nil)
	return err
}

func (q *qmp) reply() (qmpReply, error) {
	timer := time.NewTimer(qmpTimeout)
	defer timer.Stop()
	select {
	case r := <-q.replies:
		return r, nil
	case <-q.gone:
	case <-timer.C:
		return qmpReply{}, errors.New("no answer within " + qmpTimeout.String())
	}
	select {
	case r := <-q.replies: // its last word
		return r, nil
	default:
		return qmpReply{}, io.ErrUnexpectedEOF
	}
}

func (q *qmp) close() {
	q.conn.Close()
	<-q.gone
}
