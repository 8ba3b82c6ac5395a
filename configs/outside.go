package configs

import (
	"regexp"
	"slices"
	"strings"

	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/spf13/pflag"
)

// varForm is what shells allow as the name of a variable. It has no dot, so that
// a name never looks like a path of keys.
var varForm = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// environment reads the variables with our prefix; there must be no other.
func (l *loader) environment() {
	origins := map[string]Origin{}
	vars := slices.Clone(l.src.Env)
	slices.Sort(vars) // mistakes in an order that does not change
	provider := env.Provider(".", env.Opt{
		Prefix:      envPrefix,
		EnvironFunc: func() []string { return vars },
		TransformFunc: func(name, text string) (string, any) {
			o := Origin{Kind: KindEnv, Name: name}
			if name == envFile {
				return "", nil
			}
			if rest, ok := strings.CutPrefix(name, keys.find(sessionEnv).env()+"_"); ok {
				if !l.variable(rest, text, o) {
					return "", nil
				}
				origins[sessionEnv+"."+rest] = o
				return sessionEnv + "." + rest, text
			}
			i := slices.IndexFunc(keys, func(k *key) bool { return k.kind != kindVars && k.kind != kindBlocks && k.env() == name })
			if i < 0 {
				l.report(Problem{Origin: o, Message: "it is unknown", Hint: unknownVariableHint(name)})
				return "", nil
			}
			v, ok := l.value(keys[i], keys[i].path, text, o)
			if !ok {
				return "", nil
			}
			origins[keys[i].path] = o
			return keys[i].path, v
		},
	})
	layer, err := provider.Read()
	if err != nil {
		l.report(Problem{Origin: Origin{Kind: KindEnv}, Message: err.Error()}) // cannot happen: nothing is read
		return
	}
	l.merge(layer, origins)
}

func unknownVariableHint(name string) string {
	if vars := keys.find(sessionEnv).env(); name == vars {
		return "set " + vars + "_NAME for each variable"
	}
	names := []string{envFile}
	for _, k := range keys {
		if k.kind != kindBlocks {
			names = append(names, k.env())
		} else if strings.HasPrefix(name, k.env()) {
			return k.path + " are set in the file" + k.list.flagNames()
		}
	}
	if m := nearest(name, names); m != "" {
		return "did you mean " + m + "?"
	}
	return "unset it, as every " + envPrefix + " variable must be the name of a key (see `gondolin-mcp config example`)"
}

// flagText is a flag that is judged when the configuration is loaded, together
// with everything else, and not when the command line is read.
type flagText struct {
	kind  kind
	many  bool // each time that it is given counts
	texts []string
}

func (f *flagText) String() string { return strings.Join(f.texts, ",") }
func (f *flagText) Type() string   { return string(f.kind) }

func (f *flagText) Set(text string) error {
	if !f.many {
		f.texts = f.texts[:0]
	}
	f.texts = append(f.texts, text)
	return nil
}

// Flags makes the flags for Sources.Flags. Commands may share them.
func Flags() *pflag.FlagSet {
	set := pflag.NewFlagSet("configuration", pflag.ContinueOnError)
	for _, k := range keys {
		if k.kind == kindBlocks {
			for _, f := range k.list.flags {
				if set.Lookup(f.name) == nil { // else it adds to another list as well
					set.Var(&flagText{kind: f.form, many: true}, f.name, f.help)
				}
			}
		}
		if k.flag == "" {
			continue
		}
		f := set.VarPF(&flagText{kind: k.kind, many: k.kind == kindVars || k.kind == kindPaths}, k.flag, "", k.help)
		f.NoOptDefVal = k.alone
		if k.kind == kindBool {
			f.NoOptDefVal = "true"
		}
	}
	return set
}

// flags reads the flags that were given.
func (l *loader) flags() {
	if l.src.Flags == nil {
		return
	}
	origins := map[string]Origin{}
	// posflag puts each flag at one key; the variables of --env are many.
	vars := map[string]any{}
	provider := posflag.ProviderWithFlag(l.src.Flags, ".", nil, func(f *pflag.Flag) (string, any) {
		text, ours := f.Value.(*flagText)
		if !ours || !f.Changed {
			return "", nil
		}
		o := Origin{Kind: KindFlag, Name: "--" + f.Name}
		if lists := listFlagsNamed(f.Name); lists != nil {
			for _, t := range text.texts {
				for _, list := range lists {
					if !l.flagBlock(list.key, list.flag, t, o) {
						break
					}
				}
			}
			return "", nil
		}
		i := slices.IndexFunc(keys, func(k *key) bool { return k.flag == f.Name })
		if i < 0 {
			return "", nil
		}
		k := keys[i]
		if k.kind == kindVars {
			for _, t := range text.texts {
				name, value, ok := strings.Cut(t, "=")
				if !ok {
					l.report(Problem{Origin: o, Key: k.path, Message: quote(t) + " has no =", Hint: "write --" + f.Name + " NAME=VALUE"})
				} else if l.variable(name, value, o) {
					vars[name], origins[sessionEnv+"."+name] = value, o
				}
			}
			return k.path, vars
		}
		v, ok := l.value(k, k.path, text.String(), o)
		if !ok {
			return "", nil
		}
		origins[k.path] = o
		return k.path, v
	})
	layer, err := provider.Read()
	if err != nil {
		l.report(Problem{Origin: Origin{Kind: KindFlag}, Message: err.Error()}) // cannot happen: nothing is read
		return
	}
	l.merge(layer, origins)
}
