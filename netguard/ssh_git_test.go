package netguard

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// openssh is the command line of OpenSSH as a guest would have it: it knows the
// session's authority and nothing else. It skips the test where there is none.
func (r *sshRig) openssh(programs ...string) []string {
	r.t.Helper()
	for _, p := range append(programs, "ssh") {
		if _, err := exec.LookPath(p); err != nil {
			r.t.Skip("there is no ", p)
		}
	}
	known := filepath.Join(r.t.TempDir(), "known_hosts")
	require.NoError(r.t, os.WriteFile(known, []byte(r.ca.KnownHosts()), 0o600))
	_, port, err := net.SplitHostPort(r.front.Addr().String())
	require.NoError(r.t, err)
	return []string{
		"ssh", "-F", "none", "-o", "UserKnownHostsFile=" + known, "-o", "GlobalKnownHostsFile=none", "-o", "StrictHostKeyChecking=yes",
		"-o", "BatchMode=yes", "-o", "IdentityAgent=none", "-o", "IdentityFile=none", "-o", "HostName=127.0.0.1", "-o", "HostKeyAlias=" + sshHost, "-p", port,
	}
}

// program runs one in the guest.
func program(t testing.TB, env []string, dir string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "HOME="+t.TempDir(), "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example", "GIT_TERMINAL_PROMPT=0")
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestGitOverSSHClonesFetchesAndPushes(t *testing.T) {
	r := newSSHRig(t, nil,
		sshRule(policy.SSHRule{Git: []string{policy.GitUploadPack, policy.GitReceivePack}, Repositories: []string{"o/r"}}),
	)
	env := []string{"GIT_SSH_COMMAND=" + strings.Join(r.openssh("git"), " ")}
	work := t.TempDir()
	git := func(dir string, args ...string) (string, error) {
		t.Helper()
		return program(t, env, dir, append([]string{"git"}, args...)...)
	}
	must := func(dir string, args ...string) string {
		t.Helper()
		out, err := git(dir, args...)
		require.NoError(t, err, out)
		return out
	}
	must(r.server.dir, "init", "-q", "--bare", "-b", "main", "o/r.git")
	url := "git@" + sshHost + ":o/r.git"
	a, b := filepath.Join(work, "a"), filepath.Join(work, "b")
	must(work, "clone", "-q", url, a)
	require.NoError(t, os.WriteFile(filepath.Join(a, "big"), []byte(strings.Repeat("all work and no play\n", 1<<18)), 0o600))
	must(a, "add", ".")
	must(a, "commit", "-q", "-m", "one")
	must(a, "push", "-q", "origin", "HEAD:main")
	must(work, "clone", "-q", url, b)
	must(a, "commit", "-q", "--allow-empty", "-m", "two")
	must(a, "push", "-q", "origin", "HEAD:main")
	must(b, "fetch", "-q")
	assert.Contains(t, must(b, "log", "--format=%s", "origin/main"), "two\none")
	assert.Contains(t, strings.Join(r.server.seen(), "\n"), "env GIT_PROTOCOL", "the protocol's version 2 gets through")

	out, err := git(work, "clone", "git@"+sshHost+":o/secret.git", filepath.Join(work, "c"))
	assert.Error(t, err)
	assert.Contains(t, out, "gondolin: refused: ")
	assert.Contains(t, out, "run git-upload-pack or git-receive-pack on o/r")

	r.g.SetPolicy(mustPolicy(t, sshRule(policy.SSHRule{Git: []string{policy.GitUploadPack}, Repositories: []string{"o/r"}})))
	must(b, "fetch", "-q")
	out, err = git(a, "push", "origin", "HEAD:other")
	assert.Error(t, err)
	assert.Contains(t, out, "gondolin: refused: ")
}

func TestOpenSSHNeedsNoPrompt(t *testing.T) {
	r := newSSHRig(t, nil, everything())
	ssh := r.openssh()
	out, err := program(t, nil, "", append(ssh, "agent@"+sshHost, "echo out; echo err >&2; exit 5")...)
	assert.Contains(t, out, "out\n")
	assert.Contains(t, out, "err\n")
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	assert.Equal(t, 5, exit.ExitCode())

	out, err = program(t, nil, "", append(ssh, "-tt", sshHost, "echo tty")...)
	require.NoError(t, err, out)
	assert.Contains(t, out, "tty\n")

	r.g.SetPolicy(mustPolicy(t, sshRule(policy.SSHRule{Commands: []string{"true"}})))
	out, err = program(t, nil, "", append(ssh, sshHost)...)
	require.ErrorAs(t, err, &exit, out)
	assert.Equal(t, 1, exit.ExitCode())
	assert.Contains(t, out, "gondolin: refused: ")
	out, err = program(t, nil, "", append(ssh, "-o", "ExitOnForwardFailure=yes", "-N", "-R", "0:127.0.0.1:1", sshHost)...)
	assert.Error(t, err, out)
	out, err = program(t, nil, "", append(ssh, "-W", "db.example:5432", sshHost)...)
	assert.Error(t, err)
	assert.Contains(t, out, "gondolin: refused: ")
	if _, err := exec.LookPath("sftp"); err == nil {
		out, err = program(t, nil, "", append(append([]string{"sftp"}, append(ssh[1:len(ssh)-2], "-P", ssh[len(ssh)-1])...), sshHost)...)
		assert.Error(t, err)
		assert.Contains(t, out, `gondolin: refused: `)
		assert.Contains(t, out, `subsystem "sftp"`)
	}
}
