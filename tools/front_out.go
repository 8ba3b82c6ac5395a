package tools

import (
	"bytes"
	"encoding/json"

	"github.com/mark3labs/mcp-go/mcp"
)

// Quotes inside of a JSON string are escaped, so these match no text of a result.
var (
	inputRequired          = []byte(`"resultType":"input_required"`)
	rootsRequest           = []byte(`{"method":"roots/list"}`)
	rootsRequestWithParams = []byte(`{"method":"roots/list","params":{}}`)
)

// Write takes one message from mcp-go, which gives each in one call. An answer
// to a request that is not open is dropped: the request has been answered.
func (f *front) Write(line []byte) (int, error) {
	var m envelope
	if err := json.Unmarshal(line, &m); err == nil && len(m.ID) > 0 && string(m.ID) != "null" {
		if m.Method != "" {
			f.askedMu.Lock()
			f.asked[string(m.ID)] = true
			f.askedMu.Unlock()
		} else if key, err := rawKey(m.ID); err == nil && !f.requests.finish(key) {
			f.log.Warn("second answer to a request dropped", "id", string(m.ID))
			return len(line), nil
		}
	}
	size := len(line)
	if bytes.Contains(line, inputRequired) {
		// mcp-go leaves the parameters of this request out, which may be; the
		// official Go client (1.8.0) fails the whole call without them.
		line = bytes.ReplaceAll(line, rootsRequest, rootsRequestWithParams)
	}
	// mcp-go reuses its buffer, and a write that is given up may still hold it.
	if err := f.send(bytes.Clone(line)); err != nil {
		return 0, err
	}
	return size, nil
}

// send hands one line to the writer and waits until it is written, so that a
// client that reads slowly slows us and not our memory.
func (f *front) send(line []byte) error {
	l := outLine{data: line, done: make(chan error, 1)}
	select {
	case f.lines <- l:
	case <-f.gone:
		return errGone
	}
	select {
	case err := <-l.done:
		return err
	case <-f.gone:
		return errGone
	}
}

// writeLines is the only writer of the output: messages never mix.
func (f *front) writeLines() {
	for {
		select {
		case l := <-f.lines:
			_, err := f.out.Write(l.data)
			l.done <- err
			if err != nil {
				f.fail(err)
				f.abandon()
				return
			}
		case <-f.gone:
			return
		}
	}
}

// refuse answers a message that mcp-go does not get to see.
func (f *front) refuse(id json.RawMessage, code int, message string) {
	if len(id) == 0 || len(id) > 1024 {
		id = json.RawMessage("null")
	}
	f.log.Warn("message refused", "code", code, "reason", message)
	f.sendJSON(struct {
		JSONRPC string          `json:"jsonrpc"`
		ID      json.RawMessage `json:"id"`
		Error   any             `json:"error"`
	}{mcp.JSONRPC_VERSION, id, mcp.NewJSONRPCErrorDetails(code, message, nil)})
}

// notify sends a notification.
func (f *front) notify(method string, params map[string]any) {
	f.sendJSON(struct {
		JSONRPC string         `json:"jsonrpc"`
		Method  string         `json:"method"`
		Params  map[string]any `json:"params"`
	}{mcp.JSONRPC_VERSION, method, params})
}

func (f *front) sendJSON(message any) {
	data, err := json.Marshal(message)
	if err == nil {
		err = f.send(append(data, '\n'))
	}
	if err != nil {
		f.log.Debug("message not sent", "error", err)
	}
}
