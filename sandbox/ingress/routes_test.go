package ingress

import (
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRoutesAreReadAndMatchedByTheLongestPrefix(t *testing.T) {
	routes, err := ParseRoutes([]byte("# all\n/ :8080\n\n/api/ :3000 strip # the API\n  /api/v2\t:3001\r\n"))
	require.NoError(t, err)
	assert.Equal(t, []Route{{"/", 8080, false}, {"/api", 3000, true}, {"/api/v2", 3001, false}}, routes)
	for path, port := range map[string]uint16{
		"/": 8080, "/x": 8080, "/apix": 8080, "/api": 3000, "/api/": 3000, "/api/v2x": 3000, "/api/v2": 3001, "/api/v2/y": 3001,
		"/a%70i": 8080, // spelt in another way it is another path
	} {
		r, ok := match(routes, path)
		assert.True(t, ok)
		assert.Equal(t, port, r.Port, path)
	}
	_, ok := match(nil, "/")
	assert.False(t, ok)
}

func TestAMistakeInTheRoutesIsNamedWithItsLine(t *testing.T) {
	for text, want := range map[string]string{
		"/":                                     "line 1: write PREFIX :PORT [strip]",
		"/ :1\n/a 80":                           `line 2: "80" is no port`,
		"/ :0":                                  "no port",
		"/ :65536":                              "no port",
		"/ :80 keep":                            `"keep" is no option`,
		"/ :80 strip strip":                     "write PREFIX",
		"api :80":                               "begins with a slash",
		"/a/../b :80":                           "no segment is empty",
		"/a//b :80":                             "no segment is empty",
		"/a%20b :80":                            "use letters",
		"/ü :80":                                "use letters",
		"/a :1\n/a/ :2":                         "has a route already",
		"/" + strings.Repeat("a", 300) + " :80": "longer than",
		strings.Repeat("#", MaxRoutesFile+1):    "more than",
		strings.Repeat("/\n", 20):               "line 8",
		strings.Repeat("x", 4000) + " :80":      "…",
		"/a :1\n" + strings.Repeat("b", 100) + " :2": "line 2",
	} {
		_, err := ParseRoutes([]byte(text))
		require.ErrorContains(t, err, want, short(text))
		require.Less(t, len(err.Error()), 2000)
	}
	var many strings.Builder
	for i := range 65 {
		many.WriteString("/p" + strings.Repeat("x", i) + " :80\n")
	}
	_, err := ParseRoutes([]byte(many.String()))
	require.ErrorContains(t, err, "more than 64 routes")
}

func TestStrippingKeepsHowTheRestIsSpelt(t *testing.T) {
	for path, want := range map[string]string{"/api": "/", "/api/": "/", "/api/a%2Fb/c": "/a%2Fb/c", "/api//x": "//x"} {
		u, err := url.Parse("http://h" + path)
		require.NoError(t, err)
		require.NoError(t, strip(u, "/api"))
		assert.Equal(t, want, u.EscapedPath())
	}
}

func FuzzParseRoutes(f *testing.F) {
	f.Add("/ :80\n/api :3000 strip\n# x\n")
	f.Add("/a\x00 :1\n/a/. :2")
	f.Fuzz(func(t *testing.T, text string) {
		routes, err := ParseRoutes([]byte(text))
		if err != nil {
			if len(err.Error()) > 4000 {
				t.Fatal("a long error")
			}
			return
		}
		if len(routes) > maxRoutes {
			t.Fatal("too many")
		}
		for _, r := range routes {
			again, err := ParseRoutes([]byte(r.Prefix + " :80"))
			if err != nil || len(again) != 1 || again[0].Prefix != r.Prefix || r.Port == 0 {
				t.Fatalf("%+v does not stand for itself: %v", r, err)
			}
			if got, ok := match(routes, r.Prefix); !ok || got.Prefix != r.Prefix {
				t.Fatalf("%+v does not match its own prefix", r)
			}
		}
	})
}
