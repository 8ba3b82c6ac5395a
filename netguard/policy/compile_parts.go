package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/bmatcuk/doublestar/v4"
)

func (r *rule) compilePorts(key string, f *findings) {
	for i, text := range r.Ports {
		from, to, isRange := strings.Cut(text, "-")
		if !isRange {
			to = from
		}
		a, errA := strconv.ParseUint(from, 10, 16)
		b, errB := strconv.ParseUint(to, 10, 16)
		switch {
		case text == "*":
			r.ports = append(r.ports, portRange{1, 65535})
		case errA != nil || errB != nil || a == 0 || b < a:
			f.bad(index(key+".ports", i), quote(text)+" is no port", "use 1 to 65535, a range such as 8000-8100, or *")
		default:
			r.ports = append(r.ports, portRange{uint16(a), uint16(b)})
		}
	}
}

func (r *rule) compileHTTP(key string, f *findings) {
	for i, m := range r.Methods {
		switch up := strings.ToUpper(m); {
		case !isToken(m):
			f.bad(index(key+".methods", i), quote(m)+" is no method", "leave methods out for all of them")
		case m != up:
			f.bad(index(key+".methods", i), "methods are written in upper case", "write "+up)
		case m == "CONNECT" && r.Action != ActionDeny:
			f.bad(index(key+".methods", i), "CONNECT is always refused", "remove it")
		}
	}
	r.methods = r.Methods
	r.paths = compilePaths(r.Paths, r.stops, key+".paths", "/", f)
}

// compilePaths compiles globs, each of which begins with prefix.
func compilePaths(globs []string, stops bool, key, prefix string, f *findings) pathSet {
	set := pathSet{stops: stops}
	for i, g := range globs {
		switch {
		case !strings.HasPrefix(g, prefix):
			f.bad(index(key, i), quote(g)+" does not begin with a slash", "write "+quote("/"+g))
		case len(g) > maxPath || !doublestar.ValidatePattern(g):
			f.bad(index(key, i), quote(g)+" is no glob", `* is a part of a segment, ** any number of segments; write \ before [ ] { } to mean themselves`)
		case strings.Contains(g, "%"):
			f.bad(index(key, i), quote(g)+" is percent-encoded", "paths are compared decoded: write the characters themselves")
		case strings.Contains(g, "?") && prefix == "/":
			f.bad(index(key, i), quote(g)+" has a query", "paths are compared without one; look at `query` in a when expression")
		default:
			if stops {
				g = strings.ToLower(g)
			}
			set.globs = append(set.globs, g)
		}
	}
	return set
}

func (r *rule) compileSSH(key string, f *findings) {
	s := r.SSH
	if s == nil {
		return
	}
	key += ".ssh"
	if len(s.Git)+len(s.Commands)+len(s.Subsystems)+len(s.Forwards) == 0 && !s.Shell {
		f.bad(key, "the section allows nothing to run", "add git with repositories, commands, shell, subsystems or forwards")
	}
	for i, g := range s.Git {
		if !slices.Contains(gitServices, g) {
			f.bad(index(key+".git", i), quote(g)+" is no service of git", meant(g, gitServices...))
		}
	}
	switch {
	case len(s.Git) > 0 && len(s.Repositories) == 0 && r.Action != ActionDeny:
		f.bad(key+".repositories", "no repository is named", `write "**" if all are meant`)
	case len(s.Git) == 0 && len(s.Repositories) > 0:
		f.bad(key+".git", "repositories are named and no service of git", "write git-upload-pack for reading, git-receive-pack for writing")
	}
	var globs []string
	for i, g := range s.Repositories {
		if g != strings.TrimSuffix(strings.Trim(g, "/"), ".git") {
			f.bad(index(key+".repositories", i), quote(g)+" is not how repositories are compared", "leave out the slash at either end and .git")
		}
		globs = append(globs, g)
	}
	r.ssh = &sshSet{services: s.Git, shell: s.Shell, subsystems: s.Subsystems, stops: r.stops}
	r.ssh.repositories = compilePaths(globs, r.stops, key+".repositories", "", f)
	for i, c := range s.Commands {
		if c == "" || len(c) > 4096 {
			f.bad(index(key+".commands", i), "a command is 1 to 4096 bytes", `write "**" if all are meant`)
			continue
		}
		r.ssh.commands = append(r.ssh.commands, commandGlob(c, r.stops))
	}
	for i, c := range s.Forwards {
		if !strings.Contains(c, ":") && c != "**" || len(c) > 300 {
			f.bad(index(key+".forwards", i), quote(c)+" is no host:port", `write "**" if all are meant`)
			continue
		}
		r.ssh.forwards = append(r.ssh.forwards, commandGlob(c, r.stops))
	}
}

// meant suggests the one of the known words that was probably meant.
func meant[T ~string](word string, known ...T) string {
	best, least := "", 3
	var all []string
	for _, k := range known {
		all = append(all, string(k))
		if len(word) < 100 {
			if d := levenshtein.ComputeDistance(strings.ToLower(word), string(k)); d < least {
				best, least = string(k), d
			}
		}
	}
	if best != "" {
		return "did you mean " + best + "?"
	}
	return fmt.Sprintf("known are %s", strings.Join(all, ", "))
}

func isHTTP(p Protocol) bool { return p == HTTP || p == HTTPS || p == WS || p == WSS }

// isToken is the grammar of a method (RFC 9110, 5.6.2), with a bound.
func isToken(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return true
}
