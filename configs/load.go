package configs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
)

// Sources say where a configuration comes from.
type Sources struct {
	File  string         // given by the user; empty: see Locate
	Env   []string       // as os.Environ returns it
	Flags *pflag.FlagSet // made by Flags; nil: none

	// Here also judges what depends on this machine at this moment: a directory to be
	// mounted that does not exist is a mistake then.
	Here bool
}

const (
	envPrefix = "GONDOLIN_"
	// envFile names the file and is no key.
	envFile = envPrefix + "CONFIG"
	// maxFile is more than anybody writes by hand.
	maxFile = 1 << 20
)

// loader gathers values and mistakes, layer by layer.
type loader struct {
	src      Sources
	ko       *koanf.Koanf
	origins  map[string]Origin
	blocks   map[string][]*block // of lists, from all layers
	problems []Problem
	more     int
}

// Load reads all layers. Its error is an *Error with every mistake in them.
func Load(src Sources) (*Config, error) {
	path, by := Locate(src)
	l := newLoader(src)
	if by == "" {
		return l.load("", nil)
	}
	data, err := readFile(path)
	if err != nil {
		p := Problem{Origin: Origin{Kind: KindFile, Name: path}, Message: err.Error()}
		if by == KindEnv {
			p.Hint = "it is named by " + envFile
		}
		l.report(p)
		path = ""
	}
	return l.load(path, data)
}

// Locate returns the path of the file that Load reads, and who named it:
// KindFlag, KindEnv or, for the usual place, KindDefault. by is empty when there
// is no file; the path is then where one would be looked for.
func Locate(src Sources) (path string, by Kind) {
	if src.File != "" {
		return expand(src.File, src.Env), KindFlag
	}
	if p := lookup(src.Env, envFile); p != "" {
		return expand(p, src.Env), KindEnv
	}
	if path = usualPlace(src.Env); path == "" {
		return "", ""
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return path, ""
	}
	return path, KindDefault
}

// usualPlace is where a file is that nobody names, or "".
func usualPlace(env []string) string {
	dir := lookup(env, "XDG_CONFIG_HOME")
	if !filepath.IsAbs(dir) { // as the XDG specification says
		home := lookup(env, "HOME")
		if home == "" {
			return ""
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "gondolin", "config.yaml")
}

func lookup(env []string, name string) string {
	for _, v := range slices.Backward(env) { // the last one wins, as in os/exec
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}

// expand replaces a leading ~/, which no shell does in a file or in a client's configuration.
func expand(path string, env []string) string {
	if rest, ok := strings.CutPrefix(path+"/", "~/"); ok {
		if home := lookup(env, "HOME"); home != "" {
			return filepath.Join(home, rest)
		}
	}
	return path
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, reason(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, reason(err)
	}
	return data, nil
}

// reason drops the path from an error, as the problem's origin names it.
func reason(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return fmt.Errorf("cannot be read: %w", p.Err)
	}
	return err
}

func newLoader(src Sources) *loader {
	return &loader{src: src, ko: koanf.New("."), origins: map[string]Origin{}, blocks: map[string][]*block{}}
}

// load lays the layers over each other. An empty path means that there is no file.
func (l *loader) load(path string, data []byte) (*Config, error) {
	l.defaults()
	if path != "" {
		l.file(path, data)
	}
	l.environment()
	l.flags()
	l.finishLists()
	l.checkNetwork()
	l.checkMetrics()
	l.checkHere()
	if len(l.problems) > 0 {
		return nil, &Error{Problems: l.problems, More: l.more}
	}
	c := &Config{origins: l.origins, file: path}
	if usual := usualPlace(l.src.Env); usual != "" {
		c.dir = filepath.Dir(usual)
	}
	if err := l.ko.Unmarshal("", c); err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	for path, dir := range map[string]*string{"paths.cache": &c.Paths.Cache, "paths.runtime": &c.Paths.Runtime, "audit.dir": &c.Audit.Dir} {
		if *dir == "" {
			*dir = fallback(path)
		}
	}
	return c, nil
}

func (l *loader) report(p Problem) {
	if len(l.problems) >= maxProblems {
		l.more++
		return
	}
	l.problems = append(l.problems, p)
}

// merge puts a layer over the ones before.
func (l *loader) merge(layer map[string]any, origins map[string]Origin) {
	if err := l.ko.Load(confmap.Provider(layer, "."), nil); err != nil {
		l.report(Problem{Message: err.Error()}) // cannot happen: confmap only copies
	}
	for path, o := range origins {
		l.origins[path] = o
	}
}

func (l *loader) defaults() {
	layer, origins := map[string]any{"version": Version, sessionEnv: map[string]any{}}, map[string]Origin{"version": {Kind: KindDefault}}
	for _, k := range keys {
		if k.kind != kindVars && k.kind != kindBlocks {
			layer[k.path], origins[k.path] = k.def, Origin{Kind: KindDefault}
		}
	}
	l.merge(layer, origins)
}

// value reads one value of a layer, reporting what is wrong with it. name is the key's
// whole path, which in a block of a list is longer than k.path.
func (l *loader) value(k *key, name, text string, o Origin) (any, bool) {
	v, hint, err := k.parse(text)
	switch {
	case err != nil:
	case k.kind == kindPaths:
		v, err = l.dirs(text, o)
	case k.kind == kindDir && !slices.Contains(k.values, text):
		v, err = l.dir(text, o)
	case k.kind == kindPath:
		v, err = l.path(text, o)
		if err == nil && k.path == "paths.runtime" && len(v.(string)) > runtimeMost {
			err = fmt.Errorf("%s has %d bytes, and at most %d leave room for the sockets in it", quote(v.(string)), len(v.(string)), runtimeMost)
			hint = "choose a shorter one"
		}
	}
	if err != nil {
		message := err.Error()
		if k.quiet {
			message, hint = "this is no "+k.kind.words(), ""
		}
		l.report(Problem{Origin: o, Key: name, Message: message, Hint: hint})
		return nil, false
	}
	return v, true
}

// dirs reads a list of paths of the environment, where commas part them.
func (l *loader) dirs(text string, o Origin) ([]string, error) {
	list := []string{}
	for part := range strings.SplitSeq(text, ",") {
		if part == "" {
			continue
		}
		p, err := l.dir(part, o)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

// path makes a path absolute where it is clear what it is relative to.
func (l *loader) path(text string, o Origin) (string, error) {
	p := expand(text, l.src.Env)
	switch {
	case p == "" || filepath.IsAbs(p):
		return p, nil
	case o.Kind == KindFlag:
		return filepath.Abs(p)
	}
	return "", fmt.Errorf("%s is a relative path: make it absolute or begin it with ~/", quote(text))
}

// dir is path for a directory, which a file may also name from where it lies itself.
func (l *loader) dir(text string, o Origin) (string, error) {
	p := expand(text, l.src.Env)
	switch {
	case p == "~" || strings.HasPrefix(p, "~/"):
		return "", fmt.Errorf("%s begins with ~, and HOME is not set", quote(text))
	case filepath.IsAbs(p):
		return filepath.Clean(p), nil
	case o.Kind == KindFile:
		return filepath.Abs(filepath.Join(filepath.Dir(o.Name), p))
	}
	return l.path(p, o)
}

// variable checks the name and value of one variable of session.env.
func (l *loader) variable(name, value string, o Origin) bool {
	switch {
	case !varForm.MatchString(name):
		l.report(Problem{Origin: o, Key: sessionEnv, Message: quote(name) + " is no name of a variable: use letters, digits and _, not beginning with a digit"})
	case strings.ContainsRune(value, 0):
		l.report(Problem{Origin: o, Key: sessionEnv + "." + name, Message: "its value contains a NUL"})
	default:
		return true
	}
	return false
}

var utf8BOM = []byte("\xef\xbb\xbf")

func trimBOM(data []byte) []byte { return bytes.TrimPrefix(data, utf8BOM) }
