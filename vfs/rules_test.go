package vfs

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func mustRules(t testing.TB, list ...Rule) *Rules {
	t.Helper()
	r, err := NewRules(list...)
	require.NoError(t, err)
	return r
}

func patterns(list ...string) (rules []Rule) {
	for _, p := range list {
		rules = append(rules, Rule{Pattern: p})
	}
	return rules
}

func TestRulesNamePathsAsGitignoreWould(t *testing.T) {
	for pattern, paths := range map[string]struct{ yes, no []string }{
		".envrc":                 {[]string{".envrc", "a/.envrc", "a/b/.envrc", ".envrc/below"}, []string{"", "envrc", ".envrc2", "a.envrc"}},
		"*.pem":                  {[]string{"a.pem", "x/y.pem", ".pem"}, []string{"pem", "a.pem2", "a.pemx/y"}},
		".git/hooks":             {[]string{".git/hooks", "sub/.git/hooks", ".git/hooks/pre-commit"}, []string{".git", "hooks", ".git/x/hooks", "git/hooks"}},
		"/top":                   {[]string{"top", "top/x"}, []string{"a/top"}},
		"/a/b/":                  {[]string{"a/b", "a/b/c"}, []string{"a", "x/a/b"}},
		"/d/**":                  {[]string{"d/x", "d/x/y"}, []string{"x/d"}},
		"**/deep":                {[]string{"deep", "a/deep"}, []string{"deeper"}},
		".git/modules/**/config": {[]string{".git/modules/config", ".git/modules/a/config", ".git/modules/a/b/config"}, []string{".git/modules", ".git/config", ".git/x/config"}},
		"/w/*/c":                 {[]string{"w/x/c"}, []string{"w/c", "w/x/y/c"}},
		"{a,b}.[cd]":             {[]string{"a.c", "b.d"}, []string{"c.c"}},
	} {
		rules := mustRules(t, Rule{Pattern: pattern})
		for _, p := range paths.yes {
			_, ok := rules.Match(p)
			assert.True(t, ok, "%s names %s", pattern, p)
		}
		for _, p := range paths.no {
			_, ok := rules.Match(p)
			assert.False(t, ok, "%s does not name %q", pattern, p)
		}
	}
}

func TestRulesKnowOtherSpellingsOfAName(t *testing.T) {
	rules := mustRules(t, patterns(".git/hooks", ".env", "id_rsa")...)
	for _, path := range []string{
		".GIT/Hooks", ".git/hooKs", ".git./hooks ", ".g\u200cit/hooks", "git~1/hooks", ".git::$INDEX_ALLOCATION/hooks",
		".ENV", ".Env.", ".env:stream", "ID_RSA", "id_rſa",
	} {
		_, ok := rules.Match(path)
		assert.True(t, ok, "%q", path)
	}
	_, ok := rules.Match("...")
	assert.False(t, ok)
}

func TestRulesHaveExceptionsAndNames(t *testing.T) {
	rules := mustRules(t, Rule{Name: "environment", Pattern: ".env.*", Except: []string{"*.example"}})
	r, ok := rules.Match("a/.env.local")
	assert.True(t, ok)
	assert.Equal(t, "environment", r.Name)
	_, ok = rules.Match("a/.env.Example")
	assert.False(t, ok)
}

func TestRulesTellAllMistakesAtOnce(t *testing.T) {
	_, err := NewRules(patterns("", "a//b", "../x", "[", "**", "/")...)
	require.Error(t, err)
	for _, p := range []string{`""`, `"a//b"`, `"../x"`, `"["`, `"**"`, `"/"`} {
		assert.ErrorContains(t, err, "rule "+p)
	}
	var none *Rules
	_, ok := none.Match("x")
	assert.False(t, ok)
}

func TestDefaultRulesNameWhatMattersAndNothingElse(t *testing.T) {
	protect, hide := mustRules(t, DefaultProtect()...), mustRules(t, DefaultHide()...)
	for _, p := range []string{
		".git/hooks/pre-commit", ".git/config", ".git/config.worktree", ".git/commondir", ".git/modules/a/b/hooks/x", ".git/modules/a/config",
		".git/worktrees/w/commondir", ".envrc", ".mcp.json", ".vscode/tasks.json", ".idea/x", ".claude/settings.json",
		".cursor/mcp.json", ".codex", ".devcontainer/devcontainer.json", ".husky/pre-commit", "sub/.envrc", "mise.toml",
		"lefthook.yml", ".lefthook-local.toml", "my.code-workspace", ".bashrc", ".config/autostart/x.desktop", ".zshrc", ".npmrc",
	} {
		_, ok := protect.Match(p)
		assert.True(t, ok, "protect %s", p)
	}
	for _, p := range []string{
		".git", ".git/HEAD", ".git/index", ".git/objects/ab/cd", ".git/refs/heads/config", "Makefile", "package.json", "src/main.go",
		".github/workflows/ci.yml", ".gitignore", "AGENTS.md", "bin/tool", "config", "hooks/x", "dotfiles/.bashrc", "src/config.json",
	} {
		_, ok := protect.Match(p)
		assert.False(t, ok, "do not protect %s", p)
	}
	for _, p := range []string{
		".env", ".env.local", ".env.production", "sub/.env", "prod.env", ".npmrc", ".netrc", ".pypirc", "id_rsa", "id_ed25519", "tls.pem", "tls.key",
		".aws/credentials", ".ssh/config", ".gnupg/x", ".kube/config", ".docker/config.json", ".git-credentials",
	} {
		_, ok := hide.Match(p)
		assert.True(t, ok, "hide %s", p)
	}
	for _, p := range []string{
		".env.example", ".env.sample", ".env.template", ".envrc", "id_rsa.pub", "environment.ts", ".docker/Dockerfile", "venv/certifi/cacert.pem", "main.go", "keys.go",
	} {
		_, ok := hide.Match(p)
		assert.False(t, ok, "do not hide %s", p)
	}
}

func TestRulesEqualStatesMeanEqualVerdictsBelow(t *testing.T) {
	elem := rapid.SampledFrom([]string{"a", "b", "c", "**", "?", "a*"})
	name := rapid.SampledFrom([]string{"a", "b", "c", "ab"})
	rapid.Check(t, func(t *rapid.T) {
		var list []Rule
		for range rapid.IntRange(1, 4).Draw(t, "rules") {
			p := rapid.SliceOfN(elem, 1, 4).Draw(t, "pattern")
			text := rapid.SampledFrom([]string{"", "/"}).Draw(t, "anchor")
			for _, e := range p {
				text += e + "/"
			}
			if r, err := NewRules(Rule{Pattern: text}); err == nil && r != nil {
				list = append(list, Rule{Pattern: text})
			}
		}
		rules, err := NewRules(list...)
		require.NoError(t, err)
		path := func(label string) (out string) {
			for _, n := range rapid.SliceOfN(name, 1, 4).Draw(t, label) {
				out = joinPath(out, n)
			}
			return out
		}
		x, y, below := path("x"), path("y"), path("below")
		vx, vy := rules.judge(x), rules.judge(y)
		if vx.final != nil || vy.final != nil || !assert.ObjectsAreEqual(len(vx.state), len(vy.state)) {
			return
		}
		for i := range vx.state {
			if vx.state[i] != vy.state[i] {
				return
			}
		}
		require.Equal(t, rules.judge(joinPath(x, below)).final != nil, rules.judge(joinPath(y, below)).final != nil)
	})
}

func BenchmarkRulesJudge(b *testing.B) {
	rules := mustRules(b, append(DefaultProtect(), DefaultHide()...)...)
	for b.Loop() {
		rules.judge("node_modules/@scope/package/dist/lib/internal/file.js")
	}
}
