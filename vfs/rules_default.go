package vfs

// DefaultProtect is what a workspace's guest must not write: files that tools on the host run or obey merely
// because they lie there, at the latest when somebody opens the directory, changes into it, or uses git.
//
// What a person runs on purpose (Makefile, package.json, build.rs) is not among them: its content is the
// guest's work, and running it is a decision. Neither are .github/workflows, which run elsewhere after a review, nor
// prose for agents (AGENTS.md, CLAUDE.md), which is the project's text like any other. An operator
// who sees that differently adds a Rule.
//
// Two things no list of names can hold back: a directory that looks like a bare git repository
// (git config --global safe.bareRepository explicit, on the host, does), and symbolic links that lead out
// of the workspace for a host program that follows them.
func DefaultProtect() []Rule {
	return named([]group{
		{"git runs or obeys it", []string{
			".git/hooks", ".git/config", ".git/config.worktree", ".git/config.lock", ".git/commondir",
			".git/modules/**/hooks", ".git/modules/**/config", ".git/modules/**/config.worktree", ".git/modules/**/commondir",
			".git/worktrees/*/config.worktree", ".git/worktrees/*/commondir",
			".husky", ".githooks", ".lefthook", "{.,}lefthook{-local,}.{yml,yaml,toml,json}", ".pre-commit-config.{yml,yaml}",
		}},
		{"a shell runs it on entering the directory", []string{
			".envrc", ".autoenv{,.zsh}", "{.,}mise{,.local}.toml", ".mise", ".config/mise{,.toml}",
		}},
		{"an editor obeys it", []string{
			".vscode", "*.code-workspace", ".idea", ".fleet", ".zed", ".helix", ".devcontainer", ".devcontainer.json",
			".exrc", ".vimrc", ".gvimrc", ".nvimrc", ".nvim.lua", ".lvimrc", ".dir-locals{,-2}.el",
		}},
		{"an agent on the host obeys it", []string{
			".mcp.json", ".claude", ".cursor", ".codex", ".gemini", ".windsurf", ".continue", ".roo", ".cline", ".kiro",
			".amazonq", ".opencode", "opencode.json{,c}", ".aider.conf.yml", ".goose",
		}},
		{"a package manager runs what it names", []string{".npmrc", ".yarnrc{,.yml}", ".pnpmfile.cjs"}},
		{"a debugger runs it", []string{".gdbinit", ".lldbinit"}},
		{"a login or desktop runs it, should the mount be a home directory", []string{
			"/.bashrc", "/.bash_{profile,login,logout,aliases}", "/.profile", "/.xprofile", "/.xsession{,rc}", "/.xinitrc",
			"/.z{shrc,shenv,profile,login,logout}", "/.config/fish", "/.config/autostart", "/.config/systemd",
			"/.config/environment.d", "/.config/git", "/.gitconfig", "/.ssh", "/.gnupg", "/.local/bin", "/.local/share/systemd",
			"/Library/LaunchAgents",
		}},
	})
}

// DefaultHide is what a workspace's guest must not see: files that hold credentials by convention.
func DefaultHide() []Rule {
	samples := []string{"*.example", "*.sample", "*.template", "*.dist"}
	rules := named([]group{
		{"keys", []string{
			"id_{rsa,dsa,ecdsa,ed25519,ecdsa_sk,ed25519_sk}", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk",
			".ssh", ".gnupg", ".password-store", ".age", "*.agekey",
		}},
		{"credentials", []string{
			".npmrc", ".netrc", "_netrc", ".pypirc", ".yarnrc.yml", ".pgpass", ".my.cnf", ".git-credentials", ".htpasswd", ".vault-token",
			".aws", ".azure", ".config/gcloud", ".config/gh", ".config/hub", ".kube", ".docker/config.json", ".dockercfg",
			".terraformrc", ".terraform.d/credentials.tfrc.json", "*.tfvars", "*.tfstate", "*.tfstate.backup", ".cargo/credentials{,.toml}", ".gem/credentials",
			".m2/settings.xml", ".composer/auth.json", "service-account*.json",
		}},
	})
	for _, pattern := range []string{".env", ".env.*", "*.env"} {
		rules = append(rules, Rule{Name: "environment: " + pattern, Pattern: pattern, Except: samples})
	}
	// Certificates of authorities are public, and every Python environment has some.
	return append(rules, Rule{Name: "*.pem (keys)", Pattern: "*.pem",
		Except: []string{"ca.pem", "cacert*.pem", "ca-*.pem", "roots.pem", "*.pub.pem"}})
}

// group are patterns with one reason.
type group struct {
	reason   string
	patterns []string
}

func named(groups []group) (rules []Rule) {
	for _, g := range groups {
		for _, p := range g.patterns {
			rules = append(rules, Rule{Name: p + " (" + g.reason + ")", Pattern: p})
		}
	}
	return rules
}
