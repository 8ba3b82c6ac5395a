package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"github.com/gondolin-go/gondolin/sandbox"
)

// bare makes an empty repository on the host.
func (c *clients) bare(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(c.repos, name)
	for _, args := range [][]string{{"init", "-q", "--bare", "-b", "main", dir}, {"-C", dir, "config", "http.receivepack", "true"}} {
		out, err := exec.Command("git", args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	return dir
}

// gitRound clones, pushes from one clone and fetches in another, without a terminal to ask on.
const gitRound = `set -e
export GIT_TERMINAL_PROMPT=0 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
rm -rf /tmp/git && mkdir /tmp/git && cd /tmp/git
git clone -q $URL one 2>&1
cd one && head -c 5M /dev/urandom > blob && git add . && git commit -qm first && git push -q origin HEAD:main
cd .. && git clone -q $URL two && cmp one/blob two/blob
cd one && git commit -q --allow-empty -m second && git push -q origin HEAD:main
cd ../two && git fetch -q && git log --format=%s origin/main`

func (c *clients) gitHTTPS(t *testing.T) {
	dir := c.bare(t, "web.git")
	out, exit := try(t, c.s, sandbox.Command{Shell: gitRound, Env: map[string]string{"URL": c.url(t, true) + "/git/web.git"}})
	require.Zero(t, exit.Code, out)
	require.Contains(t, out, "second\nfirst")
	log, err := exec.Command("git", "-C", dir, "log", "--format=%s", "main").Output()
	require.NoError(t, err)
	require.Equal(t, "second\nfirst\n", string(log), "it has arrived")
}

func (c *clients) sshURL(repository string) string {
	return fmt.Sprintf("ssh://git@git.example:%d%s/%s", c.sshd.port, c.repos, repository)
}

func (c *clients) gitSSH(t *testing.T) {
	c.bare(t, "work.git")
	out, exit := try(t, c.s, sandbox.Command{Shell: gitRound, Env: map[string]string{"URL": c.sshURL("work.git"), "GIT_SSH_COMMAND": "ssh -o BatchMode=yes"}})
	require.Zero(t, exit.Code, out)
	require.Contains(t, out, "second\nfirst")

	// The policy knows repositories and services: this one is only to be read.
	lib := c.bare(t, "lib.git")
	blob, err := exec.Command("git", "-C", filepath.Join(c.repos, "work.git"), "push", "-q", lib, "main").CombinedOutput()
	require.NoError(t, err, "%s", blob)
	sh(t, c.s, "cd /tmp && rm -rf lib && git clone -q "+c.sshURL("lib.git")+" lib")
	out, exit = try(t, c.s, sandbox.Command{Shell: "cd /tmp/lib && git push origin HEAD:other"})
	require.NotZero(t, exit.Code)
	require.Contains(t, out, "gondolin: refused: ")
	c.bare(t, "private.git")
	out, exit = try(t, c.s, sandbox.Command{Shell: "git clone " + c.sshURL("private.git") + " /tmp/private"})
	require.NotZero(t, exit.Code)
	require.Contains(t, out, "gondolin: refused: ")
	branches, err := exec.Command("git", "-C", lib, "branch").Output()
	require.NoError(t, err)
	require.NotContains(t, string(branches), "other")
}

func (c *clients) ssh(t *testing.T) {
	began := time.Now()
	at := func(host string) string { return fmt.Sprintf("ssh -o BatchMode=yes -p %d git@%s", c.sshd.port, host) }
	require.Equal(t, "hello over ssh", sh(t, c.s, at("git.example")+" echo hello over ssh"))
	refused := func(command, says string) {
		t.Helper()
		out, exit := try(t, c.s, sandbox.Command{Shell: command})
		require.NotZero(t, exit.Code, out)
		require.Contains(t, out, "gondolin: refused: ")
		require.Contains(t, out, says)
	}
	refused(at("git.example")+" id", "id")
	refused(at("git.example"), "shell")
	refused(fmt.Sprintf("echo ls | sftp -P %d git@git.example", c.sshd.port), "sftp")
	refused(at("git.example")+" -W db.example:5432 </dev/null", "db.example:5432")
	out, exit := try(t, c.s, sandbox.Command{Shell: at("moved.example") + " uname"})
	require.NotZero(t, exit.Code)
	require.Contains(t, out, ssh.FingerprintSHA256(c.sshd.host), "what it shows")
	require.Contains(t, out, ssh.FingerprintSHA256(c.sshd.other), "what is known")
	var told []string
	for _, d := range c.s.Denials(began) {
		told = append(told, d.Reason)
	}
	require.Contains(t, strings.Join(told, "\n"), ssh.FingerprintSHA256(c.sshd.other), "the operator and the agent can see it too")
}
