package configs

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func FuzzLoad(f *testing.F) {
	for _, name := range Examples() {
		b, err := Example(name)
		require.NoError(f, err)
		f.Add(b)
	}
	for _, s := range []string{"", "version: 1", "a: &a [*a]", "? {a: b}\n: c", "!!binary x", "{", "- - - -", "\"\\x00\": 1", "version: 1\nsession: {env: {A: !!null x}}", "---\n---\n", "<<: *x", "%YAML 9.9\n---\n",
		"version: 1\nworkspace: ./x\nmounts:\n- {path: /a/, source: ~/b, protect: [x, '*.y'], hide: {remove: [.npmrc], defaults: true}, quota: 3}\n- {path: /m, provider: memory, max_files: 9}\n- *x\n- [1]\n", networkFile} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := newLoader(Sources{}).load("config.yaml", data)
		if err != nil {
			var e *Error
			require.ErrorAs(t, err, &e)
			require.NotEmpty(t, e.Problems)
			require.LessOrEqual(t, len(err.Error()), maxProblems*1500)
			return
		}
		text, err := c.YAML(true)
		require.NoError(t, err)
		again, err := newLoader(Sources{}).load("config.yaml", text)
		require.NoError(t, err, "%s", text)
		again.origins = c.origins
		require.Equal(t, c, again)
	})
}
