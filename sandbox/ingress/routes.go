package ingress

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Bounds of a list of routes.
const (
	MaxRoutesFile = 16 << 10 // bytes
	maxRoutes     = 64
	maxPrefix     = 256
)

// Route leads requests to a port of the guest.
type Route struct {
	Prefix string // of the path, whole segments, such as "/api"; "/" is everything
	Port   uint16 // of the guest's loopback
	Strip  bool   // the guest does not see the prefix
}

// ParseRoutes reads routes, one a line:
//
//	# comment
//	PREFIX :PORT [strip]
//
// A file with a mistake has no routes: the error names every line that is wrong.
func ParseRoutes(text []byte) ([]Route, error) {
	if len(text) > MaxRoutesFile {
		return nil, fmt.Errorf("more than %d bytes: a list of routes is shorter", MaxRoutesFile)
	}
	var routes []Route
	var errs []error
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		r, err := parseRoute(words)
		switch {
		case err != nil:
		case slices.ContainsFunc(routes, func(other Route) bool { return other.Prefix == r.Prefix }):
			err = fmt.Errorf("the prefix %s has a route already", r.Prefix)
		case len(routes) == maxRoutes:
			return nil, fmt.Errorf("line %d: more than %d routes", n, maxRoutes)
		}
		if err != nil {
			if errs = append(errs, fmt.Errorf("line %d: %w", n, err)); len(errs) == 8 {
				break
			}
			continue
		}
		routes = append(routes, r)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return routes, nil
}

func parseRoute(words []string) (r Route, err error) {
	const form = "write PREFIX :PORT [strip], such as `/api :3000 strip`"
	if len(words) < 2 || len(words) > 3 {
		return r, errors.New(form)
	}
	if r.Prefix, err = cleanPrefix(words[0]); err != nil {
		return r, err
	}
	port, colon := strings.CutPrefix(words[1], ":")
	n, err := strconv.ParseUint(port, 10, 16)
	if !colon || err != nil || n == 0 {
		return r, fmt.Errorf("%q is no port: write a colon and 1 to 65535, such as :3000", short(words[1]))
	}
	r.Port = uint16(n)
	if len(words) == 3 {
		if words[2] != "strip" {
			return r, fmt.Errorf("%q is no option: the only one is strip", short(words[2]))
		}
		r.Strip = true
	}
	return r, nil
}

// cleanPrefix checks a prefix. Its characters are those that have one spelling in a URL.
func cleanPrefix(p string) (string, error) {
	bad := func(why string) (string, error) { return "", fmt.Errorf("prefix %q: %s", short(p), why) }
	switch {
	case len(p) > maxPrefix:
		return bad(fmt.Sprintf("it is longer than %d bytes", maxPrefix))
	case !strings.HasPrefix(p, "/"):
		return bad("it begins with a slash")
	}
	for _, c := range []byte(p) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("/-._~@:", c) >= 0) {
			return bad("use letters, digits and -._~@: in it")
		}
	}
	if p = strings.TrimSuffix(p, "/"); p == "" {
		return "/", nil
	}
	for segment := range strings.SplitSeq(p[1:], "/") {
		if segment == "" || segment == "." || segment == ".." {
			return bad("no segment is empty, . or ..")
		}
	}
	return p, nil
}

// match returns the route with the longest prefix of an escaped path.
func match(routes []Route, path string) (best Route, ok bool) {
	for _, r := range routes {
		if under(path, r.Prefix) && (!ok || len(r.Prefix) > len(best.Prefix)) {
			best, ok = r, true
		}
	}
	return best, ok
}

func under(path, prefix string) bool {
	rest, ok := strings.CutPrefix(path, prefix)
	return prefix == "/" || ok && (rest == "" || rest[0] == '/')
}

// strip takes a prefix off a URL's path, which has it.
func strip(u *url.URL, prefix string) error {
	if prefix == "/" {
		return nil
	}
	rest := strings.TrimPrefix(u.EscapedPath(), prefix)
	if rest == "" {
		rest = "/"
	}
	path, err := url.PathUnescape(rest)
	if err != nil {
		return fmt.Errorf("the path: %w", err)
	}
	u.Path, u.RawPath = path, rest
	return nil
}

// short bounds what a message quotes.
func short(s string) string {
	const most = 60
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
