package images

import (
	"bufio"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]*(:[a-z0-9]+)?$`)

// osRelease is the part of /etc/os-release that matters here.
type osRelease struct {
	ID, Like, Codename string
}

// family is whose package names apply: debian, ubuntu, or something else.
func (o osRelease) family() string {
	if o.ID == "debian" || o.ID == "ubuntu" {
		return o.ID
	}
	for _, like := range strings.Fields(o.Like) { // "ubuntu debian": nearest first
		if like == "ubuntu" || like == "debian" {
			return like
		}
	}
	return o.ID
}

func readOSRelease(path string) (osRelease, error) {
	f, err := os.Open(path)
	if err != nil {
		return osRelease{}, fmt.Errorf("finding out which distribution this is: %w", err)
	}
	defer f.Close()
	var o osRelease
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), "=")
		value = strings.Trim(value, `"'`)
		switch key {
		case "ID":
			o.ID = value
		case "ID_LIKE":
			o.Like = value
		case "VERSION_CODENAME":
			o.Codename = value
		}
	}
	return o, lines.Err()
}

// aptSource is one line of a sources.list, or one combination of a deb822 stanza.
type aptSource struct {
	uri, suite string
	components []string
	signedBy   string // path; or an inline key block
	trusted    bool
}

// line writes the source in one-line form. keyFile replaces an inline key.
func (s aptSource) line(keyFile string) string {
	var options []string
	if keyFile != "" {
		options = append(options, "signed-by="+keyFile)
	}
	if s.trusted {
		options = append(options, "trusted=yes")
	}
	opt := ""
	if len(options) > 0 {
		opt = "[" + strings.Join(options, " ") + "] "
	}
	return fmt.Sprintf("deb %s%s %s %s", opt, s.uri, s.suite, strings.Join(s.components, " "))
}

func (s aptSource) inlineKey() bool { return strings.Contains(s.signedBy, "BEGIN PGP") }

// parseList reads the one-line format. Lines that apt would not take are skipped: apt itself has the say
// on them, and a third party's broken line is no reason to fail.
func parseList(r io.Reader) []aptSource {
	var out []aptSource
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		text, _, _ := strings.Cut(lines.Text(), "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(text), "deb")
		if !ok || rest == "" || (rest[0] != ' ' && rest[0] != '\t') {
			continue
		}
		var s aptSource
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			options, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				continue
			}
			rest = after
			for _, o := range strings.Fields(options) {
				key, value, _ := strings.Cut(o, "=")
				value = strings.Trim(value, `"`)
				switch strings.ToLower(key) {
				case "signed-by":
					s.signedBy = value
				case "trusted":
					s.trusted = value == "yes"
				}
			}
		}
		f := strings.Fields(rest)
		if len(f) < 3 {
			continue
		}
		s.uri, s.suite, s.components = f[0], f[1], f[2:]
		out = append(out, s)
	}
	return out
}

// parseDeb822 reads the stanza format of *.sources files.
func parseDeb822(r io.Reader) []aptSource {
	var out []aptSource
	fields := map[string]string{}
	last := ""
	flush := func() {
		out = append(out, expandStanza(fields)...)
		fields, last = map[string]string{}, ""
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			flush()
		case line[0] == ' ' || line[0] == '\t':
			if last != "" {
				fields[last] += "\n" + strings.TrimSpace(line)
			}
		default:
			key, value, ok := strings.Cut(line, ":")
			if !ok {
				last = ""
				continue
			}
			last = strings.ToLower(strings.TrimSpace(key))
			fields[last] = strings.TrimSpace(value)
		}
	}
	flush()
	return out
}

func expandStanza(fields map[string]string) []aptSource {
	if enabled := strings.ToLower(fields["enabled"]); enabled == "no" || enabled == "false" || enabled == "0" {
		return nil
	}
	if !slices.Contains(strings.Fields(fields["types"]), "deb") {
		return nil
	}
	components := strings.Fields(fields["components"])
	if len(components) == 0 {
		return nil // a flat repository is never the distribution's own
	}
	var out []aptSource
	for _, uri := range strings.Fields(fields["uris"]) {
		for _, suite := range strings.Fields(fields["suites"]) {
			out = append(out, aptSource{uri: uri, suite: suite, components: components,
				signedBy: strings.TrimSpace(fields["signed-by"]), trusted: strings.EqualFold(fields["trusted"], "yes")})
		}
	}
	return out
}

// readSources reads an apt configuration directory.
func readSources(etcApt string) ([]aptSource, error) {
	lists, _ := filepath.Glob(filepath.Join(etcApt, "sources.list.d", "*.list")) // the patterns are well formed
	stanzas, _ := filepath.Glob(filepath.Join(etcApt, "sources.list.d", "*.sources"))
	var out []aptSource
	for _, file := range append(append([]string{filepath.Join(etcApt, "sources.list")}, lists...), stanzas...) {
		f, err := os.Open(file)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading apt's sources: %w", err)
		}
		if strings.HasSuffix(file, ".sources") {
			out = append(out, parseDeb822(f)...)
		} else {
			out = append(out, parseList(f)...)
		}
		_ = f.Close()
	}
	return out, nil
}

// ownComponents are those of Debian and Ubuntu.
var ownComponents = []string{"main", "contrib", "non-free", "non-free-firmware", "universe", "multiverse", "restricted"}

// distributionSources keeps the sources of the distribution's own suites. Third parties also use the
// release's name as a suite; their keys and components tell them apart. A mirror that signs with a key
// of its own still counts when there is no other.
func distributionSources(all []aptSource, suite string) ([]aptSource, error) {
	var official, other []aptSource
	for _, s := range all {
		base := strings.TrimSuffix(strings.TrimSuffix(s.suite, "-updates"), "-security")
		base = strings.TrimSuffix(base, "/updates") // the old name of -security
		own := !slices.ContainsFunc(s.components, func(c string) bool { return !slices.Contains(ownComponents, c) })
		if base != suite || !own {
			continue
		}
		if s.signedBy == "" || regexp.MustCompile(`/(debian|ubuntu)-archive-keyring[^/]*$`).MatchString(s.signedBy) || s.inlineKey() {
			official = append(official, s)
		} else {
			other = append(other, s)
		}
	}
	hasBase := func(list []aptSource) bool {
		return slices.ContainsFunc(list, func(s aptSource) bool { return s.suite == suite })
	}
	switch {
	case hasBase(official):
		return official, nil
	case hasBase(append(official, other...)):
		return append(official, other...), nil
	}
	return nil, fmt.Errorf("apt's configuration on this machine (/etc/apt/sources.list and sources.list.d) has no source for the suite %q; "+
		"add one, or build from an OCI image with --from oci:REF", suite)
}

// guestSources is the sources.list for the image: the same mirrors without credentials, local paths or
// keys of this machine.
func guestSources(list []aptSource) string {
	var b strings.Builder
	for _, s := range list {
		u, err := url.Parse(s.uri)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			continue
		}
		u.User = nil
		u.RawQuery, u.Fragment = "", ""
		s.uri, s.trusted = u.String(), false
		key := ""
		if strings.HasPrefix(s.signedBy, "/usr/share/keyrings/") {
			key = s.signedBy
		}
		b.WriteString(s.line(key) + "\n")
	}
	return b.String()
}

var urlCredentials = regexp.MustCompile(`(://)[^/@\s"']+@`)

// stripCredentials removes user names and passwords from URLs in a text meant for people.
func stripCredentials(text string) string { return urlCredentials.ReplaceAllString(text, "$1") }
