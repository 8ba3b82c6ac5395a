package policy

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestGitCommandsAreReadAsGitWritesThem(t *testing.T) {
	for command, want := range map[string]string{
		"git-upload-pack 'o/r.git'": "git-upload-pack o/r", "git-upload-pack '/o/r'": "git-upload-pack o/r", "git upload-pack 'o/r.git/'": "git-upload-pack o/r",
		"git-receive-pack o/r": "git-receive-pack o/r", `git-receive-pack 'o/it'\''s'`: "git-receive-pack o/it's", `git-upload-pack 'o/a'\!'b'`: "git-upload-pack o/a!b",
		"git-upload-archive '~user/r.git'": "git-upload-archive ~user/r", "git-upload-pack 'a b/c'": "git-upload-pack a b/c",
	} {
		service, repository, ok := ParseGitCommand(command)
		assert.True(t, ok, command)
		assert.Equal(t, want, service+" "+repository, command)
	}
	for _, command := range []string{
		"", "git-upload-pack", "git-upload-pack ", "git-upload-pack ''", "git-upload-pack 'a' 'b'", "git-upload-pack 'a'; id", "git-upload-pack 'a' && id", "git-upload-pack $(id)", "git-upload-pack `id`",
		"git-upload-pack 'a", "git-upload-pack a\nid", "git-upload-pack '../a'", "git-upload-pack 'a/../b'", "git-upload-pack 'a//b'", "git-upload-pack 'a/./b'", `git-upload-pack a\;id`,
		"git-upload-packs 'a'", " git-upload-pack 'a'", "git-upload-pack --exec=x 'a'", "git-upload-pack 'a\x00b'", `git-upload-pack "a"`, "sh -c 'git-upload-pack a'",
	} {
		_, _, ok := ParseGitCommand(command)
		assert.False(t, ok, command)
	}
}

func TestGitIsAllowedByServiceAndRepository(t *testing.T) {
	p := compiled(t,
		Rule{Action: ActionDeny, Protocols: []Protocol{SSH}, Hosts: []string{"git.example"}, SSH: &SSHRule{Git: []string{GitUploadPack}, Repositories: []string{"o/private"}}},
		Rule{Action: ActionAllow, Hosts: []string{"git.example"}, SSH: &SSHRule{Git: []string{GitUploadPack}, Repositories: []string{"o/*"}}},
		Rule{Action: ActionAllow, Hosts: []string{"git.example"}, SSH: &SSHRule{Git: []string{GitReceivePack}, Repositories: []string{"o/mine"}}},
	)
	for command, want := range map[string]Verdict{
		"git-upload-pack 'o/r.git'": Allow, "git-upload-pack '/o/r.git'": Allow, "git-upload-pack 'o/private.git'": Deny, "git-upload-pack 'O/Private'": Deny, "git-upload-pack 'o/PRIVATE.git'": Deny,
		"git-upload-pack 'x/r'": Deny, "git-upload-pack 'o/r/s'": Deny, "git-receive-pack 'o/r'": Deny, "git-receive-pack 'o/mine'": Allow, "git-receive-pack 'o/Mine'": Deny,
		"git-upload-archive 'o/r'": Deny, "git-upload-pack 'o/r'; id": Deny, "ls": Deny, "": Deny,
	} {
		assert.Equal(t, want, verdict(t, p, "ssh://git.example "+command), command)
	}
	assert.Equal(t, Deny, verdict(t, p, "ssh://git.example:2222 git-upload-pack 'o/r'"))
}

func TestAWildcardInACommandDoesNotStandForAnotherCommand(t *testing.T) {
	p := compiled(t, Rule{Action: ActionAllow, Hosts: []string{"h.example"}, SSH: &SSHRule{Commands: []string{"git log *", "df -?", "echo $HOME; ls"}}})
	for command, want := range map[string]Verdict{
		"git log -1 --format='%h x'": Allow, "df -h": Allow, "df -hT": Deny, "echo $HOME; ls": Allow, "git log": Deny, "GIT LOG -1": Deny,
		"git log x; id": Deny, "git log x | sh": Deny, "git log `id`": Deny, "git log $(id)": Deny, "git log x\nid": Deny, "git log x && id": Deny, "git log > f": Deny, "git log <f": Deny, "git log x & id": Deny,
	} {
		d := p.Decide(Request{Protocol: SSH, Host: "h.example", Port: 22, SSH: SSHCall{Kind: SSHExec, Command: command}})
		assert.Equal(t, want, d.Verdict, command)
	}
}

func TestADenyRuleStopsACommandHoweverItIsWrapped(t *testing.T) {
	p := compiled(t,
		Rule{Action: ActionDeny, Protocols: []Protocol{SSH}, Hosts: []string{"*"}, SSH: &SSHRule{Git: []string{GitReceivePack}, Commands: []string{"*rm -rf*"}}},
		Rule{Action: ActionAllow, Hosts: []string{"*"}, SSH: &SSHRule{Commands: []string{"**"}}},
	)
	for command, want := range map[string]Verdict{
		"git-upload-pack 'a/b'": Allow, "git-receive-pack 'a/b'": Deny, "git receive-pack a/b": Deny, "sh -c 'git-receive-pack a/b'": Deny, "git -c x=y receive-pack a": Deny, "git-receive-pack a b": Deny,
		"ls; rm -rf /": Deny, "RM -RF /": Deny, "ls\nrm -rf /": Deny, "ls": Allow,
	} {
		d := p.Decide(Request{Protocol: SSH, Host: "h.example", Port: 22, SSH: SSHCall{Kind: SSHExec, Command: command}})
		assert.Equal(t, want, d.Verdict, command)
	}
}

func TestShellsSubsystemsAndForwardsAreRefusedUnlessNamed(t *testing.T) {
	calls := []SSHCall{{Kind: SSHShell}, {Kind: SSHSubsystem, Command: "sftp"}, {Kind: SSHForward, Command: "db.example:5432"}, {Kind: SSHExec, Command: "ls"}}
	for i, section := range []SSHRule{{Shell: true}, {Subsystems: []string{"sftp"}}, {Forwards: []string{"*.example:5432"}}, {Commands: []string{"**"}}} {
		p := compiled(t, Rule{Action: ActionAllow, Hosts: []string{"h.example"}, SSH: &section})
		for j, call := range calls {
			d := p.Decide(Request{Protocol: SSH, Host: "h.example", Port: 22, SSH: call})
			assert.Equal(t, i == j, d.Allowed(), "%v for %v", section, call)
		}
	}
}
