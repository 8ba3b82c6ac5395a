package policy

import (
	"regexp"
	"slices"
	"strings"
)

// maxCommand bounds an SSH command line, in bytes.
const maxCommand = 32 << 10

// The services of git over SSH that a rule can name.
const (
	GitUploadPack    = "git-upload-pack"    // fetch and clone
	GitReceivePack   = "git-receive-pack"   // push
	GitUploadArchive = "git-upload-archive" // archive --remote
)

var gitServices = []string{GitUploadPack, GitReceivePack, GitUploadArchive}

// ParseGitCommand reads the command line that git sends over SSH, such as
// "git-upload-pack 'owner/name.git'". The repository comes without a leading
// slash, trailing slashes and ".git", so that a rule needs one way to write it.
// Whatever could mean something else to a shell, or walks up with "..", is not
// a git command.
func ParseGitCommand(command string) (service, repository string, ok bool) {
	rest := ""
	for _, s := range gitServices {
		for _, form := range []string{s, strings.Replace(s, "-", " ", 1)} {
			if after, found := strings.CutPrefix(command, form+" "); found {
				service, rest = s, after
			}
		}
	}
	if service == "" {
		return "", "", false
	}
	word, ok := shellWord(rest)
	if !ok {
		return "", "", false
	}
	word = strings.TrimSuffix(strings.Trim(word, "/"), ".git")
	for segment := range strings.SplitSeq(word, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return "", "", false
		}
	}
	return service, word, true
}

// shellWord undoes git's quoting of one argument: '...' with ' and ! written
// as '\” and '\!' (quote.c), or a word without anything special.
func shellWord(s string) (string, bool) {
	var b strings.Builder
	quoted := false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c < ' ' || c == 0x7f:
			return "", false
		case c == '\'':
			quoted = !quoted
		case quoted:
			b.WriteByte(c)
		case c == '\\' && i+1 < len(s) && (s[i+1] == '\'' || s[i+1] == '!'):
			i++
			b.WriteByte(s[i])
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-_./+@%:,~", c) >= 0:
			b.WriteByte(c)
		default:
			return "", false
		}
	}
	return b.String(), !quoted && b.Len() > 0
}

// special are the characters with which a shell starts another command. The
// wildcard of a rule that lets through does not stand for them: "git log *" must
// not let "git log; curl ..." through.
const special = ";&|<>$`()\n\r\x00"

// commandGlob compiles a pattern in which * and ? are wildcards.
func commandGlob(pattern string, stops bool) *regexp.Regexp {
	if pattern == "**" {
		return regexp.MustCompile(`(?s)^.*$`)
	}
	set, flags := "[^"+regexp.QuoteMeta(special)+"]", "(?s)"
	if stops {
		set, flags = ".", "(?is)"
	}
	var b strings.Builder
	for part := range strings.SplitAfterSeq(pattern, "*") {
		literal, star := strings.CutSuffix(part, "*")
		b.WriteString(strings.ReplaceAll(regexp.QuoteMeta(literal), `\?`, set))
		if star {
			b.WriteString(set + "*")
		}
	}
	return regexp.MustCompile(flags + "^" + b.String() + "$")
}

// sshSet is the compiled ssh section of a rule.
type sshSet struct {
	services     []string
	repositories pathSet
	commands     []*regexp.Regexp
	shell        bool
	subsystems   []string
	forwards     []*regexp.Regexp
	stops        bool
}

func (s *sshSet) match(call SSHCall) bool {
	matches := func(list []*regexp.Regexp) bool {
		return slices.ContainsFunc(list, func(r *regexp.Regexp) bool { return r.MatchString(call.Command) })
	}
	switch call.Kind {
	case SSHExec:
		return s.matchGit(call.Command) || matches(s.commands)
	case SSHShell:
		return s.shell
	case SSHSubsystem:
		return slices.Contains(s.subsystems, call.Command)
	case SSHForward:
		return matches(s.forwards)
	}
	return s.stops
}

func (s *sshSet) matchGit(command string) bool {
	if service, repository, ok := ParseGitCommand(command); ok {
		return slices.Contains(s.services, service) && s.repositories.match([]string{repository})
	}
	// Not git's own way to write it. A rule that stops a service stops every
	// way; for the others it is no git command.
	return s.stops && slices.ContainsFunc(s.services, func(service string) bool {
		low := strings.ToLower(command)
		return strings.Contains(low, service) || strings.Contains(low, strings.TrimPrefix(service, "git-"))
	})
}
