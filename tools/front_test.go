package tools

import (
	"bufio"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestEveryKindOfBrokenMessageGetsAJSONRPCError(t *testing.T) {
	c := dial(t, Options{})
	for _, tc := range []struct {
		line, id string
		code     int
	}{
		{`not json`, "null", -32700},
		{`{"jsonrpc":"2.0","id":1,"method":"ping"`, "null", -32700},
		{`[{"jsonrpc":"2.0","id":1,"method":"ping"}]`, "null", -32600},
		{`42`, "null", -32600},
		{`{}`, "null", -32600},
		{`{"jsonrpc":"2.0","id":2}`, "2", -32600},
		{`{"jsonrpc":"2.0","id":null,"method":"ping"}`, "null", -32600},
		{`{"jsonrpc":"2.0","id":[1],"method":"ping"}`, "[1]", -32600},
		{`{"jsonrpc":"2.0","id":1.5,"method":"ping"}`, "1.5", -32600},
		{`{"jsonrpc":"2.0","id":9007199254740993,"method":"ping"}`, "9007199254740993", -32600},
		{`{"jsonrpc":"2.0","id":3,"method":7}`, "3", -32600},
		{`{"jsonrpc":"1.0","id":4,"method":"ping"}`, "4", -32600},
		{`{"jsonrpc":"2.0","id":5,"method":"no/such"}`, "5", -32601},
		{`{"jsonrpc":"2.0","id":6,"method":"tools/call","params":5}`, "6", -32600},
		{`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"nope"}}`, "7", -32602},
		{`{"jsonrpc":"2.0","id":8,"method":"resources/read","params":{"uri":"gondolin://session/x/job/y/output"}}`, "8", -32603},
		{`{"jsonrpc":"2.0","id":9,"method":"resources/read","params":{"uri":"file:///etc/passwd"}}`, "9", 0},
	} {
		c.send(tc.line)
		m := c.next()
		require.NotNil(t, m.Error, tc.line)
		assert.Equal(t, tc.id, string(m.ID), tc.line)
		if tc.code != 0 {
			assert.Equal(t, tc.code, m.Error.Code, tc.line)
		}
	}
	// What is no request gets no answer.
	c.send("")
	c.send("   \t ")
	c.send(`{"jsonrpc":"2.0","method":"notifications/unknown"}`)
	c.send(`{"jsonrpc":"2.0","id":1,"result":{}}`)
	c.send(`{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x"}}`)
	c.send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":[]}`)
	c.send(`{"jsonrpc":"2.0","id":"ok","method":"ping"}`)
	assert.Equal(t, `"ok"`, string(c.next().ID))
}

func TestALineThatIsTooLongIsRefusedUnderItsIdAndTheNextOneWorks(t *testing.T) {
	c := dial(t, Options{MaxMessage: 100000})
	big := strings.Repeat("x", 3000000)
	c.send(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write_file","arguments":{"content":"` + big + `"}}}`)
	m := c.next()
	assert.Equal(t, "1", string(m.ID))
	require.NotNil(t, m.Error)
	assert.Contains(t, m.Error.Message, "longer")
	c.send(`{"method":"tools/call","params":{"name":"write_file","arguments":{"content":"` + big + `"}},"jsonrpc":"2.0","id":"b"}`)
	assert.Equal(t, `"b"`, string(c.next().ID))
	c.send(`{"method":"tools/call","params":{"content":"` + big + `","id":3}}`)
	assert.Equal(t, "null", string(c.next().ID), "an id within params is not the message's")
	assert.False(t, c.call("list_files", `{}`).IsError)
}

func TestReadLineKeepsMemoryBounded(t *testing.T) {
	r := bufio.NewReaderSize(strings.NewReader(strings.Repeat("a", 5<<20)+"tail\nnext\nlast"), 4096)
	line, long, err := readLine(r, 10000)
	require.NoError(t, err)
	assert.True(t, long)
	assert.Len(t, line, 2*cutKeep)
	assert.True(t, strings.HasSuffix(string(line), "tail\n"))
	line, long, err = readLine(r, 10000)
	require.NoError(t, err)
	assert.False(t, long)
	assert.Equal(t, "next\n", string(line))
	line, _, err = readLine(r, 10000)
	assert.Error(t, err)
	assert.Equal(t, "last", string(line))
}

func TestALastLineWithoutNewlineCounts(t *testing.T) {
	c := dialRaw(t, Options{})
	_, err := c.in.Write([]byte(`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`))
	require.NoError(t, err)
	require.NoError(t, c.in.Close())
	assert.Equal(t, "1", string(c.next().ID))
}

func TestAFloodOfRequestsIsRefusedAndNotKept(t *testing.T) {
	b := newBlocking()
	o := withRun(b.run)
	o.MaxUnderWay = 3
	c := dial(t, o)
	for i := range 3 {
		c.begin(i, "exec", `{"command":"x"}`)
		wait(t, b.began, "the call")
	}
	c.send(`{"jsonrpc":"2.0","id":50,"method":"ping"}`)
	m := c.answer("50")
	require.NotNil(t, m.Error)
	assert.Contains(t, m.Error.Message, "3 requests are under way")
	close(b.release)
	for i := range 3 {
		c.end(i)
	}
	c.send(`{"jsonrpc":"2.0","id":50,"method":"ping"}`)
	assert.Nil(t, c.answer("50").Error)

	r := newRequests(10, 100)
	require.NoError(t, r.add("a", 1000), "one alone may be of any size")
	assert.ErrorContains(t, r.add("b", 1), "bytes")
	r.finish("a")
	assert.NoError(t, r.add("b", 1))
}

func TestUnknownVersionsAreAnsweredAndKnownOnesAgreed(t *testing.T) {
	c := dialRaw(t, Options{})
	for i, tc := range []struct{ asked, agreed string }{
		{"2024-11-05", "2024-11-05"}, {"2025-06-18", "2025-06-18"}, {"2025-11-25", "2025-11-25"},
		{"1999-01-01", "2025-11-25"}, {"2026-07-28", "2025-11-25"}, {"", ""},
	} {
		c.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"initialize","params":{"protocolVersion":%q,"capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`, i, tc.asked))
		m := c.next()
		require.Nil(t, m.Error, tc.asked)
		if tc.agreed != "" {
			assert.Contains(t, string(m.Result), `"protocolVersion":"`+tc.agreed+`"`)
		}
		assert.Contains(t, string(m.Result), "no network")
	}
	// The stateless era needs no handshake.
	const meta = `"_meta":{"io.modelcontextprotocol/protocolVersion":%q,"io.modelcontextprotocol/clientCapabilities":{}}`
	c.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":10,"method":"server/discover","params":{`+meta+`}}`, "2026-07-28"))
	m := c.next()
	require.Nil(t, m.Error)
	assert.Contains(t, string(m.Result), "2026-07-28")
	c.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":11,"method":"tools/call","params":{"name":"exec","arguments":{"command":"echo hi"},`+meta+`}}`, "2026-07-28"))
	m = c.next()
	require.Nil(t, m.Error)
	assert.Contains(t, string(m.Result), `"resultType":"complete"`)
	c.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":12,"method":"tools/list","params":{`+meta+`}}`, "2099-01-01"))
	m = c.next()
	require.NotNil(t, m.Error)
	assert.Contains(t, m.Error.Message, "2099-01-01")
	// A call without any handshake at all still gets its answer.
	c.begin(13, "exec", `{"command":"echo hi"}`)
	assert.False(t, c.end(13).IsError)
}
