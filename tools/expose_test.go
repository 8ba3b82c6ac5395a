package tools

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Expose of a fakeSession answers on even ports.
func (s *fakeSession) Expose(_ context.Context, port int) (Exposed, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := Exposed{Port: port, URL: fmt.Sprintf("http://127.9.9.9:%d/", 40000+port)}
	if !slices.Contains(s.exposed, e) {
		s.exposed = append(s.exposed, e)
	}
	return e, port%2 == 0, nil
}

func (s *fakeSession) Exposed() []Exposed {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.exposed)
}

func (s *fakeSession) Unexpose(port int) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.exposed)
	s.exposed = slices.DeleteFunc(s.exposed, func(e Exposed) bool { return e.Port == port })
	return len(s.exposed) < before, nil
}

func TestExposeGivesListsAndTakesBackURLs(t *testing.T) {
	boxes := newFakeBoxes()
	c := dial(t, Options{Sandboxes: boxes, Expose: true})

	assert.Empty(t, decodeAs[ExposeResult](t, c.call("expose", `{"action":"list"}`)).Exposed)
	assert.Empty(t, boxes.List(), "no machine is started for an empty list")

	out := decodeAs[ExposeResult](t, c.call("expose", `{"port":3000,"path":"/docs/?page=2"}`))
	assert.Equal(t, "http://127.9.9.9:43000/docs/?page=2", out.URL)
	assert.True(t, out.Answers)
	assert.Equal(t, []Exposed{{3000, "http://127.9.9.9:43000/"}}, out.Exposed)

	assert.Contains(t, c.call("expose", `{"port":3001}`).text(), "Nothing listens on port 3001 yet")
	assert.Contains(t, c.call("expose", `{}`).text(), "/etc/gondolin/listeners")
	assert.Contains(t, c.call("expose", `{"action":"list"}`).text(), "[3 URLs open]")
	assert.Contains(t, c.call("expose", `{"action":"close","port":3001}`).text(), "[2 URLs open]")
	assert.Contains(t, c.call("expose", `{"action":"close","port":3001}`).text(), "It was not open.")

	for wrong, what := range map[string]string{
		`{"port":3000,"path":"docs"}`:  "begins with a slash",
		`{"port":3000,"path":"/a b"}`:  "control characters",
		`{"action":"list","path":"/"}`: "goes with open and not with list",
		`{"port":70000}`:               "65535",
	} {
		r := c.call("expose", wrong)
		require.True(t, r.IsError, wrong)
		require.Contains(t, r.text(), what)
	}
}

func TestExposeIsNotOfferedUnlessAllowed(t *testing.T) {
	all, _ := listTools(t, New(Options{Sandboxes: newFakeBoxes()}))
	for _, tool := range all {
		require.NotEqual(t, "expose", tool.Name)
	}
	assert.NotContains(t, instructions(Options{}.withDefaults()), "expose")
}
